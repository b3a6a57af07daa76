#include "core/session_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>
#include <openssl/evp.h>

#include "core/check.h"
#include "core/digest.h"
#include "core/ids.h"
#include "core/status.h"

namespace turnkeep {
namespace {

constexpr std::string_view kEndMagic = "TKSESEND";
using Sha256 = std::array<uint8_t, 32>;

std::span<const std::byte> BytesOf(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

class Sha256Stream {
 public:
  Sha256Stream() : context_(EVP_MD_CTX_new()) {
    TK_CHECK(context_ != nullptr);
    TK_CHECK(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }
  void Update(std::span<const std::byte> bytes) {
    TK_CHECK(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1);
  }
  Sha256 Finish() {
    Sha256 result{};
    TK_CHECK(EVP_DigestFinal_ex(context_.get(), result.data(), nullptr) == 1);
    return result;
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context_;
};

std::string HexOf(const Sha256& hash) {
  std::string hex;
  for (const uint8_t byte : hash) hex += fmt::format("{:02x}", byte);
  return hex;
}

SessionFileInfo InfoOf(const SessionManifest& manifest, uint64_t file_bytes) {
  return {.session = manifest.session,
          .model = manifest.layout.model,
          .layout = FingerprintOf(manifest.layout),
          .token_count = manifest.token_count,
          .chunk_count = manifest.chunks.size(),
          .file_bytes = file_bytes,
          .exported_unix_s = manifest.exported_unix_s};
}

uint64_t LargestPageBytes(const SessionManifest& manifest) {
  uint64_t largest = 0;
  for (const LayerSpec& layer : manifest.layout.layers) {
    for (const ImportedChunk& chunk : manifest.chunks) {
      largest = std::max(largest, LayerPageBytes(layer, chunk.token_count));
    }
  }
  return largest;
}

// ---- export ----------------------------------------------------------------------

class HashingSink {
 public:
  explicit HashingSink(ByteSink& sink) : sink_(sink) {}

  absl::Status Append(std::span<const std::byte> bytes) {
    hash_.Update(bytes);
    written_bytes_ += bytes.size();
    return sink_.Append(bytes);
  }
  absl::Status AppendTrailer(Sha256* hash) {
    *hash = hash_.Finish();
    TK_RETURN_IF_ERROR(sink_.Append(BytesOf(kEndMagic)));
    return sink_.Append(std::as_bytes(std::span(*hash)));
  }
  uint64_t written_bytes() const { return written_bytes_; }

 private:
  ByteSink& sink_;
  Sha256Stream hash_;
  uint64_t written_bytes_ = 0;
};

// The manifest's chunks and slices from the spans of a restore; `span_of` gets, per
// chunk, a span that comes from it.
absl::Status FillManifest(RestoreTicket& restore, const ChunkId& root, SessionManifest* manifest,
                          std::vector<size_t>* span_of) {
  absl::flat_hash_map<ChunkId, uint32_t> index_of;
  for (size_t i = 0; i < restore.spans().size(); ++i) {
    const RestoredSpan& span = restore.spans()[i];
    TK_ASSIGN_OR_RETURN(ChunkHeader header, restore.Header(i));
    const auto [entry, added] =
        index_of.emplace(header.id, static_cast<uint32_t>(manifest->chunks.size()));
    if (added) {
      span_of->push_back(i);
      manifest->chunks.push_back({.foreign_id = header.id,
                                  .foreign_parent = header.parent,
                                  .parent_is_root = header.parent == root,
                                  .tokens = std::move(header.tokens),
                                  .block_hash = std::move(header.block_hash),
                                  .token_count = header.token_count,
                                  .position_base = header.position_base});
    }
    manifest->slices.push_back(
        {.chunk_index = entry->second, .first = span.first_in_chunk, .count = span.token_count});
    manifest->token_count += span.token_count;
  }
  return absl::OkStatus();
}

absl::Status NotWhole(const std::string& session, uint64_t stored, uint64_t wanted,
                      const std::string& reason) {
  return FailedPrecondition("export session \"{}\": only {} of its {} tokens can be restored: {}",
                            session, stored, wanted,
                            reason.empty() ? "the rest did not arrive" : reason);
}

absl::Status WritePages(RestoreTicket& restore, const SessionManifest& manifest,
                        const std::vector<size_t>& span_of, const ExportOptions& options,
                        uint64_t file_bytes, HashingSink& sink) {
  std::vector<std::byte> page(LargestPageBytes(manifest));
  for (uint32_t layer = 0; layer < manifest.layout.layers.size(); ++layer) {
    TK_ASSIGN_OR_RETURN(const uint64_t tokens, restore.WaitLayer(layer, options.deadline));
    if (tokens < manifest.token_count) {
      return NotWhole(manifest.session, tokens, manifest.token_count, restore.miss_reason());
    }
    for (size_t chunk = 0; chunk < manifest.chunks.size(); ++chunk) {
      const ImportedChunk& record = manifest.chunks[chunk];
      const auto bytes =
          std::span(page).first(LayerPageBytes(manifest.layout.layers[layer], record.token_count));
      TK_RETURN_IF_ERROR(restore.ReadPage(span_of[chunk], layer, bytes));
      const Digest digest = ComputeDigest({.chunk = record.foreign_id, .layer = layer}, bytes);
      TK_RETURN_IF_ERROR(sink.Append(bytes));
      TK_RETURN_IF_ERROR(sink.Append(std::as_bytes(std::span(&digest, 1))));
      if (options.progress) options.progress(sink.written_bytes(), file_bytes);
    }
  }
  return absl::OkStatus();
}

// ---- import and check ------------------------------------------------------------

// Reads the parts of a session file in order and verifies each.
class SessionFileReader {
 public:
  explicit SessionFileReader(ByteSource& source) : source_(source) {}

  absl::Status ReadManifest() {
    std::array<std::byte, kSessionFileHeadBytes> head_bytes{};
    const uint64_t size = source_.size_bytes();
    const auto head_part = std::span(head_bytes).first(std::min<uint64_t>(size, head_bytes.size()));
    TK_RETURN_IF_ERROR(Read(head_part));
    TK_ASSIGN_OR_RETURN(head_, DecodeSessionFileHead(head_part, size));
    std::vector<std::byte> bytes(head_.manifest_bytes);  // not more than the file has
    TK_RETURN_IF_ERROR(Read(bytes));
    TK_ASSIGN_OR_RETURN(manifest_, DecodeSessionManifest(bytes));
    if (SessionPagesBytes(manifest_) != head_.pages_bytes) {
      return DataLoss("session file byte 24: the head says {} bytes of pages, the manifest {}",
                      head_.pages_bytes, SessionPagesBytes(manifest_));
    }
    return absl::OkStatus();
  }

  // The next page, which is the one of (`layer`, `chunk`); `page` has its size.
  absl::Status ReadPage(uint32_t layer, size_t chunk, std::span<std::byte> page) {
    const uint64_t begin = offset_;
    Digest digest;
    TK_RETURN_IF_ERROR(Read(page));
    TK_RETURN_IF_ERROR(Read(std::as_writable_bytes(std::span(&digest, 1))));
    const ChunkId& id = manifest_.chunks[chunk].foreign_id;
    if (digest != ComputeDigest({.chunk = id, .layer = layer}, page)) {
      return DataLoss(
          "session file bytes {} to {}: layer {} of chunk {} ({}) is damaged, its digest does not "
          "match",
          begin, offset_, layer, chunk, id.ShortHex());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Sha256> ReadTrailer() {
    const Sha256 computed = hash_.Finish();
    const uint64_t begin = offset_;
    std::array<std::byte, kSessionFileTrailerBytes> trailer{};
    TK_RETURN_IF_ERROR(source_.Read(trailer));
    if (std::memcmp(trailer.data(), kEndMagic.data(), kEndMagic.size()) != 0) {
      return DataLoss("session file byte {}: the trailer is damaged (TKSESEND is missing)", begin);
    }
    if (std::memcmp(trailer.data() + kEndMagic.size(), computed.data(), computed.size()) != 0) {
      return DataLoss("session file byte {}: SHA-256 of the file does not match its trailer",
                      begin + kEndMagic.size());
    }
    return computed;
  }

  const SessionManifest& manifest() const { return manifest_; }
  uint64_t offset() const { return offset_; }
  uint64_t file_bytes() const { return head_.file_bytes; }

 private:
  absl::Status Read(std::span<std::byte> bytes) {
    TK_RETURN_IF_ERROR(source_.Read(bytes));
    hash_.Update(bytes);
    offset_ += bytes.size();
    return absl::OkStatus();
  }

  ByteSource& source_;
  Sha256Stream hash_;
  uint64_t offset_ = 0;
  SessionFileHead head_;
  SessionManifest manifest_;
};

// Reads all pages, those of chunks [first_wanted, …) into the ticket, and verifies the
// trailer. `save` may be null, when nothing is wanted.
absl::StatusOr<Sha256> ReadPages(SessionFileReader& reader, SaveTicket* save, size_t first_wanted,
                                 const SessionFileProgress& progress) {
  const SessionManifest& manifest = reader.manifest();
  std::vector<std::byte> scratch(first_wanted > 0 ? LargestPageBytes(manifest) : 0);
  for (uint32_t layer = 0; layer < manifest.layout.layers.size(); ++layer) {
    for (size_t chunk = 0; chunk < manifest.chunks.size(); ++chunk) {
      const uint64_t bytes =
          LayerPageBytes(manifest.layout.layers[layer], manifest.chunks[chunk].token_count);
      const auto page = chunk < first_wanted ? std::span(scratch).first(bytes)
                                             : save->Page(chunk - first_wanted, layer);
      if (page.size() != bytes) {
        return Internal("import: page of layer {}, chunk {} has {} bytes, the layout says {}",
                        layer, chunk, page.size(), bytes);
      }
      TK_RETURN_IF_ERROR(reader.ReadPage(layer, chunk, page));
      if (progress) progress(reader.offset(), reader.file_bytes());
    }
    if (save != nullptr) TK_RETURN_IF_ERROR(save->FinishLayer(layer));
  }
  return reader.ReadTrailer();
}

// The ticket asks for the last chunks of the request, whole.
absl::Status CheckTicket(const SaveTicket& save, const SessionManifest& manifest) {
  const auto wanted = save.chunks();
  bool fits = wanted.size() <= manifest.chunks.size();
  for (size_t i = 0; fits && i < wanted.size(); ++i) {
    fits = wanted[i].token_count ==
           manifest.chunks[manifest.chunks.size() - wanted.size() + i].token_count;
  }
  return fits ? absl::OkStatus()
              : Internal("import: the ticket's {} chunks are not the last of the file's {}",
                         wanted.size(), manifest.chunks.size());
}

}  // namespace

absl::StatusOr<SessionFileInfo> ExportSession(KvStore& store, const std::string& session,
                                              ByteSink& sink, const ExportOptions& options) {
  TK_ASSIGN_OR_RETURN(const SessionDetail detail, store.ShowSession(session));
  SessionManifest manifest{.session = session, .exported_unix_s = options.now_unix_s};
  TK_ASSIGN_OR_RETURN(manifest.layout, store.GetLayout(detail.info.layout));
  TK_ASSIGN_OR_RETURN(
      const std::unique_ptr<RestoreTicket> restore,
      store.BeginRestore(
          {.session = session, .layout = detail.info.layout, .deadline = options.deadline}));
  if (restore->token_count() > 0 && restore->generation() != detail.info.generation) {
    return FailedPrecondition(
        "export session \"{}\": it changed from generation {} to {} meanwhile; try again", session,
        detail.info.generation, restore->generation());
  }
  uint64_t tokens = restore->token_count();
  if (tokens == detail.info.token_count && tokens > 0) {
    TK_ASSIGN_OR_RETURN(tokens, restore->WaitLayer(0, options.deadline));
  }
  if (tokens < detail.info.token_count || tokens == 0) {
    return NotWhole(session, tokens, detail.info.token_count, restore->miss_reason());
  }
  std::vector<size_t> span_of;
  TK_RETURN_IF_ERROR(FillManifest(*restore, detail.root, &manifest, &span_of));
  if (const absl::Status valid = ValidateSessionManifest(manifest); !valid.ok()) {
    return Internal("export session \"{}\": {}", session, MessageOf(valid));
  }
  const std::string body = EncodeSessionManifest(manifest);
  SessionFileHead head{.manifest_bytes = body.size(), .pages_bytes = SessionPagesBytes(manifest)};
  head.file_bytes =
      kSessionFileHeadBytes + body.size() + head.pages_bytes + kSessionFileTrailerBytes;
  HashingSink out(sink);
  TK_RETURN_IF_ERROR(out.Append(BytesOf(EncodeSessionFileHead(head))));
  TK_RETURN_IF_ERROR(out.Append(BytesOf(body)));
  TK_RETURN_IF_ERROR(WritePages(*restore, manifest, span_of, options, head.file_bytes, out));
  Sha256 hash{};
  TK_RETURN_IF_ERROR(out.AppendTrailer(&hash));
  SessionFileInfo info = InfoOf(manifest, head.file_bytes);
  info.sha256_hex = HexOf(hash);
  return info;
}

absl::StatusOr<ImportedSession> ImportSession(KvStore& store, ByteSource& source,
                                              const ImportOptions& options) {
  SessionFileReader reader(source);
  TK_RETURN_IF_ERROR(reader.ReadManifest());
  const SessionManifest& manifest = reader.manifest();
  ImportedSession result{.file = InfoOf(manifest, reader.file_bytes()),
                         .session = options.session.empty() ? manifest.session : options.session};
  TK_ASSIGN_OR_RETURN(const Fingerprint layout, store.RegisterLayout(manifest.layout));
  TK_ASSIGN_OR_RETURN(const std::unique_ptr<SaveTicket> save,
                      store.BeginImport({.session = result.session,
                                         .layout = layout,
                                         .chunks = manifest.chunks,
                                         .slices = manifest.slices}));
  if (save->accepted_tokens() < manifest.token_count) {
    return ResourceExhausted("import session \"{}\": room for {} of its {} tokens", result.session,
                             save->accepted_tokens(), manifest.token_count);
  }
  TK_RETURN_IF_ERROR(CheckTicket(*save, manifest));
  const size_t first_wanted = manifest.chunks.size() - save->chunks().size();
  TK_ASSIGN_OR_RETURN(const Sha256 hash,
                      ReadPages(reader, save.get(), first_wanted, options.progress));
  result.file.sha256_hex = HexOf(hash);
  TK_ASSIGN_OR_RETURN(result.commit, save->Commit(options.commit_deadline));
  return result;
}

absl::StatusOr<SessionFileInfo> CheckSessionFile(ByteSource& source,
                                                 const SessionFileProgress& progress) {
  SessionFileReader reader(source);
  TK_RETURN_IF_ERROR(reader.ReadManifest());
  SessionFileInfo info = InfoOf(reader.manifest(), reader.file_bytes());
  TK_ASSIGN_OR_RETURN(const Sha256 hash,
                      ReadPages(reader, nullptr, reader.manifest().chunks.size(), progress));
  info.sha256_hex = HexOf(hash);
  return info;
}

}  // namespace turnkeep
