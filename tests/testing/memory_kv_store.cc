#include "testing/memory_kv_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/digest.h"
#include "core/status.h"

namespace turnkeep::testing {
namespace {

constexpr int64_t kNowUnixS = 1'700'000'000;

class MemorySave : public SaveTicket {
 public:
  // `chunks` is the whole list of the context, the first `known` of which are stored.
  MemorySave(MemoryKvStore* store, std::string session, MemoryKvStore::Session target,
             KvLayout layout, std::vector<MemoryKvStore::Chunk> chunks)
      : store_(store),
        session_(std::move(session)),
        target_(std::move(target)),
        layout_(std::move(layout)) {
    bool known = true;
    uint64_t begin = 0;
    for (MemoryKvStore::Chunk& chunk : chunks) {
      const uint32_t count = chunk.header.token_count;
      known = known && store_->chunks.contains(chunk.header.id);
      if (known) {
        known_tokens_ += count;
      } else {
        wanted_.push_back({.token_begin = begin, .token_count = count});
        for (const LayerSpec& layer : layout_.layers) {
          chunk.pages.emplace_back(LayerPageBytes(layer, count));
        }
        chunk.header.layer_digests.resize(layout_.layers.size());
        new_chunks_.push_back(std::move(chunk));
      }
      begin += count;
    }
    accepted_tokens_ = 0;
    for (const ChunkSlice& slice : target_.view) accepted_tokens_ += slice.count;
    accepted_tokens_ = std::min(accepted_tokens_, store_->space_tokens);
    finished_.resize(layout_.layers.size());
  }

  uint64_t known_tokens() const override { return known_tokens_; }
  uint64_t accepted_tokens() const override { return accepted_tokens_; }
  std::span<const ChunkToSave> chunks() const override { return wanted_; }
  std::span<std::byte> Page(size_t chunk, uint32_t layer) override {
    return new_chunks_[chunk].pages[layer];
  }
  absl::Status FinishLayer(uint32_t layer) override {
    for (MemoryKvStore::Chunk& chunk : new_chunks_) {
      chunk.header.layer_digests[layer] =
          ComputeDigest({.chunk = chunk.header.id, .layer = layer}, chunk.pages[layer]);
    }
    finished_[layer] = true;
    return absl::OkStatus();
  }
  absl::StatusOr<CommitResult> Commit(absl::Duration) override {
    if (std::count(finished_.begin(), finished_.end(), false) > 0) {
      return FailedPrecondition("commit: a layer is not finished");
    }
    CommitResult result{.generation = target_.generation, .token_count = accepted_tokens_};
    for (MemoryKvStore::Chunk& chunk : new_chunks_) {
      ++result.new_chunks;
      for (const auto& page : chunk.pages) result.new_bytes += page.size();
      const ChunkId id = chunk.header.id;
      store_->chunks.insert_or_assign(id, std::move(chunk));
    }
    store_->sessions[session_] = target_;
    return result;
  }

 private:
  MemoryKvStore* const store_;
  const std::string session_;
  const MemoryKvStore::Session target_;
  const KvLayout layout_;
  std::vector<ChunkToSave> wanted_;
  std::vector<MemoryKvStore::Chunk> new_chunks_;
  std::vector<bool> finished_;
  uint64_t known_tokens_ = 0;
  uint64_t accepted_tokens_ = 0;
};

class MemoryRestore : public RestoreTicket {
 public:
  MemoryRestore(const MemoryKvStore* store, const MemoryKvStore::Session& session)
      : store_(store), session_(session) {
    uint64_t begin = 0;
    for (const ChunkSlice& slice : session_.view) {
      const auto found = store_->chunks.find(slice.chunk);
      if (found == store_->chunks.end()) {
        miss_reason_ = "chunk " + slice.chunk.ShortHex() + " was evicted";
        break;
      }
      const ChunkHeader& header = found->second.header;
      spans_.push_back({.token_begin = begin,
                        .token_count = slice.count,
                        .first_in_chunk = slice.first,
                        .chunk_token_count = header.token_count,
                        .stored_position = header.position_base + slice.first,
                        .tier = Tier::kHost});
      begin += slice.count;
    }
    token_count_ = begin;
  }

