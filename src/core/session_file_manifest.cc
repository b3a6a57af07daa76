// Manifest grammar:
//   u32 bytes, layout (EncodeLayout)
//   u16 bytes, session name
//   u64 tokens, i64 exported, Unix seconds
//   u32 chunks, each:  id 32, parent 32, u8 flags, u32 tokens, u64 position of the first token,
//                      then u32 ids × tokens, or u8 bytes and a block hash (flag 2)
//   u32 slices, each:  u32 chunk index, u32 first token in the chunk, u32 tokens
//   digest 16
// Flags: 1 the parent is the root of the chain, 2 named by a block hash.
#include "core/session_file_manifest.h"

#include <cstring>
#include <string_view>
#include <utility>

#include <absl/container/flat_hash_map.h>

#include "core/byte_codec.h"
#include "core/digest.h"
#include "core/ids.h"
#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {
namespace {

constexpr std::string_view kMagic = "TKSESS\r\n";
constexpr uint64_t kHeadEpoch = 0;
constexpr uint64_t kManifestEpoch = 1;
constexpr uint8_t kParentIsRoot = 1;
constexpr uint8_t kNamedByHash = 2;

std::span<const std::byte> BytesOf(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

Digest DigestOf(std::span<const std::byte> bytes, uint64_t epoch) {
  return ComputeDigest({.layer = kHeaderLayer, .epoch = epoch}, bytes);
}

// A ByteReader that knows where in the file it is.
class ManifestReader {
 public:
  explicit ManifestReader(std::span<const std::byte> bytes) : reader_(bytes), size_(bytes.size()) {}

  uint64_t offset() const { return kSessionFileHeadBytes + size_ - reader_.remaining(); }
  size_t remaining() const { return reader_.remaining(); }

  template <typename T>
  absl::Status Read(const char* what, T* value) {
    return reader_.Read(value) ? absl::OkStatus() : Short(what, sizeof(T));
  }
  absl::Status ReadString(const char* what, size_t bytes, std::string* value) {
    return reader_.ReadString(bytes, value) ? absl::OkStatus() : Short(what, bytes);
  }

 private:
  absl::Status Short(const char* what, size_t wanted) const {
    return DataLoss("session file byte {}: {} needs {} bytes, the manifest has {} left", offset(),
                    what, wanted, remaining());
  }

  ByteReader reader_;
  const size_t size_;
};

absl::Status ReadChunk(ManifestReader& reader, ImportedChunk* chunk) {
  uint8_t flags = 0;
  TK_RETURN_IF_ERROR(reader.Read("chunk id", &chunk->foreign_id.bytes));
  TK_RETURN_IF_ERROR(reader.Read("chunk parent", &chunk->foreign_parent.bytes));
  TK_RETURN_IF_ERROR(reader.Read("chunk flags", &flags));
  if ((flags & ~(kParentIsRoot | kNamedByHash)) != 0) {
    return DataLoss("session file byte {}: chunk flags are {}, at most 3 is known",
                    reader.offset() - 1, flags);
  }
  TK_RETURN_IF_ERROR(reader.Read("chunk token count", &chunk->token_count));
  TK_RETURN_IF_ERROR(reader.Read("chunk position", &chunk->position_base));
  chunk->parent_is_root = (flags & kParentIsRoot) != 0;
  if ((flags & kNamedByHash) != 0) {
    uint8_t hash_bytes = 0;
    TK_RETURN_IF_ERROR(reader.Read("block hash length", &hash_bytes));
    return reader.ReadString("block hash", hash_bytes, &chunk->block_hash);
  }
  if (chunk->token_count > kMaxChunkTokens) {  // before memory is taken for them
    return DataLoss("session file byte {}: chunk has {} tokens, at most {} are possible",
                    reader.offset(), chunk->token_count, kMaxChunkTokens);
  }
  std::string ids;
  TK_RETURN_IF_ERROR(reader.ReadString("token ids", chunk->token_count * sizeof(uint32_t), &ids));
  chunk->tokens.resize(chunk->token_count);
  if (!ids.empty()) std::memcpy(chunk->tokens.data(), ids.data(), ids.size());
  return absl::OkStatus();
}

absl::Status ReadLayout(ManifestReader& reader, KvLayout* layout) {
  uint32_t layout_bytes = 0;
  TK_RETURN_IF_ERROR(reader.Read("layout length", &layout_bytes));
  if (layout_bytes > kMaxLayoutEncodingBytes) {
    return DataLoss("session file byte {}: layout has {} bytes, at most {} are possible",
                    reader.offset() - 4, layout_bytes, kMaxLayoutEncodingBytes);
  }
  const uint64_t at = reader.offset();
  std::string encoding;
  TK_RETURN_IF_ERROR(reader.ReadString("layout", layout_bytes, &encoding));
  auto decoded = DecodeLayout(encoding);
  if (!decoded.ok()) {
    return DataLoss("session file byte {}: layout: {}", at, MessageOf(decoded.status()));
  }
  *layout = *std::move(decoded);
  return absl::OkStatus();
}

absl::Status ReadBody(ManifestReader& reader, SessionManifest* manifest) {
  TK_RETURN_IF_ERROR(ReadLayout(reader, &manifest->layout));
  uint16_t name_bytes = 0;
  uint32_t count = 0;
  TK_RETURN_IF_ERROR(reader.Read("session name length", &name_bytes));
  TK_RETURN_IF_ERROR(reader.ReadString("session name", name_bytes, &manifest->session));
  TK_RETURN_IF_ERROR(reader.Read("token count", &manifest->token_count));
  TK_RETURN_IF_ERROR(reader.Read("time of export", &manifest->exported_unix_s));
  // Counts are not trusted with memory: each record is paid for by its own bytes.
  TK_RETURN_IF_ERROR(reader.Read("chunk count", &count));
  for (uint32_t i = 0; i < count; ++i) {
    TK_RETURN_IF_ERROR(ReadChunk(reader, &manifest->chunks.emplace_back()));
  }
  TK_RETURN_IF_ERROR(reader.Read("slice count", &count));
  for (uint32_t i = 0; i < count; ++i) {
    ImportRequest::Slice& slice = manifest->slices.emplace_back();
    TK_RETURN_IF_ERROR(reader.Read("slice chunk", &slice.chunk_index));
    TK_RETURN_IF_ERROR(reader.Read("slice first token", &slice.first));
    TK_RETURN_IF_ERROR(reader.Read("slice token count", &slice.count));
  }
  if (reader.remaining() != 0) {
    return DataLoss("session file byte {}: {} bytes after the last slice", reader.offset(),
                    reader.remaining());
  }
  return absl::OkStatus();
}

absl::Status ValidateChunks(const SessionManifest& manifest) {
  absl::flat_hash_map<ChunkId, size_t> index_of;
  for (size_t i = 0; i < manifest.chunks.size(); ++i) {
    const ImportedChunk& chunk = manifest.chunks[i];
    if (chunk.token_count == 0 || chunk.token_count > manifest.layout.chunk_tokens) {
      return InvalidArgument("chunks[{}].token_count is {}, the layout's chunk_tokens {}", i,
                             chunk.token_count, manifest.layout.chunk_tokens);
    }
    const bool hashed = !chunk.block_hash.empty();
    if (hashed ? !chunk.tokens.empty() : chunk.tokens.size() != chunk.token_count) {
      return InvalidArgument("chunks[{}] has {} tokens, {} token ids and a block hash of {} bytes",
                             i, chunk.token_count, chunk.tokens.size(), chunk.block_hash.size());
    }
    if (chunk.block_hash.size() > kMaxBlockHashBytes) {
      return InvalidArgument("chunks[{}].block_hash has {} bytes, at most {} are possible", i,
                             chunk.block_hash.size(), kMaxBlockHashBytes);
    }
    if (!index_of.emplace(chunk.foreign_id, i).second) {
      return InvalidArgument("chunks[{}] has the id {} of chunks[{}]", i,
                             chunk.foreign_id.ShortHex(), index_of[chunk.foreign_id]);
    }
  }
  for (size_t i = 0; i < manifest.chunks.size(); ++i) {
    const auto parent = index_of.find(manifest.chunks[i].foreign_parent);
    if (parent == index_of.end()) continue;
    if (parent->second >= i || manifest.chunks[i].parent_is_root) {
      return InvalidArgument("chunks[{}] names chunks[{}] as its parent{}", i, parent->second,
                             manifest.chunks[i].parent_is_root ? " and as the root" : "");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateSlices(const SessionManifest& manifest) {
  uint64_t tokens = 0;
  size_t shown = 0;  // chunks [0, shown) have been shown
  for (size_t i = 0; i < manifest.slices.size(); ++i) {
    const ImportRequest::Slice& slice = manifest.slices[i];
    if (slice.chunk_index > shown || slice.chunk_index >= manifest.chunks.size()) {
      return InvalidArgument("slices[{}].chunk_index is {}, the next chunk to be shown is {} of {}",
                             i, slice.chunk_index, shown, manifest.chunks.size());
    }
    if (slice.chunk_index == shown) ++shown;
    const uint32_t chunk_tokens = manifest.chunks[slice.chunk_index].token_count;
    if (slice.count == 0 || slice.first >= chunk_tokens ||
        slice.count > chunk_tokens - slice.first) {
      return InvalidArgument("slices[{}] is {} tokens from {} on, its chunk has {}", i, slice.count,
                             slice.first, chunk_tokens);
    }
    tokens += slice.count;
  }
  if (shown != manifest.chunks.size()) {
    return InvalidArgument("chunks[{}] is shown by no slice", shown);
  }
  if (tokens != manifest.token_count || tokens == 0 || tokens > kMaxSessionTokens) {
    return InvalidArgument("token_count is {}, the slices have {}, at most {} are possible",
                           manifest.token_count, tokens, kMaxSessionTokens);
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeSessionFileHead(const SessionFileHead& head) {
  std::string out(kMagic);
  AppendBytes(kSessionFileVersion, &out);
  AppendBytes(uint32_t{0}, &out);
  AppendBytes(head.manifest_bytes, &out);
  AppendBytes(head.pages_bytes, &out);
  AppendBytes(head.file_bytes, &out);
  AppendBytes(uint64_t{0}, &out);
  const Digest digest = DigestOf(BytesOf(out), kHeadEpoch);
  AppendBytes(digest, &out);
  return out;
}

absl::StatusOr<SessionFileHead> DecodeSessionFileHead(std::span<const std::byte> bytes,
                                                      uint64_t file_bytes) {
  if (bytes.size() < kSessionFileHeadBytes) {
    return DataLoss("session file byte {}: the file ends inside its head of {} bytes", bytes.size(),
                    kSessionFileHeadBytes);
  }
  bytes = bytes.first(kSessionFileHeadBytes);
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return DataLoss("session file byte 0: this is not a session file (magic TKSESS is missing)");
  }
  ByteReader reader(bytes.subspan(kMagic.size()));
  uint32_t version = 0;
  uint32_t zero32 = 0;
  uint64_t zero64 = 0;
  SessionFileHead head;
  Digest digest;
  const bool whole = reader.Read(&version) && reader.Read(&zero32) &&
                     reader.Read(&head.manifest_bytes) && reader.Read(&head.pages_bytes) &&
                     reader.Read(&head.file_bytes) && reader.Read(&zero64) && reader.Read(&digest);
  if (!whole) return Internal("session file: head layout and kSessionFileHeadBytes differ");
  if (version != kSessionFileVersion) {
    return InvalidArgument("session file byte 8: format version is {}, this build reads {}",
                           version, kSessionFileVersion);
  }
  if (digest != DigestOf(bytes.first(48), kHeadEpoch) || zero32 != 0 || zero64 != 0) {
    return DataLoss("session file byte 0: the head is damaged, its digest does not match");
  }
  uint64_t sum = kSessionFileHeadBytes + kSessionFileTrailerBytes;
  if (head.manifest_bytes > kMaxSessionFileManifestBytes ||
      head.manifest_bytes < kSessionFileDigestBytes ||
      !CheckedAdd(sum, head.manifest_bytes, &sum) || !CheckedAdd(sum, head.pages_bytes, &sum) ||
      sum != head.file_bytes) {
    return DataLoss("session file byte 16: manifest of {} and pages of {} bytes in a file of {}",
                    head.manifest_bytes, head.pages_bytes, head.file_bytes);
  }
  if (file_bytes != head.file_bytes) {
    return DataLoss("session file byte {}: the file has {} bytes, its head says {}: it was {}",
                    std::min(file_bytes, head.file_bytes), file_bytes, head.file_bytes,
                    file_bytes < head.file_bytes ? "cut off" : "appended to");
  }
  return head;
}

absl::Status ValidateSessionManifest(const SessionManifest& manifest) {
  TK_RETURN_IF_ERROR(ValidateLayout(manifest.layout));
  TK_RETURN_IF_ERROR(ValidateName("session", manifest.session));
  TK_RETURN_IF_ERROR(ValidateChunks(manifest));
  return ValidateSlices(manifest);
}

std::string EncodeSessionManifest(const SessionManifest& manifest) {
  std::string out;
  const std::string layout = EncodeLayout(manifest.layout);
  AppendBytes(static_cast<uint32_t>(layout.size()), &out);
  out += layout;
  AppendBytes(static_cast<uint16_t>(manifest.session.size()), &out);
  out += manifest.session;
  AppendBytes(manifest.token_count, &out);
  AppendBytes(manifest.exported_unix_s, &out);
  AppendBytes(static_cast<uint32_t>(manifest.chunks.size()), &out);
  for (const ImportedChunk& chunk : manifest.chunks) {
    const bool hashed = !chunk.block_hash.empty();
    AppendBytes(chunk.foreign_id.bytes, &out);
    AppendBytes(chunk.foreign_parent.bytes, &out);
    AppendBytes(static_cast<uint8_t>((chunk.parent_is_root ? kParentIsRoot : 0) |
                                     (hashed ? kNamedByHash : 0)),
                &out);
    AppendBytes(chunk.token_count, &out);
    AppendBytes(chunk.position_base, &out);
    if (hashed) {
      AppendBytes(static_cast<uint8_t>(chunk.block_hash.size()), &out);
      out += chunk.block_hash;
    } else {
      out.append(reinterpret_cast<const char*>(chunk.tokens.data()),
                 chunk.tokens.size() * sizeof(uint32_t));
    }
  }
  AppendBytes(static_cast<uint32_t>(manifest.slices.size()), &out);
  for (const ImportRequest::Slice& slice : manifest.slices) {
    AppendBytes(slice.chunk_index, &out);
    AppendBytes(slice.first, &out);
    AppendBytes(slice.count, &out);
  }
  const Digest digest = DigestOf(BytesOf(out), kManifestEpoch);
  AppendBytes(digest, &out);
  return out;
}

absl::StatusOr<SessionManifest> DecodeSessionManifest(std::span<const std::byte> bytes) {
  if (bytes.size() < kSessionFileDigestBytes) {
    return DataLoss("session file byte {}: a manifest of {} bytes has no digest",
                    kSessionFileHeadBytes, bytes.size());
  }
  const auto body = bytes.first(bytes.size() - kSessionFileDigestBytes);
  Digest digest;
  std::memcpy(&digest, bytes.data() + body.size(), sizeof(digest));
  if (digest != DigestOf(body, kManifestEpoch)) {
    return DataLoss(
        "session file bytes {} to {}: the manifest is damaged, its digest does not "
        "match",
        kSessionFileHeadBytes, kSessionFileHeadBytes + bytes.size());
  }
  SessionManifest manifest;
  ManifestReader reader(body);
  TK_RETURN_IF_ERROR(ReadBody(reader, &manifest));
  if (const absl::Status valid = ValidateSessionManifest(manifest); !valid.ok()) {
    return DataLoss("session file bytes {} to {}: the manifest contradicts itself: {}",
                    kSessionFileHeadBytes, kSessionFileHeadBytes + bytes.size(), MessageOf(valid));
  }
  return manifest;
}

uint64_t SessionPagesBytes(const SessionManifest& manifest) {
  uint64_t sum = 0;
  for (const ImportedChunk& chunk : manifest.chunks) {
    for (const LayerSpec& layer : manifest.layout.layers) {
      sum += LayerPageBytes(layer, chunk.token_count) + kSessionFileDigestBytes;
    }
  }
  return sum;
}

}  // namespace turnkeep
