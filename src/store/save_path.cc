// A save: plan, slots, (the engine fills them,) seal, publish, persist.
// Read restore_path.cc beside it: match, pins, (the engine waits,) load, release.

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/slot_access.h"
#include "core/status.h"
#include "core/units.h"
#include "store/save_task.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

// ---- the path --------------------------------------------------------------------

void StoreImpl::BeginSave(TenantNumber tenant_number, const SaveRequest& request, SaveDone done) {
  std::unique_ptr<SaveTask> task;
  const absl::Status planned = [&]() -> absl::Status {
    TK_RETURN_IF_ERROR(ValidateName("session", request.session));
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    TK_ASSIGN_OR_RETURN(const Tenant* tenant, TenantOf(tenant_number));
    TK_ASSIGN_OR_RETURN(const LayoutInfo* layout, LayoutOf(request.layout));
    TK_RETURN_IF_ERROR(CheckPrompt(request.prompt, layout->layout));
    task = std::make_unique<SaveTask>(this, tenant, layout, request.session);
    return task->Plan(request);
  }();
  if (!planned.ok()) {
    task.reset();
    return done(planned);
  }
  StartSave(std::move(task), request.space_deadline, std::move(done));
}

void StoreImpl::StartSave(std::unique_ptr<SaveTask> task, absl::Duration space_deadline,
                          SaveDone done) {
  absl::Status status;
  {
    absl::MutexLock lock(&state_.mu);
    ++state_.counters.saves_begun;
    if (!task->TakeSlots()) {
      const bool may_wait = space_deadline > absl::ZeroDuration() &&
                            state_.placement.RoomIsComing() &&
                            waiting_saves_.size() < kMaxWaitingSaves;
      if (may_wait) {
        const int64_t deadline_ns =
            state_.NowNs() + absl::ToInt64Nanoseconds(std::min(space_deadline, absl::Hours(1)));
        waiting_saves_.push_back({std::move(task), deadline_ns, std::move(done)});
      } else {
        status = task->CutToSlots();
      }
    }
    writer_->WakeForWork();
  }
  if (task == nullptr) return;  // it waits; RetryWaitingSaves goes on with it
  if (!status.ok()) {
    task.reset();
    return done(status);
  }
  done(std::unique_ptr<SaveOperation>(std::move(task)));
}

void SaveTask::Commit(std::function<void(absl::StatusOr<CommitResult>)> done) {
  SealHeaders();
  CommitResult result;
  absl::Status status;
  {
    StoreState& state = store_->state_;
    absl::MutexLock lock(&state.mu);
    store_->state_.mu.AssertHeld();  // the same, for the analysis
    size_t first_changed_span = 0;
    status = Publish(&result, &first_changed_span);
    Release();
    if (status.ok()) {
      Session* session = state.sessions.Find(tenant_->number, session_);
      const bool wait = state.options.durability != Durability::kNone && state.has_disk();
      auto persisted = [result, done, wait, &state,
                        begun_ns = begun_ns_](const PersistResult& persist) mutable {
        state.save_latency.RecordNs(state.NowNs() - begun_ns);
        if (!wait) return;
        result.durable = persist.index.ok() && persist.shortfall.empty();
        result.note = persist.index.ok() ? persist.shortfall : MessageOf(persist.index);
        done(result);
      };
      store_->PersistSession(session, first_changed_span, std::move(persisted));
      if (wait) done = nullptr;
    }
    store_->writer_->WakeForWork();
  }
  if (!status.ok()) return done(status);
  if (done) done(result);
}

// ---- plan ------------------------------------------------------------------------

SaveTask::SaveTask(StoreImpl* store, const Tenant* tenant, const LayoutInfo* layout,
                   std::string session)
    : store_(store), tenant_(tenant), layout_(layout), session_(std::move(session)) {
  store_->state_.mu.AssertHeld();
  ++store_->state_.open_tickets;
  begun_ns_ = store_->state_.NowNs();
}

SaveTask::~SaveTask() {
  absl::MutexLock lock(&store_->state_.mu);
  if (!released_) Release();
  --store_->state_.open_tickets;
  store_->writer_->WakeForWork();
}

absl::Status SaveTask::CheckGeneration() {
  store_->state_.mu.AssertHeld();
  const Session* session = store_->state_.sessions.Find(tenant_->number, session_);
  const uint64_t stored = session == nullptr ? 0 : session->generation;
  if (stored == expected_generation_) return absl::OkStatus();
  ++store_->state_.counters.saves_refused_generation;
  if (session == nullptr) {
    return FailedPrecondition(
        "save '{}': the writer expects generation {}, but there is no such session", session_,
        expected_generation_);
  }
  return FailedPrecondition("save '{}': the writer expects generation {}, the session is at {}",
                            session_, expected_generation_, stored);
}

