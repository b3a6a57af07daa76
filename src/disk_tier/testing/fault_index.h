// FaultIndex: an Index that wraps another and fails chosen Apply calls. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "disk_tier/testing/forwarding_index.h"

namespace turnkeep {

enum class IndexFault : uint8_t {
  kRefuse = 1,  // Apply itself returns Unavailable; `done` never runs
  kFail,        // `done` gets Unavailable; nothing is written
  kDrop,        // `done` gets OK; nothing is written (a crash)
};

class FaultIndex : public ForwardingIndex {
 public:
  using ForwardingIndex::ForwardingIndex;

  // The `at`-th Apply (from 0) goes wrong; with `for_good` every later one too.
  void Inject(uint64_t at, IndexFault fault, bool for_good);
  void ClearFault();
  uint64_t apply_count() const { return applied_.load(); }

  absl::Status Apply(IndexBatch batch, SyncMode sync, IndexDone done) override;

 private:
  std::atomic<uint64_t> applied_{0};
  std::atomic<uint64_t> at_{
      UINT64_MAX};  // set before the calls it is for; no order needed beyond that
  std::atomic<IndexFault> fault_{IndexFault::kFail};
  std::atomic<bool> for_good_{false};
};

}  // namespace turnkeep
