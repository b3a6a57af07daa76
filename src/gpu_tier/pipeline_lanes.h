// What restores and saves run on (two streams and a ring of staging memory: a lane), kept between
// them. A turn finds the lane of the turn before, so it allocates no device memory, which on a GPU
// would wait for everything that runs there, and all turns together stay inside one byte budget.
//
// Thread-safe, except that a lease has one owner.
//
//   PipelineLanes lanes(device, {.budget_bytes = 256 * kMiB});
//   TK_ASSIGN_OR_RETURN(auto restore, LayerRestore::Start(device, layout, std::move(ticket),
//                                                         {.lanes = &lanes}));
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/status/statusor.h>
#include <absl/synchronization/mutex.h>

#include "core/units.h"
#include "gpu_tier/device.h"
#include "gpu_tier/staging_ring.h"

namespace turnkeep {

class PipelineLanes;

struct Lane {
  StagingRing ring;
  // A restore's: host to device, then scatter. A save's: gather, then device to host.
  std::unique_ptr<DeviceStream> first;
  std::unique_ptr<DeviceStream> second;
};

// A lane while it is used. Move-only.
class LaneLease {
 public:
  LaneLease() = default;
  LaneLease(PipelineLanes* lanes, std::unique_ptr<Lane> lane)
      : lanes_(lanes), lane_(std::move(lane)) {}
  LaneLease(LaneLease&& other) noexcept { *this = std::move(other); }
  LaneLease& operator=(LaneLease&& other) noexcept {
    std::swap(lanes_, other.lanes_);
    std::swap(lane_, other.lane_);
    return *this;
  }
  ~LaneLease() { End(); }

  // Blocks until both streams are empty, and gives the lane back.
  void End();
  bool holds() const { return lane_ != nullptr; }
  Lane* operator->() const { return lane_.get(); }

 private:
  PipelineLanes* lanes_ = nullptr;  // null: the lane goes with the lease
  std::unique_ptr<Lane> lane_;
};

class PipelineLanes {
 public:
  struct Options {
    uint64_t budget_bytes = 256 * kMiB;  // of device memory, lanes in use and kept ones together
  };
  struct Counters {
    uint64_t made = 0;
    uint64_t reused = 0;
    uint64_t kept_bytes = 0;    // of lanes that nobody uses now
    uint64_t leased_bytes = 0;  // of those in use
  };

  // `device` outlives this, and this outlives its leases.
  PipelineLanes(Device& device, const Options& options) : device_(device), options_(options) {}
  ~PipelineLanes();

  // A kept lane with a ring of at least these options, or a new one, for which kept ones are freed
  // where the budget asks for it. A new ring is smaller than asked for where lanes in use leave
  // less. ResourceExhausted: they leave no room for kMinStagingSlots slots.
  absl::StatusOr<LaneLease> Take(const StagingRing::Options& ring) ABSL_LOCKS_EXCLUDED(mu_);
  // A lane of nobody else, outside of any budget.
  static absl::StatusOr<LaneLease> TakeOwn(Device& device, const StagingRing::Options& ring);

  Counters counters() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class LaneLease;
  static absl::StatusOr<std::unique_ptr<Lane>> MakeLane(Device& device,
                                                        const StagingRing::Options& ring);
  std::unique_ptr<Lane> TakeKept(uint64_t slot_bytes, uint64_t bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void GiveBack(std::unique_ptr<Lane> lane) ABSL_LOCKS_EXCLUDED(mu_);

  Device& device_;
  const Options options_;
  mutable absl::Mutex mu_;
  std::vector<std::unique_ptr<Lane>> kept_ ABSL_GUARDED_BY(mu_);  // the last used one at the back
  uint64_t promised_bytes_ ABSL_GUARDED_BY(mu_) = 0;              // of rings being made
  Counters counters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace turnkeep