absl::Status SaveTask::Plan(const SaveRequest& request) {
  store_->state_.mu.AssertHeld();
  expected_generation_ = request.expected_generation;
  ttl_ = request.ttl;
  prompt_tokens_ = accepted_tokens_ = request.prompt.token_count();
  TK_RETURN_IF_ERROR(CheckGeneration());
  if (request.position_offset < 0 || request.position_offset > (int64_t{1} << 31)) {
    return InvalidArgument("position_offset {} is outside 0..2^31", request.position_offset);
  }
  TK_ASSIGN_OR_RETURN(const KeptPrefix kept, PrefixToKeep(request.prompt));
  for (const Span& span : kept.spans) {
    KeepSpan(span);
    known_tokens_ += span.count;
  }
  const absl::Status status = PlanRest(request, kept.binding);
  TellTurnBegins();
  return status;
}

void SaveTask::TellTurnBegins() {
  store_->state_.mu.AssertHeld();
  turn_ = {
      .number = static_cast<uint32_t>(std::min<uint64_t>(expected_generation_ + 1, UINT32_MAX)),
      .context_tokens = prompt_tokens_,
      .new_tokens = prompt_tokens_ - known_tokens_};
  TurnInfo begins = turn_;
  begins.is_use = begins.running = begins.goes_on = true;
  const std::vector<ChunkIndex> held(held_.rbegin(), held_.rend());
  store_->state_.NotifyTurn(begins, held, /*tail=*/false);
}

void SaveTask::TellTurnEnded() {
  StoreState& state = store_->state_;
  state.mu.AssertHeld();
  if (turn_.number == 0) return;
  std::vector<ChunkIndex> chunks(held_.rbegin(), held_.rend());
  bool tail = false;
  if (published_) {
    Session* session = state.sessions.Find(tenant_->number, session_);
    session->last_turn = turn_;
    chunks.clear();
    for (size_t i = session->spans.size(); i-- > 0;) chunks.push_back(session->spans[i].chunk);
    tail =
        !chunks.empty() && state.catalog[chunks.front()].token_count < layout_->layout.chunk_tokens;
  }
  state.NotifyTurn(turn_, chunks, tail);
}

// What the session's own view has of the prompt: whole spans with data, without a tail that
// more tokens follow, since that is saved again, longer.
absl::StatusOr<SaveTask::KeptPrefix> SaveTask::PrefixToKeep(const Prompt& prompt) {
  StoreState& state = store_->state_;
  state.mu.AssertHeld();
  store_->state_.mu.AssertHeld();  // the same, for the analysis
  KeptPrefix kept;
  kept.binding = tenant_->hasher.Root(layout_->fingerprint);
  const Session* session = state.sessions.Find(tenant_->number, session_);
  if (session == nullptr || session->layout != layout_->number) return kept;
  const PromptMatch match = store_->MatchWithHeaders([&](const HeaderTokens& headers) {
    state.mu.AssertHeld();
    const Session* now = state.sessions.Find(tenant_->number, session_);
    if (now == nullptr) return PromptMatch{};
    return PromptMatcher(&state, tenant_, layout_, prompt, &headers).AlongSession(*now);
  });
  TK_RETURN_IF_ERROR(CheckGeneration());  // the lock may have been given up
  std::vector<Span>& spans = kept.spans;
  uint64_t tokens = 0;
  for (size_t i = 0; i < match.whole_spans && state.catalog[match.spans[i].chunk].HasData(); ++i) {
    spans.push_back(match.spans[i]);
    tokens += spans.back().count;
  }
  if (!spans.empty() && tokens < prompt.token_count()) {
    const Span& last = spans.back();
    const bool whole_tail = last.first == 0 &&
                            last.count == state.catalog[last.chunk].token_count &&
                            last.count < layout_->layout.chunk_tokens;
    if (whole_tail) spans.pop_back();
  }
  const Span* next = spans.size() < match.spans.size() ? &match.spans[spans.size()] : nullptr;
  kept.binding = AppendBindingOf(state, *tenant_, *layout_, spans, next);
  return kept;
}

