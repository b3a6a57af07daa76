// A restore: match, pins, (the engine waits,) load, release.
// Read save_path.cc beside it: plan, slots, (the engine fills them,) seal, publish, persist.

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/slot_access.h"
#include "core/status.h"
#include "store/restore_task.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

// ---- the path --------------------------------------------------------------------

void StoreImpl::BeginRestore(TenantNumber tenant_number, const RestoreRequest& request,
                             RestoreDone done, std::function<bool()> abandoned) {
  if (request.held_chunks.size() > kMaxHeldChunks) {
    return done(InvalidArgument("restore: held_chunks has {}, more than {}",
                                request.held_chunks.size(), kMaxHeldChunks));
  }
  const HeldChunks held(request.held_chunks.begin(), request.held_chunks.end());
  std::shared_ptr<RestoreJob> job;
  bool waits = false;
  const absl::Status begun = [&]() -> absl::Status {
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    TK_ASSIGN_OR_RETURN(const Tenant* tenant, TenantOf(tenant_number));
    TK_ASSIGN_OR_RETURN(const LayoutInfo* layout, LayoutOf(request.layout));
    if (request.session.empty() && request.prompt.token_count() == 0) {
      return InvalidArgument("restore: neither session nor prompt is given");
    }
    if (request.prompt.token_count() > 0)
      TK_RETURN_IF_ERROR(CheckPrompt(request.prompt, layout->layout));
    if (request.max_tokens == 0) return InvalidArgument("restore: max_tokens is 0");
    ExpireSessions();

    job = std::make_shared<RestoreJob>(this, layout);
    job->begun_ns = state_.NowNs();
    job->max_tokens = request.max_tokens;
    job->prompt_tokens = request.prompt.token_count();
    PromptMatch match = MatchRequest(*tenant, *layout, request, &job->generation);
    ClipMatch(request.max_tokens, &match);
    const double spare_s = DeclineWhatDoesNotPay(*tenant, *layout, held, &match);
    TakeSpans(match, held, job.get());
    waits = !PlaceLoads(job, std::min(request.deadline, absl::Seconds(spare_s)), &done, &abandoned);
    ++state_.open_tickets;
    if (!waits) FinishBegin(job.get());
    writer_->WakeForWork();
    return absl::OkStatus();
  }();
  if (!begun.ok()) return done(begun);
  if (!waits) {  // else RetryWaitingRestores goes on with it
    PumpReads(job);
    done(std::make_unique<RestoreTask>(job));
  }
  // After the answer: the pins keep the chunks, and for 100,000 tokens this is a quarter of the
  // work.
  absl::MutexLock lock(&state_.mu);
  TouchSpans(job.get());
  FulfilExpectations(tenant_number, request.session, request.prompt, request.layout);
  writer_->WakeForWork();
}

RestoreTask::~RestoreTask() {
  StoreImpl* store = job_->store_;
  {
    absl::MutexLock lock(&store->state_.mu);
    store->ReleaseJob(job_.get());
    --store->state_.open_tickets;
    store->writer_->WakeForWork();
  }
}

// ---- match -----------------------------------------------------------------------

PromptMatch StoreImpl::MatchRequest(const Tenant& tenant, const LayoutInfo& layout,
                                    const RestoreRequest& request, uint64_t* generation) {
  const auto find = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu) -> Session* {
    return request.session.empty() ? nullptr : state_.sessions.Find(tenant.number, request.session);
  };
  Session* session = find();
  if (session != nullptr && session->layout != layout.number) {
    PromptMatch match;
    const auto differences =
        DiffLayouts(state_.registry.LayoutAt(session->layout)->layout, layout.layout, 1);
    match.stop_reason =
        fmt::format("the session was saved under another layout: {} is {} there and {} here",
                    differences[0].field, differences[0].left, differences[0].right);
    if (request.prompt.token_count() == 0) return match;
    session = nullptr;
  }
  if (session == nullptr && request.prompt.token_count() == 0) {
    PromptMatch match;
    match.stop_reason = fmt::format("there is no session '{}'", request.session);
    return match;
  }
  if (request.prompt.token_count() == 0) {
    PromptMatch match;
    match.spans = session->spans;
    match.token_count = session->token_count;
    Touch(session, generation);
    return match;
  }
  const bool by_session = session != nullptr;
  PromptMatch match = MatchWithHeaders([&](const HeaderTokens& headers) {
    state_.mu.AssertHeld();
    PromptMatcher matcher(&state_, &tenant, &layout, request.prompt, &headers);
    const Session* now = by_session ? find() : nullptr;
    return now != nullptr ? matcher.AlongSession(*now) : matcher.DownTree();
  });
  if (Session* now = by_session ? find() : nullptr; now != nullptr) Touch(now, generation);
  return match;
}