  uint64_t token_count() const override { return token_count_; }
  uint64_t generation() const override { return session_.generation; }
  std::span<const RestoredSpan> spans() const override { return spans_; }
  const ChunkId& chunk(size_t span) const override { return session_.view[span].chunk; }
  std::string miss_reason() const override { return miss_reason_; }
  absl::StatusOr<uint64_t> WaitLayer(uint32_t, absl::Duration) override { return token_count_; }
  absl::Status ReadPage(size_t span, uint32_t layer, std::span<std::byte> destination) override {
    TK_RETURN_IF_ERROR(VerifyPage(span, layer));
    const auto page = Page(span, layer);
    if (page.size() != destination.size()) return InvalidArgument("destination size");
    std::memcpy(destination.data(), page.data(), page.size());
    return absl::OkStatus();
  }
  std::span<const std::byte> Page(size_t span, uint32_t layer) override {
    return ChunkOf(span).pages[layer];
  }
  absl::Status VerifyPage(size_t span, uint32_t layer) override {
    const MemoryKvStore::Chunk& chunk = ChunkOf(span);
    const Digest digest =
        ComputeDigest({.chunk = chunk.header.id, .layer = layer}, chunk.pages[layer]);
    return digest == chunk.header.layer_digests[layer]
               ? absl::OkStatus()
               : DataLoss("read chunk {}: digest of layer {}", chunk.header.id.ShortHex(), layer);
  }
  absl::StatusOr<ChunkHeader> Header(size_t span) override { return ChunkOf(span).header; }

 private:
  const MemoryKvStore::Chunk& ChunkOf(size_t span) const {
    return store_->chunks.at(session_.view[span].chunk);
  }