// What follows the kept spans, chunk by chunk: known ones are kept too, and from the first
// unknown one on the engine provides.
absl::Status SaveTask::PlanRest(const SaveRequest& request, const ChunkId& binding) {
  StoreState& state = store_->state_;
  state.mu.AssertHeld();
  const Prompt& prompt = request.prompt;
  const uint32_t chunk_tokens = layout_->layout.chunk_tokens;
  const PromptMatcher matcher(&state, tenant_, layout_, prompt, nullptr);
  ChunkId parent_id = binding;
  ChunkIndex parent =
      state.catalog.FindOrCreate(parent_id, kNoChunk, tenant_->number, layout_->number, 0);
  state.AddOperationRef(parent);
  parent_ref_ = parent;
  for (uint64_t at = known_tokens_; at < prompt.token_count();) {
    const auto count =
        static_cast<uint32_t>(std::min<uint64_t>(chunk_tokens, prompt.token_count() - at));
    const auto id = matcher.IdAt(parent_id, at, count);
    if (!id.has_value()) {
      return InvalidArgument(
          "save '{}': block_hashes do not fit the session's view at token {}; save it under tokens "
          "or anew",
          session_, at);
    }
    const ChunkIndex chunk =
        state.catalog.FindOrCreate(*id, parent, tenant_->number, layout_->number, count);
    const ChunkEntry& entry = state.catalog[chunk];
    if (new_chunks_.empty() && entry.HasData() && entry.session_refs > 0) {
      KeepSpan({chunk, 0, static_cast<uint16_t>(count)});
      known_tokens_ += count;
    } else {
      view_.push_back({chunk, 0, static_cast<uint16_t>(count)});
      const uint64_t position = at + static_cast<uint64_t>(request.position_offset);
      if (prompt.hashed()) {
        AddNewChunk(chunk, at, position, {}, prompt.block_hashes[at / chunk_tokens]);
      } else {
        const auto tokens = prompt.tokens.subspan(at, count);
        AddNewChunk(chunk, at, position, {tokens.begin(), tokens.end()}, {});
      }
    }
    parent = chunk;
    parent_id = *id;
    at += count;
  }
  return absl::OkStatus();
}

void SaveTask::KeepSpan(const Span& span) {
  store_->state_.mu.AssertHeld();
  view_.push_back(span);
  held_.push_back(span.chunk);
  store_->state_.AddOperationRef(span.chunk);
  store_->state_.Notify(Kind::kHeld, span.chunk);
}

void SaveTask::AddNewChunk(ChunkIndex chunk, uint64_t token_begin, uint64_t position_base,
                           std::vector<uint32_t> tokens, BlockHash hash) {
  StoreState& state = store_->state_;
  state.mu.AssertHeld();
  const ChunkEntry& entry = state.catalog[chunk];
  state.AddOperationRef(chunk);
  NewChunk added;
  added.chunk = chunk;
  added.header.id = entry.id;
  added.header.parent = state.catalog[entry.parent].id;
  added.header.fingerprint = layout_->fingerprint;
  added.header.token_count = entry.token_count;
  added.header.position_base = position_base;
  added.header.tokens = std::move(tokens);
  added.header.block_hash = std::move(hash);
  new_chunks_.push_back(std::move(added));
  chunks_.push_back(
      {.token_begin = token_begin, .token_count = entry.token_count, .chunk = entry.id});
}

// ---- slots -----------------------------------------------------------------------

bool SaveTask::TakeSlots() {
  StoreState& state = store_->state_;
  state.mu.AssertHeld();
  while (slots_.size() < new_chunks_.size()) {
    NewChunk& added = new_chunks_[slots_.size()];
    const uint64_t slot_bytes = layout_->Geometry(added.header.token_count).slot_bytes;
    const absl::StatusOr<SlotRef> slot = state.AllocateSlot(tenant_->number, slot_bytes);
    if (!slot.ok()) return false;
    added.header.epoch = state.next_epoch++;
    slots_.push_back({.id = added.header.id,
                      .epoch = added.header.epoch,
                      .slot = *slot,
                      .memory = state.arena->Memory(*slot),
                      .token_count = added.header.token_count,
                      .geometry = &layout_->Geometry(added.header.token_count)});
  }
  return true;
}

absl::Status SaveTask::CutToSlots() {
  StoreState& state = store_->state_;
  state.mu.AssertHeld();
  const size_t kept = slots_.size();
  const size_t lost = new_chunks_.size() - kept;
  const uint64_t accepted = chunks_[kept].token_begin;
  if (all_or_nothing_ || accepted == 0) {
    return ResourceExhausted(
        "save '{}': no room in the host tier for {} tokens: {} of {} bytes in use, {} of them "
        "pinned or leaving",
        session_, prompt_tokens_, state.placement.host().used_bytes,
        state.placement.host().capacity_bytes,
        state.placement.host().pinned_bytes + state.placement.host().leaving_bytes);
  }
  for (size_t i = kept; i < new_chunks_.size(); ++i) state.DropOperationRef(new_chunks_[i].chunk);
  new_chunks_.resize(kept);
  chunks_.resize(kept);
  view_.resize(view_.size() - lost);
  accepted_tokens_ = accepted;
  ++state.counters.saves_cut_short;
  return absl::OkStatus();
}