void StoreImpl::Touch(Session* session, uint64_t* generation) {
  session->last_used_unix_s = state_.UnixSeconds();
  *generation = session->generation;
}

void StoreImpl::ClipMatch(uint64_t max_tokens, PromptMatch* match) {
  if (match->token_count <= max_tokens) return;
  while (match->token_count > max_tokens) {
    Span& last = match->spans.back();
    const uint64_t excess = match->token_count - max_tokens;
    if (excess >= last.count) {
      match->token_count -= last.count;
      match->spans.pop_back();
    } else {
      last.count = static_cast<uint16_t>(last.count - excess);
      match->token_count = max_tokens;
    }
  }
  match->stop_reason = "max_tokens";
}

// ---- pins ------------------------------------------------------------------------

void StoreImpl::TakeSpans(const PromptMatch& match, const HeldChunks& held_chunks,
                          RestoreJob* job) {
  uint64_t at = 0;
  std::string reason = match.stop_reason;
  const ChunkGeometry& full = job->layout->Geometry(job->layout->layout.chunk_tokens);
  job->spans.reserve(match.spans.size());
  job->slots.reserve(match.spans.size());
  job->span_states.reserve(match.spans.size());
  std::vector<ChunkIndex> to_pin;
  to_pin.reserve(match.spans.size());
  for (const Span& span : match.spans) {
    const ChunkEntry& entry = state_.catalog[span.chunk];
    const bool held = !held_chunks.empty() && held_chunks.contains(entry.id);
    const bool in_host = entry.InHost() && !held;
    const bool on_disk = !entry.disk.IsNull() && entry.host.is_null();
    if (!held && !in_host && !on_disk) {
      reason = WhyMissing(entry);
      break;
    }
    state_.AddOperationRef(span.chunk);
    if (in_host) {
      to_pin.push_back(span.chunk);
    } else if (!held) {
      state_.Notify(Kind::kDiskPinned, span.chunk);  // until its load is started
    }
    job->spans.push_back({.token_begin = at,
                          .token_count = span.count,
                          .first_in_chunk = span.first,
                          .chunk_token_count = entry.token_count,
                          .stored_position = uint64_t{entry.position_base} + span.first,
                          .tier = held      ? Tier::kGpu
                                  : in_host ? Tier::kHost
                                            : Tier::kDisk});
    job->slots.push_back({.id = entry.id,
                          .epoch = entry.epoch,
                          .root = entry.root,
                          .slot = held ? SlotRef{} : entry.host,
                          .memory = in_host ? state_.HostImage(entry) : std::span<std::byte>{},
                          .token_count = entry.token_count,
                          .geometry = entry.token_count == full.token_count
                                          ? &full
                                          : &job->layout->Geometry(entry.token_count)});
    job->span_states.push_back({.chunk = span.chunk, .host_pinned = in_host, .held = held});
    at += span.count;
  }
  job->SetValidTokens(at, std::move(reason));
  state_.PinHost(to_pin);
}

// Once, and before the release lets go of the chunks: a quick engine may come to that first. From
// the last to the first, so that a prefix outlives what depends on it.
void StoreImpl::TouchSpans(RestoreJob* job) {
  if (std::exchange(job->touched, true)) return;
  std::vector<ChunkIndex> touched(job->span_states.size());
  for (size_t i = 0; i < touched.size(); ++i) {
    touched[touched.size() - 1 - i] = job->span_states[i].chunk;
  }
  if (touched.empty()) return;
  const auto& last = job->spans.back();
  const bool tail = last.chunk_token_count < job->layout->layout.chunk_tokens;
  const uint64_t context_tokens = std::max(job->prompt_tokens, last.token_begin + last.token_count);
  state_.NotifyTurn({.context_tokens = context_tokens, .is_use = true, .running = true}, touched,
                    tail);
}

