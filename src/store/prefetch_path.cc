// Prefetches: loads from disk that no restore waits for yet. A restore that comes meanwhile joins
// them (JoinOrStartLoad); one that reads other chunks keeps new ones from beginning (Placement).
#include <utility>

#include "core/units.h"
#include "store/restore_task.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

std::vector<std::shared_ptr<RestoreJob>> StoreImpl::StartPrefetches() {
  std::vector<std::shared_ptr<RestoreJob>> jobs;
  while (!state_.to_prefetch.empty()) {
    const ChunkIndex chunk = state_.to_prefetch.front();
    state_.to_prefetch.pop_front();
    std::shared_ptr<RestoreJob> job = state_.closing ? nullptr : StartPrefetch(chunk);
    if (job == nullptr) {
      state_.RefusePrefetch(chunk);
      continue;
    }
    state_.DropOperationRef(chunk);  // the job and its load have their own
    jobs.push_back(std::move(job));
  }
  return jobs;
}

std::shared_ptr<RestoreJob> StoreImpl::StartPrefetch(ChunkIndex chunk) {
  const ChunkEntry& entry = state_.catalog[chunk];
  if (entry.disk.IsNull() || !entry.host.is_null() || loads_.contains(chunk)) return nullptr;
  // The placement has made room in bytes. A slot that only an eviction could give is not taken:
  // its victim might be needed sooner.
  const absl::StatusOr<SlotRef> slot =
      state_.arena->Allocate(entry.tenant, entry.slot_blocks * kBlockBytes);
  if (!slot.ok()) return nullptr;
  auto job = std::make_shared<RestoreJob>(this, state_.registry.LayoutAt(entry.layout));
  job->prefetch = true;
  job->touched = true;  // reading ahead is no use
  job->begun_ns = state_.NowNs();
  std::shared_ptr<ChunkLoad> load = StartLoad(chunk, *slot, job.get());
  load->prefetch = true;
  state_.AddOperationRef(chunk);  // the span's
  job->spans.push_back({.token_count = entry.token_count,
                        .chunk_token_count = entry.token_count,
                        .tier = Tier::kDisk});
  job->slots.push_back(load->target);
  job->span_states.push_back({.chunk = chunk, .load = load});
  job->SetValidTokens(entry.token_count, "");
  load->waiters.push_back({job, 0});
  job->ExpectLoad(*load);
  return job;
}

void StoreImpl::RunPrefetch(const std::shared_ptr<RestoreJob>& job) {
  {
    absl::MutexLock lock(&job->observer_mu);
    job->observer = [this, weak = std::weak_ptr<RestoreJob>(job)](const RestoreProgress& now) {
      const std::shared_ptr<RestoreJob> ended = now.finished ? weak.lock() : nullptr;
      if (ended == nullptr) return;
      absl::MutexLock state_lock(&state_.mu);
      if (!ended->released) ReleaseJob(ended.get());
    };
  }
  PumpReads(job);
}

}  // namespace turnkeep
