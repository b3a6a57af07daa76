// Restores from disk that find the host tier full of chunks which are not on disk yet: those make
// room only when they have been written. A restore waits for such writes and for nothing else,
// so that two restores which hold what the other needs never wait for one another: when no write
// is under way, each gets what has room. Writes end by themselves, well or not.
//
// The first that waits takes what room is made; the others follow in order.
#include <algorithm>
#include <utility>

#include "core/status.h"
#include "store/restore_task.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

namespace {

constexpr size_t kMaxWaitingRestores = 256;

// Bounds a wait without a deadline.
constexpr absl::Duration kLongestWait = absl::Hours(1);

}  // namespace

bool StoreImpl::PlaceLoads(const std::shared_ptr<RestoreJob>& job, absl::Duration longest,
                           RestoreDone* done, std::function<bool()>* abandoned) {
  if (waiting_restores_.empty() && StartLoads(job)) return true;
  // Behind those that wait: nobody takes the room that is being made for them.
  while (job->next_span < job->spans.size() && job->span_states[job->next_span].settled())
    ++job->next_span;
  if (job->next_span == job->spans.size()) return true;
  MakeRoomFor(*job);
  if (longest <= absl::ZeroDuration() || waiting_restores_.size() >= kMaxWaitingRestores ||
      !RoomIsComingFor(*job)) {
    (void)StartLoads(job);
    return true;
  }
  ++state_.counters.restores_waited;
  BeginDiskReads(job.get());  // no prefetch shall take the room
  waiting_restores_.push_back(
      {job, state_.NowNs() + absl::ToInt64Nanoseconds(std::min(longest, kLongestWait)),
       std::move(*done), std::move(*abandoned)});
  return false;
}

bool StoreImpl::RoomIsComingFor(const RestoreJob& job) const {
  // A load of this chunk that was given up ends when its reads do, and another can begin.
  return state_.placement.RoomIsComing() || loads_.contains(job.span_states[job.next_span].chunk);
}

// Begins the writes for all that is needed at once: one after the other they would take as long as
// the disk's latency each.
void StoreImpl::MakeRoomFor(const RestoreJob& job) {
  uint64_t needed = 0;
  for (size_t i = job.next_span; i < job.spans.size(); ++i) {
    const RestoreJob::SpanState& span = job.span_states[i];
    if (!span.settled() && !loads_.contains(span.chunk))
      needed += state_.catalog[span.chunk].slot_blocks * kBlockBytes;
  }
  const uint64_t slot_bytes =
      state_.catalog[job.span_states[job.next_span].chunk].slot_blocks * kBlockBytes;
  const Placement::TierUsage& host = state_.placement.host();
  for (;;) {
    const uint64_t staying = host.used_bytes - host.leaving_bytes;
    if (staying + needed <= host.capacity_bytes) return;
    state_.Notify(Kind::kHostSpaceNeeded, kNoChunk, slot_bytes);
    if (host.used_bytes - host.leaving_bytes == staying) return;  // the rest is in use
  }
}

// A restore that waited may find a span elsewhere than when it began.
void StoreImpl::Reexamine(RestoreJob* job, size_t i) {
  RestoreJob::SpanState& span = job->span_states[i];
  const ChunkEntry& entry = state_.catalog[span.chunk];
  const bool same = entry.epoch == job->slots[i].epoch;
  if (same && !entry.disk.IsNull() && entry.host.is_null()) return;
  if (!same || !entry.InHost()) return job->CutAt(job->spans[i].token_begin, WhyMissing(entry));
  state_.PinHost(span.chunk);
  state_.Notify(Kind::kDiskUnpinned, span.chunk);
  span.host_pinned = true;
  job->spans[i].tier = Tier::kHost;
  job->slots[i].slot = entry.host;
  job->slots[i].memory = state_.HostImage(entry);
}

std::string StoreImpl::WhyNoRoom(const RestoreJob& job) const {
  uint64_t own = 0;
  for (const RestoreJob::SpanState& span : job.span_states) {
    if (span.host_pinned || span.load) own += state_.catalog[span.chunk].slot_blocks * kBlockBytes;
  }
  const Placement::TierUsage& host = state_.placement.host();
  return fmt::format(
      "no room in the host tier to read it from disk: of {} bytes this restore holds {}, others "
      "and what is not on disk yet {}",
      host.capacity_bytes, own, host.used_bytes - std::min(host.used_bytes, own));
}

void StoreImpl::RetryWaitingRestores(std::vector<WaitingRestore>* finished) {
  bool first = true;
  for (size_t i = waiting_restores_.size(); i > 0; --i) {
    WaitingRestore waiting = std::move(waiting_restores_.front());
    waiting_restores_.pop_front();
    const std::shared_ptr<RestoreJob>& job = waiting.job;
    bool over = (waiting.abandoned && waiting.abandoned()) || state_.closing;
    if (!over && first) {
      // Trying may itself begin writes that make room, so it comes before the question for any.
      over = StartLoads(job);
      if (!over) MakeRoomFor(*job);
      over = over || !RoomIsComingFor(*job);
    }
    over = over || state_.NowNs() >= waiting.deadline_ns;
    if (over) {
      FinishBegin(job.get());
      finished->push_back(std::move(waiting));
    } else {
      first = false;
      waiting_restores_.push_back(std::move(waiting));
    }
  }
}

void StoreImpl::FinishWaiting(WaitingRestore waiting) {
  const bool abandoned = waiting.abandoned && waiting.abandoned();
  if (!abandoned) PumpReads(waiting.job);
  auto task = std::make_unique<RestoreTask>(waiting.job);
  bool closing = false;
  {
    absl::MutexLock lock(&state_.mu);
    closing = state_.closing;
  }
  if (closing) {
    task.reset();
    waiting.done(Unavailable("the store is closing"));
  } else {
    waiting.done(std::move(task));
  }
  // Other restores may have joined its loads.
  if (abandoned || closing) PumpReads(waiting.job);
}

}  // namespace turnkeep