// False: there is no room for the load of span next_span.
bool StoreImpl::StartLoads(const std::shared_ptr<RestoreJob>& job) {
  for (; job->next_span < job->spans.size(); ++job->next_span) {
    const size_t i = job->next_span;
    RestoreJob::SpanState& span = job->span_states[i];
    if (!span.settled()) Reexamine(job.get(), i);
    if (span.settled()) continue;
    if (job->spans[i].token_begin >= job->valid_tokens()) return true;
    std::shared_ptr<ChunkLoad> load = JoinOrStartLoad(span.chunk, job.get());
    if (load == nullptr) return false;
    state_.Notify(Kind::kDiskUnpinned, span.chunk);  // the load has a pin of its own
    span.load = load;
    job->slots[i].slot = load->target.slot;
    job->slots[i].memory = load->target.memory;
    load->waiters.push_back({job, i});
    job->ExpectLoad(*load);
  }
  return true;
}

// The restore is what has a place now.
void StoreImpl::FinishBegin(RestoreJob* job) {
  if (job->next_span < job->spans.size()) {
    job->CutAt(job->spans[job->next_span].token_begin, WhyNoRoom(*job));
    for (size_t i = job->next_span; i < job->spans.size(); ++i) {
      if (!job->span_states[i].settled())
        state_.Notify(Kind::kDiskUnpinned, job->span_states[i].chunk);
    }
  }
  if (!job->own_loads.empty()) BeginDiskReads(job);
  job->placed_ns = state_.NowNs();
  // Spans behind a cut are no part of the restore.
  for (size_t i = job->spans.size(); i-- > 0 && job->spans[i].token_begin >= job->valid_tokens();) {
    RestoreJob::SpanState& span = job->span_states[i];
    if (span.host_pinned) state_.UnpinHost(span.chunk);
    if (span.kept) DropSlot(span.kept, job, i);
    state_.DropOperationRef(span.chunk);
    job->spans.pop_back();
    job->slots.pop_back();
    job->span_states.pop_back();
  }
  job->next_span = job->spans.size();
  CountRestore(*job);
  NoteFinished(job);
}

void StoreImpl::CountRestore(const RestoreJob& job) {
  Counters& counters = state_.counters;
  ++counters.restores;
  counters.asked_tokens +=
      std::min(job.max_tokens, std::max(job.prompt_tokens, job.valid_tokens()));
  if (job.spans.empty()) ++counters.restores_missed;
  if (!job.spans.empty() && job.valid_tokens() < job.prompt_tokens) ++counters.restores_partial;
  for (const RestoredSpan& span : job.spans) {
    counters.restored_tokens[static_cast<size_t>(span.tier)] += span.token_count;
    ++counters.restored_chunks[static_cast<size_t>(span.tier)];
  }
}

void StoreImpl::NoteFinished(RestoreJob* job) {
  const bool begun = job->prefetch || job->next_span == job->spans.size();
  if (!begun || job->finish_noted || !job->Progress().finished) return;
  job->finish_noted = true;
  EndDiskReads(job);
  if (job->prefetch) return;
  state_.restore_latency.RecordNs(state_.NowNs() - job->begun_ns);
}

// ---- release ---------------------------------------------------------------------

void StoreImpl::BeginDiskReads(RestoreJob* job) {
  if (!std::exchange(job->reads_disk, true)) state_.Notify(Kind::kDiskReadsBegin, kNoChunk);
}

void StoreImpl::EndDiskReads(RestoreJob* job) {
  if (std::exchange(job->reads_disk, false)) state_.Notify(Kind::kDiskReadsEnd, kNoChunk);
}

void StoreImpl::ReleaseJob(RestoreJob* job) {
  job->released = true;
  TouchSpans(job);
  EndDiskReads(job);
  std::vector<ChunkIndex> in_host;
  in_host.reserve(job->span_states.size());
  for (const RestoreJob::SpanState& span : job->span_states) {
    if (span.host_pinned) in_host.push_back(span.chunk);
  }
  state_.UnpinHost(in_host);
  for (size_t i = 0; i < job->span_states.size(); ++i) {
    RestoreJob::SpanState& span = job->span_states[i];
    if (span.load) LeaveLoad(span.load, job, i);
    if (span.kept) DropSlot(span.kept, job, i);
    span.load.reset();
    span.kept.reset();
    state_.DropOperationRef(span.chunk);
  }
  job->span_states.clear();
}

