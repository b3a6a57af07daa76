#include "disk_tier/testing/fault_index.h"

#include <utility>

#include "core/status.h"

namespace turnkeep {

void FaultIndex::Inject(uint64_t at, IndexFault fault, bool for_good) {
  fault_.store(fault);
  for_good_.store(for_good);
  at_.store(at);
}

void FaultIndex::ClearFault() { at_.store(UINT64_MAX); }

absl::Status FaultIndex::Apply(IndexBatch batch, SyncMode sync, IndexDone done) {
  uint64_t number = applied_.fetch_add(1);
  uint64_t at = at_.load();
  if (number != at && !(for_good_.load() && at != UINT64_MAX && number > at)) {
    return inner().Apply(std::move(batch), sync, std::move(done));
  }
  absl::Status fault = Unavailable("injected fault of index batch {}", number);
  switch (fault_.load()) {
    case IndexFault::kRefuse:
      return fault;
    case IndexFault::kFail:
      break;
    case IndexFault::kDrop:
      fault = absl::OkStatus();
      break;
  }
  // An empty batch in its place keeps the order of completions, and their thread.
  return inner().Apply(IndexBatch(), SyncMode::kNoSync,
                       [fault, done = std::move(done)](const absl::Status& status) mutable {
                         done(status.ok() ? fault : status);
                       });
}

}  // namespace turnkeep