  const MemoryKvStore* const store_;
  const MemoryKvStore::Session session_;
  std::vector<RestoredSpan> spans_;
  std::string miss_reason_;
  uint64_t token_count_ = 0;
};

TenantKey KeyOf(uint8_t byte) {
  TenantKey key;
  key.fill(byte);
  return key;
}

absl::Status NoSession(const std::string& name) { return NotFound("session \"{}\"", name); }

// The view [0, tokens) of `view`.
std::vector<ChunkSlice> FirstOf(const std::vector<ChunkSlice>& view, uint64_t tokens) {
  std::vector<ChunkSlice> result;
  for (ChunkSlice slice : view) {
    if (tokens == 0) break;
    slice.count = static_cast<uint32_t>(std::min<uint64_t>(slice.count, tokens));
    tokens -= slice.count;
    result.push_back(slice);
  }
  return result;
}

// The view from token `tokens` on.
std::vector<ChunkSlice> AfterOf(const std::vector<ChunkSlice>& view, uint64_t tokens) {
  std::vector<ChunkSlice> result;
  for (ChunkSlice slice : view) {
    const uint32_t cut = static_cast<uint32_t>(std::min<uint64_t>(slice.count, tokens));
    tokens -= cut;
    slice.first += cut;
    slice.count -= cut;
    if (slice.count > 0) result.push_back(slice);
  }
  return result;
}

}  // namespace

MemoryKvStore::MemoryKvStore(uint8_t key_byte) : hasher_(KeyOf(key_byte)) {}

std::vector<uint32_t> MemoryKvStore::TokensOf(const std::string& session) const {
  std::vector<uint32_t> tokens;
  for (const ChunkSlice& slice : sessions.at(session).view) {
    const auto& ids = chunks.at(slice.chunk).header.tokens;
    tokens.insert(tokens.end(), ids.begin() + slice.first, ids.begin() + slice.first + slice.count);
  }
  return tokens;
}

absl::StatusOr<Fingerprint> MemoryKvStore::RegisterLayout(const KvLayout& layout) {
  TK_RETURN_IF_ERROR(ValidateLayout(layout));
  const Fingerprint fingerprint = FingerprintOf(layout);
  layouts_[fingerprint] = layout;
  return fingerprint;
}

absl::StatusOr<KvLayout> MemoryKvStore::GetLayout(const Fingerprint& fingerprint) {
  const auto found = layouts_.find(fingerprint);
  if (found == layouts_.end()) return NotFound("layout {}", fingerprint.ShortHex());
  return found->second;
}

absl::StatusOr<std::unique_ptr<SaveTicket>> MemoryKvStore::BeginSave(const SaveRequest& request) {
  TK_ASSIGN_OR_RETURN(const KvLayout layout, GetLayout(request.layout));
  Session target{.layout = request.layout, .generation = request.expected_generation + 1};
  std::vector<Chunk> list;
  ChunkId parent = hasher_.Root(request.layout);
  uint64_t begin = 0;
  const auto old = sessions.find(request.session);
  if (old != sessions.end() && old->second.truncated) {  // the prompt extends the view
    target.truncated = true;
    target.view = old->second.view;
    for (const ChunkSlice& slice : target.view) begin += slice.count;
    parent = hasher_.View(request.layout, target.view);
  }
  for (size_t index = 0; begin < request.prompt.token_count(); ++index) {
    const uint32_t count = static_cast<uint32_t>(
        std::min<uint64_t>(layout.chunk_tokens, request.prompt.token_count() - begin));
    Chunk chunk;
    chunk.header = {.parent = parent,
                    .fingerprint = request.layout,
                    .token_count = count,
                    .position_base = begin + static_cast<uint64_t>(request.position_offset)};
    if (request.prompt.hashed()) {
      chunk.header.block_hash = request.prompt.block_hashes[index];
      chunk.header.id = hasher_.Block(parent, request.layout, chunk.header.block_hash, count);
    } else {
      const auto tokens = request.prompt.tokens.subspan(begin, count);
      chunk.header.tokens.assign(tokens.begin(), tokens.end());
      chunk.header.id = hasher_.Tokens(parent, request.layout, tokens);
    }
    parent = chunk.header.id;
    target.view.push_back({.chunk = parent, .first = 0, .count = count});
    list.push_back(std::move(chunk));
    begin += count;
  }
  return std::make_unique<MemorySave>(this, request.session, target, layout, std::move(list));
}

absl::StatusOr<std::unique_ptr<RestoreTicket>> MemoryKvStore::BeginRestore(
    const RestoreRequest& request) {
  const auto found = sessions.find(request.session);
  return std::make_unique<MemoryRestore>(this, found == sessions.end() ? Session{} : found->second);
}

absl::StatusOr<std::unique_ptr<SaveTicket>> MemoryKvStore::BeginImport(
    const ImportRequest& request) {
  TK_ASSIGN_OR_RETURN(const KvLayout layout, GetLayout(request.layout));
  if (sessions.contains(request.session)) {
    return AlreadyExists("import session \"{}\": it exists", request.session);
  }
  std::map<ChunkId, ChunkId> local;
  std::vector<Chunk> list;
  for (const ImportedChunk& imported : request.chunks) {
    const auto parent = local.find(imported.foreign_parent);
    Chunk chunk;
    chunk.header = {.parent = imported.parent_is_root ? hasher_.Root(request.layout)
                              : parent != local.end() ? parent->second
                                                      : hasher_.Foreign(imported.foreign_parent),
                    .fingerprint = request.layout,
                    .token_count = imported.token_count,
                    .position_base = imported.position_base,
                    .tokens = imported.tokens,
                    .block_hash = imported.block_hash};
    chunk.header.id = imported.block_hash.empty()
                          ? hasher_.Tokens(chunk.header.parent, request.layout, imported.tokens)
                          : hasher_.Block(chunk.header.parent, request.layout, imported.block_hash,
                                          imported.token_count);
    local[imported.foreign_id] = chunk.header.id;
    list.push_back(std::move(chunk));
  }
  Session target{.layout = request.layout};
  for (const ImportRequest::Slice& slice : request.slices) {
    target.view.push_back(
        {.chunk = list[slice.chunk_index].header.id, .first = slice.first, .count = slice.count});
  }
  target.truncated =
      !request.chunks.front().parent_is_root || request.slices.size() != request.chunks.size();
  return std::make_unique<MemorySave>(this, request.session, target, layout, std::move(list));
}

absl::StatusOr<SessionInfo> MemoryKvStore::ForkSession(const ForkRequest& request) {
  const auto found = sessions.find(request.source);
  if (found == sessions.end()) return NoSession(request.source);
  if (sessions.contains(request.target)) return AlreadyExists("session \"{}\"", request.target);
  Session copy = found->second;
  copy.view = FirstOf(copy.view, request.token_count.value_or(UINT64_MAX));
  sessions[request.target] = copy;
  return StatSession(request.target);
}

absl::StatusOr<SessionInfo> MemoryKvStore::TruncateSession(const TruncateRequest& request) {
  const auto found = sessions.find(request.session);
  if (found == sessions.end()) return NoSession(request.session);
  Session& session = found->second;
  if (request.expected_generation != 0 && request.expected_generation != session.generation) {
    return FailedPrecondition("truncate session \"{}\": generation is {}, not {}", request.session,
                              session.generation, request.expected_generation);
  }
  auto view = FirstOf(session.view, request.drop_begin);
  const auto rest = AfterOf(session.view, request.drop_end);
  view.insert(view.end(), rest.begin(), rest.end());
  session.view = view;
  session.truncated = true;
  ++session.generation;
  return StatSession(request.session);
}

absl::StatusOr<SessionInfo> MemoryKvStore::RenameSession(const std::string& from,
                                                         const std::string& to) {
  if (!sessions.contains(from)) return NoSession(from);
  if (sessions.contains(to)) return AlreadyExists("session \"{}\"", to);
  sessions[to] = sessions[from];
  sessions.erase(from);
  return StatSession(to);
}

absl::Status MemoryKvStore::DropSession(const std::string& name) {
  return sessions.erase(name) > 0 ? absl::OkStatus() : NoSession(name);
}

absl::StatusOr<SessionInfo> MemoryKvStore::PinSession(const std::string& name) {
  if (!sessions.contains(name)) return NoSession(name);
  sessions[name].pinned = true;
  return StatSession(name);
}

absl::StatusOr<SessionInfo> MemoryKvStore::UnpinSession(const std::string& name) {
  if (!sessions.contains(name)) return NoSession(name);
  sessions[name].pinned = false;
  return StatSession(name);
}

absl::StatusOr<SessionInfo> MemoryKvStore::SetSessionTtl(const std::string& name,
                                                         absl::Duration ttl) {
  if (!sessions.contains(name)) return NoSession(name);
  sessions[name].expires_unix_s =
      ttl == absl::InfiniteDuration() ? 0 : kNowUnixS + absl::ToInt64Seconds(ttl);
  return StatSession(name);
}

absl::StatusOr<std::vector<SessionInfo>> MemoryKvStore::ListSessions(const ListRequest& request) {
  std::vector<SessionInfo> result;
  for (const auto& [name, session] : sessions) {
    if (result.size() == request.limit) break;
    if (!name.starts_with(request.name_prefix) || name <= request.after) continue;
    TK_ASSIGN_OR_RETURN(result.emplace_back(), StatSession(name));
  }
  return result;
}

absl::StatusOr<SessionInfo> MemoryKvStore::StatSession(const std::string& name) {
  TK_ASSIGN_OR_RETURN(const SessionDetail detail, ShowSession(name));
  return detail.info;
}

absl::StatusOr<SessionDetail> MemoryKvStore::ShowSession(const std::string& name) {
  const auto found = sessions.find(name);
  if (found == sessions.end()) return NoSession(name);
  const Session& session = found->second;
  const KvLayout& layout = layouts_.at(session.layout);
  SessionDetail detail{.root = hasher_.Root(session.layout)};
  detail.info = {.name = name,
                 .generation = session.generation,
                 .layout = session.layout,
                 .model = layout.model,
                 .created_unix_s = kNowUnixS,
                 .last_used_unix_s = kNowUnixS,
                 .expires_unix_s = session.expires_unix_s,
                 .pinned = session.pinned,
                 .truncated = session.truncated};
  bool whole = true;
  for (const ChunkSlice& slice : session.view) {
    SessionSpan span{.token_begin = detail.info.token_count,
                     .token_count = slice.count,
                     .first_in_chunk = slice.first,
                     .chunk = slice.chunk};
    const auto chunk = chunks.find(slice.chunk);
    if (chunk != chunks.end()) {
      span.chunk_token_count = chunk->second.header.token_count;
      span.stored_position = chunk->second.header.position_base + slice.first;
      span.slot_bytes = GeometryOf(layout, span.chunk_token_count).slot_bytes;
      span.in_host = true;
      detail.info.host_bytes += span.slot_bytes;
      for (const auto& page : chunk->second.pages) detail.info.kv_bytes += page.size();
    } else {
      span.missing_reason = "evicted";
      whole = false;
    }
    for (const GpuChunk& held : gpu) {
      if (held.chunk != slice.chunk) continue;
      span.gpu_engines = 1;
      detail.info.gpu_bytes += held.bytes;
    }
    for (const auto& [other, value] : sessions) {
      span.session_count += std::any_of(value.view.begin(), value.view.end(),
                                        [&](const auto& s) { return s.chunk == slice.chunk; });
    }
    detail.info.shared_chunks += span.session_count > 1;
    detail.info.token_count += slice.count;
    if (whole) detail.info.restorable_tokens += slice.count;
    ++detail.info.chunk_count;
    detail.spans.push_back(span);
  }
  return detail;
}

absl::StatusOr<Explanation> MemoryKvStore::Explain(const ExplainRequest& request) {
  last_explain = request;
  last_explain_tokens.assign(request.prompt.tokens.begin(), request.prompt.tokens.end());
  last_explain.prompt = {};
  return explanation;
}

absl::StatusOr<std::vector<TreeNode>> MemoryKvStore::Tree(const TreeRequest&) { return tree; }

absl::StatusOr<VerifyReport> MemoryKvStore::Verify(
    const VerifyRequest&, const std::function<void(uint64_t, uint64_t)>& progress) {
  if (progress) progress(verify_report.bytes_checked, verify_report.bytes_checked);
  return verify_report;
}

absl::StatusOr<StoreStatus> MemoryKvStore::Status() { return status; }

absl::StatusOr<CommitResult> SaveTokens(KvStore& store, const std::string& session,
                                        const Fingerprint& layout,
                                        const std::vector<uint32_t>& tokens,
                                        uint64_t expected_generation) {
  TK_ASSIGN_OR_RETURN(const KvLayout spec, store.GetLayout(layout));
  TK_ASSIGN_OR_RETURN(auto save, store.BeginSave({.session = session,
                                                  .expected_generation = expected_generation,
                                                  .layout = layout,
                                                  .prompt = {.tokens = tokens}}));
  for (uint32_t layer = 0; layer < spec.layers.size(); ++layer) {
    for (size_t i = 0; i < save->chunks().size(); ++i) {
      uint32_t state = tokens[save->chunks()[i].token_begin] * 2654435761u + layer * 97u + 1;
      for (std::byte& byte : save->Page(i, layer)) {
        state = state * 1664525u + 1013904223u;
        byte = static_cast<std::byte>(state >> 24);
      }
    }
    TK_RETURN_IF_ERROR(save->FinishLayer(layer));
  }
  return save->Commit(absl::Seconds(5));
}

KvLayout SmallLayout(const std::string& model, uint32_t layers) {
  KvLayout layout{.model = model, .weights_revision = "1", .chunk_tokens = 16};
  layout.layers.assign(layers, LayerSpec::Full(2, 4, DType::kFloat32));
  return layout;
}

}  // namespace turnkeep::testing