// ---- progress --------------------------------------------------------------------

void RestoreJob::ExpectLoad(const ChunkLoad& load) {
  for (size_t layer = load.layers_ready; layer < pending_.size(); ++layer) ++pending_[layer];
}

void RestoreJob::LoadAdvanced(uint32_t from_layer, uint32_t to_layer) {
  for (uint32_t layer = from_layer; layer < to_layer; ++layer) --pending_[layer];
}

void RestoreJob::CutAt(uint64_t token, const std::string& reason) {
  store_->state_.mu.AssertHeld();
  if (token >= valid_tokens_) return;
  valid_tokens_ = token;
  miss_reason_ = reason;
  for (size_t i = 0; i < span_states.size(); ++i) {
    if (spans[i].token_begin < token || !span_states[i].load) continue;
    const std::shared_ptr<ChunkLoad> load = std::move(span_states[i].load);
    LoadAdvanced(load->layers_ready, static_cast<uint32_t>(pending_.size()));
    if (load->layers_ready > 0 && !prefetch) store_->KeepSlot(load, this, i);
    store_->LeaveLoad(load, this, i);
  }
}

RestoreProgress RestoreJob::Progress() const {
  RestoreProgress progress;
  while (progress.layers_ready < pending_.size() && pending_[progress.layers_ready] == 0) {
    ++progress.layers_ready;
  }
  progress.valid_tokens = valid_tokens_;
  progress.finished = progress.layers_ready == pending_.size() || released;
  progress.miss_reason = miss_reason_;
  return progress;
}

void RestoreJob::TellObserver() {
  absl::MutexLock lock(&observer_mu);
  if (!observer) return;
  RestoreProgress progress;
  {
    absl::MutexLock state_lock(&store_->state_.mu);
    progress = Progress();
  }
  observer(progress);
}

RestoreProgress RestoreTask::progress() const {
  absl::MutexLock lock(&job_->store_->state_.mu);
  return job_->Progress();
}

void RestoreTask::Observe(std::function<void(const RestoreProgress&)> observer) {
  {
    absl::MutexLock lock(&job_->observer_mu);
    TK_CHECK(!job_->observer);
    job_->observer = std::move(observer);
  }
  job_->TellObserver();
}

void RestoreTask::CutAtLayer(uint32_t layer) {
  {
    StoreImpl* store = job_->store_;
    absl::MutexLock lock(&store->state_.mu);
    for (size_t i = 0; i < job_->span_states.size(); ++i) {
      const auto& load = job_->span_states[i].load;
      if (load && load->layers_ready <= layer) {
        ++store->state_.counters.restores_cut_late;
        job_->CutAt(job_->spans[i].token_begin,
                    fmt::format("layer {} had not arrived at the deadline", layer));
        break;
      }
    }
    store->NoteFinished(job_.get());
  }
  job_->TellObserver();
}

void RestoreTask::ReportDamage(size_t span, uint32_t layer) {
  if (span >= job_->spans.size()) return;
  bool held = false;
  {
    absl::MutexLock lock(&job_->store_->state_.mu);
    held = job_->span_states[span].host_pinned;
  }
  // The slot of a span that is still being read, or was cut, is not this restore's to look at: by
  // now it may hold another chunk.
  const ChunkSlot& slot = job_->slots[span];
  bool damaged = false;
  if (held) {
    const absl::StatusOr<ChunkHeader> header =
        DecodeChunkHeader(slot.memory, slot.id, slot.epoch, slot.root);
    damaged = !header.ok();
    if (!damaged && layer < job_->layout->layout.layers.size()) {
      damaged =
          !VerifyPage(slot.memory, job_->layout->Geometry(slot.token_count), *header, layer).ok();
    }
  }
  {
    StoreImpl* store = job_->store_;
    absl::MutexLock lock(&store->state_.mu);
    if (damaged) store->state_.DropDamagedHost(job_->span_states[span].chunk);
    job_->CutAt(job_->spans[span].token_begin, "dropped: its digest did not match");
    store->NoteFinished(job_.get());
  }
  job_->TellObserver();
}

}  // namespace turnkeep
