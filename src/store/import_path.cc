// An import: a save whose chunks come from a session file with identities of another store
// (or of this one). Slots, seal and commit are those of save_path.cc.

#include <utility>

#include <absl/container/flat_hash_map.h>

#include "core/status.h"
#include "store/save_task.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

namespace {

// A view that grew here has a slice for each chunk and one more for each cut.
constexpr size_t kMaxSlices = 2 * kMaxSessionTokens / kMinChunkTokens;

absl::Status CheckImport(const ImportRequest& request, const KvLayout& layout) {
  const auto bad = [&](size_t i, const std::string& what) {
    return InvalidArgument("import '{}': chunks[{}]: {}", request.session, i, what);
  };
  if (request.chunks.empty())
    return InvalidArgument("import '{}': chunks is empty", request.session);
  for (size_t i = 0; i < request.chunks.size(); ++i) {
    const ImportedChunk& chunk = request.chunks[i];
    if (chunk.token_count == 0 || chunk.token_count > layout.chunk_tokens) {
      return bad(i, fmt::format("token_count {} is outside 1..{}", chunk.token_count,
                                layout.chunk_tokens));
    }
    if (chunk.block_hash.empty() ? chunk.tokens.size() != chunk.token_count
                                 : !chunk.tokens.empty()) {
      return bad(i, fmt::format("{} tokens do not fit token_count {}", chunk.tokens.size(),
                                chunk.token_count));
    }
    if (chunk.block_hash.size() > kMaxBlockHashBytes) {
      return bad(i, fmt::format("block_hash has {} bytes, at most {}", chunk.block_hash.size(),
                                kMaxBlockHashBytes));
    }
    if (chunk.position_base >= (uint64_t{1} << 32)) {
      return bad(i, fmt::format("position_base {} is above 2^32", chunk.position_base));
    }
  }
  if (request.slices.size() > kMaxSlices) {
    return InvalidArgument("import '{}': {} slices, the limit is {}", request.session,
                           request.slices.size(), kMaxSlices);
  }
  uint64_t tokens = 0;
  for (size_t i = 0; i < request.slices.size(); ++i) {
    const auto& slice = request.slices[i];
    if (slice.chunk_index >= request.chunks.size() || slice.count == 0 ||
        uint64_t{slice.first} + slice.count > request.chunks[slice.chunk_index].token_count) {
      return InvalidArgument("import '{}': slices[{}] = chunk {} [{}, +{}) is outside its chunk",
                             request.session, i, slice.chunk_index, slice.first, slice.count);
    }
    tokens += slice.count;
  }
  if (tokens > kMaxSessionTokens) {
    return InvalidArgument("import '{}': {} tokens, the limit is {}", request.session, tokens,
                           kMaxSessionTokens);
  }
  return absl::OkStatus();
}

}  // namespace

void StoreImpl::BeginImport(TenantNumber tenant_number, const ImportRequest& request,
                            SaveDone done) {
  std::unique_ptr<SaveTask> task;
  const absl::Status planned = [&]() -> absl::Status {
    TK_RETURN_IF_ERROR(ValidateName("session", request.session));
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    TK_ASSIGN_OR_RETURN(const Tenant* tenant, TenantOf(tenant_number));
    TK_ASSIGN_OR_RETURN(const LayoutInfo* layout, LayoutOf(request.layout));
    TK_RETURN_IF_ERROR(CheckImport(request, layout->layout));
    if (state_.sessions.Find(static_cast<uint16_t>(tenant_number), request.session) != nullptr) {
      return AlreadyExists("import '{}': the session exists", request.session);
    }
    task = std::make_unique<SaveTask>(this, tenant, layout, request.session);
    return task->PlanImport(request);
  }();
  if (!planned.ok()) {
    task.reset();
    return done(planned);
  }
  StartSave(std::move(task), absl::Seconds(10), std::move(done));
}

// Gives every chunk its local identity: the chain from this tenant's root where the file has
// one, from a foreign parent's local name where its beginning was truncated away.
absl::Status SaveTask::PlanImport(const ImportRequest& request) {
  StoreState& state = store_->state_;
  state.mu.AssertHeld();
  all_or_nothing_ = true;
  TK_RETURN_IF_ERROR(CheckGeneration());
  const ChunkHasher& hasher = tenant_->hasher;
  const Fingerprint& fingerprint = layout_->fingerprint;
  absl::flat_hash_map<ChunkId, ChunkIndex> local;  // by foreign id
  uint64_t at = 0;
  for (size_t i = 0; i < request.chunks.size(); ++i) {
    const ImportedChunk& from = request.chunks[i];
    // Before anything is entered in the catalog for it: nobody would take that out again.
    if (local.contains(from.foreign_id)) {
      return InvalidArgument("import '{}': chunks[{}] repeats id {}", session_, i,
                             from.foreign_id.ShortHex());
    }
    const auto known_parent = local.find(from.foreign_parent);
    ChunkIndex parent = kNoChunk;
    if (!from.parent_is_root && known_parent != local.end()) {
      parent = known_parent->second;
    } else {
      const ChunkId id =
          from.parent_is_root ? hasher.Root(fingerprint) : hasher.Foreign(from.foreign_parent);
      parent = state.catalog.FindOrCreate(id, kNoChunk, tenant_->number, layout_->number, 0);
    }
    const ChunkId parent_id = state.catalog[parent].id;
    const ChunkId id = from.block_hash.empty() ? hasher.Tokens(parent_id, fingerprint, from.tokens)
                                               : hasher.Block(parent_id, fingerprint,
                                                              from.block_hash, from.token_count);
    const ChunkIndex chunk =
        state.catalog.FindOrCreate(id, parent, tenant_->number, layout_->number, from.token_count);
    local.emplace(from.foreign_id, chunk);
    const ChunkEntry& entry = state.catalog[chunk];
    if (new_chunks_.empty() && entry.HasData() && entry.session_refs > 0) {
      held_.push_back(chunk);
      state.AddOperationRef(chunk);
      state.Notify(Kind::kHeld, chunk);
      known_tokens_ += from.token_count;
    } else {
      AddNewChunk(chunk, at, from.position_base, from.tokens, from.block_hash);
    }
    at += from.token_count;
  }
  for (const ImportRequest::Slice& slice : request.slices) {
    view_.push_back({local.at(request.chunks[slice.chunk_index].foreign_id),
                     static_cast<uint16_t>(slice.first), static_cast<uint16_t>(slice.count)});
    accepted_tokens_ += slice.count;
  }
  prompt_tokens_ = accepted_tokens_;
  return absl::OkStatus();
}

}  // namespace turnkeep