void StoreImpl::RetryWaitingSaves(std::vector<WaitingSave>* finished) {
  for (size_t i = waiting_saves_.size(); i > 0; --i) {
    WaitingSave waiting = std::move(waiting_saves_.front());
    waiting_saves_.pop_front();
    // Trying may itself start writes that make room, so it comes first.
    const bool all = waiting.task->TakeSlots();
    if (all || state_.closing || state_.NowNs() >= waiting.deadline_ns ||
        !state_.placement.RoomIsComing()) {
      finished->push_back(std::move(waiting));
    } else {
      waiting_saves_.push_back(std::move(waiting));
    }
  }
}

// ---- seal and publish ------------------------------------------------------------

void SaveTask::SealHeaders() {
  const size_t layers = layout_->layout.layers.size();
  for (size_t i = 0; i < slots_.size(); ++i) {
    ChunkHeader& header = new_chunks_[i].header;
    header.created_unix_s = store_->state_.UnixSeconds();
    header.layer_digests.resize(layers);
    std::memcpy(header.layer_digests.data(), slots_[i].memory.data() + kLayerDigestOffset,
                layers * sizeof(Digest));
    slots_[i].root = EncodeChunkHeader(header, slots_[i].memory);
  }
}

absl::Status SaveTask::Publish(CommitResult* result, size_t* first_changed_span) {
  StoreState& state = store_->state_;
  state.mu.AssertHeld();
  store_->state_.mu.AssertHeld();  // the same, for the analysis
  TK_RETURN_IF_ERROR(store_->CheckOpen());
  TK_CHECK(!released_);
  TK_RETURN_IF_ERROR(CheckGeneration());
  if (slots_.size() < new_chunks_.size()) {
    return FailedPrecondition("save '{}': commit before every chunk has its slot", session_);
  }
  Session* session = state.sessions.Find(tenant_->number, session_);
  if (session == nullptr) {
    if (state.sessions.size() >= state.options.max_sessions) {
      return ResourceExhausted("save '{}': max_sessions = {} is reached", session_,
                               state.options.max_sessions);
    }
    session = store_->CreateSession(tenant_->number, session_, *layout_);
  }
  for (size_t i = 0; i < new_chunks_.size(); ++i) {
    const NewChunk& added = new_chunks_[i];
    ChunkEntry& entry = state.catalog[added.chunk];
    const uint64_t slot_bytes = layout_->Geometry(added.header.token_count).slot_bytes;
    if (entry.HasData() || !entry.host.is_null()) {  // another save published it first
      state.ReleaseSlot(slots_[i].slot, slot_bytes);
      continue;
    }
    entry.root = slots_[i].root;
    entry.epoch = added.header.epoch;
    entry.position_base = static_cast<uint32_t>(added.header.position_base);
    entry.created_unix_s = static_cast<uint32_t>(added.header.created_unix_s);
    entry.hashed = !added.header.block_hash.empty();
    entry.opening = OpeningOf(added.header.tokens);
    entry.slot_blocks = static_cast<uint32_t>(slot_bytes / kBlockBytes);
    state.FillHost(added.chunk, slots_[i].slot);
    ++result->new_chunks;
    result->new_bytes += layout_->Geometry(added.header.token_count).payload_bytes;
    state.counters.saved_tokens += added.header.token_count;
  }
  slots_.clear();  // theirs now
  state.counters.saved_bytes += result->new_bytes;
  ++state.counters.saves_committed;

  session->layout = layout_->number;
  session->last_used_unix_s = state.UnixSeconds();
  if (ttl_.has_value()) {
    session->ttl_s =
        *ttl_ == absl::InfiniteDuration() ? 0 : std::max<int64_t>(1, absl::ToInt64Seconds(*ttl_));
  }
  state.sessions.UpdateExpiry(session);
  const auto same =
      std::mismatch(session->spans.begin(), session->spans.end(), view_.begin(), view_.end());
  *first_changed_span = static_cast<size_t>(same.first - session->spans.begin());
  store_->SetView(session, std::move(view_), "replaced by a later save of its session");
  published_ = true;
  result->generation = session->generation;
  result->token_count = session->token_count;
  return absl::OkStatus();
}

void SaveTask::Release() {
  StoreState& state = store_->state_;
  state.mu.AssertHeld();
  released_ = true;
  TellTurnEnded();
  for (const ChunkSlot& slot : slots_) {
    state.ReleaseSlot(slot.slot, layout_->Geometry(slot.token_count).slot_bytes);
  }
  slots_.clear();
  for (const NewChunk& added : new_chunks_) state.DropOperationRef(added.chunk);
  for (const ChunkIndex chunk : held_) {
    state.Notify(Kind::kUnheld, chunk);
    state.DropOperationRef(chunk);
  }
  if (parent_ref_ != kNoChunk) state.DropOperationRef(parent_ref_);
  held_.clear();
  new_chunks_.clear();
  parent_ref_ = kNoChunk;
}

}  // namespace turnkeep
