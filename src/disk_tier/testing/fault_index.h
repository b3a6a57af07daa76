// FaultIndex: an Index that wraps another and fails chosen Apply calls. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "disk_tier/index.h"

namespace turnkeep {

enum class IndexFault : uint8_t {
  kRefuse = 1,  // Apply itself returns Unavailable; `done` never runs
  kFail,        // `done` gets Unavailable; nothing is written
  kDrop,        // `done` gets OK; nothing is written (a crash)
};

class FaultIndex : public Index {
 public:
  explicit FaultIndex(std::unique_ptr<Index> index);

  // The `at`-th Apply (from 0) goes wrong; with `for_good` every later one too.
  void Inject(uint64_t at, IndexFault fault, bool for_good);
  void ClearFault();
  uint64_t apply_count() const { return applied_.load(); }

  bool FoundCleanShutdown() const override;
  uint32_t NextFile() const override;
  absl::StatusOr<IndexMeta> Load(IndexVisitor& visitor) override;
  absl::Status Apply(IndexBatch batch, SyncMode sync, IndexDone done) override;
  absl::Status Flush() override;
  IndexStats Stats() const override;

 private:
  std::unique_ptr<Index> index_;
  std::atomic<uint64_t> applied_{0};
  std::atomic<uint64_t> at_{
      UINT64_MAX};  // set before the calls it is for; no order needed beyond that
  std::atomic<IndexFault> fault_{IndexFault::kFail};
  std::atomic<bool> for_good_{false};
};

}  // namespace turnkeep
