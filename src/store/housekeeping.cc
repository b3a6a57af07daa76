// The housekeeping thread: ends sessions, retries restores and saves that wait for room, begins
// prefetches.
#include <memory>
#include <utility>
#include <vector>

#include "core/status.h"
#include "store/restore_task.h"
#include "store/save_task.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

namespace {

constexpr absl::Duration kHousekeepingInterval = absl::Milliseconds(100);

}  // namespace

void StoreImpl::Housekeep() {
  for (;;) {
    std::vector<WaitingSave> finished;
    std::vector<std::pair<WaitingSave, absl::Status>> cut;
    std::vector<WaitingRestore> restores;
    std::vector<HostArena::Retired> retired;
    std::vector<std::shared_ptr<RestoreJob>> prefetches;
    {
      absl::MutexLock lock(&state_.mu);
      const auto wanted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu) {
        const bool wait_for_room = !waiting_saves_.empty() || !waiting_restores_.empty();
        return stop_ || (room_made_ && wait_for_room) || !state_.to_prefetch.empty();
      };
      state_.mu.AwaitWithTimeout(absl::Condition(&wanted), kHousekeepingInterval);
      room_made_ = false;
      if (!state_.closing) ExpireSessions();
      expectations_.Advance(state_.NowNs(), TellExpected());
      retained_.Advance(state_.NowNs(), TellRetained());
      state_.Notify(Kind::kTick, kNoChunk);
      prefetches = StartPrefetches();
      RetryWaitingRestores(&restores);
      RetryWaitingSaves(&finished);
      for (WaitingSave& waiting : finished) {
        absl::Status status;
        if (!waiting.task->TakeSlots()) status = waiting.task->CutToSlots();
        if (state_.closing) status = Unavailable("the store is closing");
        cut.emplace_back(std::move(waiting), status);
      }
      retired = state_.arena->TakeRetired();
      if (stop_ && cut.empty() && restores.empty()) return;
      writer_->WakeForWork();
    }
    for (const auto& job : prefetches) RunPrefetch(job);
    for (WaitingRestore& waiting : restores) {
      FinishWaiting(std::move(waiting));
    }
    for (auto& [waiting, status] : cut) {
      if (!status.ok()) waiting.task.reset();
      if (status.ok()) {
        waiting.done(std::unique_ptr<SaveOperation>(std::move(waiting.task)));
      } else {
        waiting.done(status);
      }
    }
  }
}

}  // namespace turnkeep
