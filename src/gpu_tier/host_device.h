// A device in host memory that is as asynchronous as a GPU: every stream has a thread of its own,
// only events order them, and copies take the time that a configured link would take. So an
// ordering bug of a pipeline shows on a machine without a GPU.
//
// Time. Every operation has a start (the latest of: when it was put in, the end of the one before
// it, the places it waits for, the link being free) and an end by the configured rates; the thread
// sleeps until that end. A thread that wakes late therefore delays what reads its result, but the
// lateness does not add up over a stream of operations. What really takes longer than configured
// (memcpy on a slow machine, a launched function) ends that much later.
//
// Thread-safe as Device promises.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include "core/units.h"
#include "gpu_tier/device.h"

namespace turnkeep {

struct HostDeviceOptions {
  uint64_t memory_bytes = kGiB;  // that Allocate gives
  // Of the link, for each direction; 0: as memcpy goes.
  double to_device_bytes_per_s = 0;
  double to_host_bytes_per_s = 0;
  absl::Duration copy_latency = absl::ZeroDuration();  // of each batch

  // For tests. Each operation starts after a further random delay up to this.
  absl::Duration max_random_delay = absl::ZeroDuration();
  uint64_t seed = 1;
  // Streams no longer wait for events: what a pipeline with a forgotten wait would do.
  bool ignore_waits_for_test = false;
};

class HostDevice final : public Device {
 public:
  explicit HostDevice(HostDeviceOptions options = {});
  ~HostDevice() override;

  std::string Description() const override;
  bool is_cuda() const override { return false; }
  absl::StatusOr<DeviceMemory> Allocate(size_t bytes) override;
  absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) override;
  absl::Status RegisterHost(std::span<std::byte> memory) override;
  absl::Status UnregisterHost(std::span<std::byte> memory) override;
  absl::StatusOr<std::unique_ptr<DeviceStream>> NewStream() override;
  absl::StatusOr<std::unique_ptr<DeviceEvent>> NewEvent() override;
  absl::StatusOr<double> SecondsBetween(const DeviceEvent& from, const DeviceEvent& to) override;

  // As stream.Launch(function), but a kernel that takes `duration` on the device: the function
  // runs at its end. `stream` is of a HostDevice.
  static absl::Status LaunchFor(DeviceStream& stream, absl::Duration duration,
                                std::function<void()> function);

  uint64_t allocated_bytes() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class HostStream;
  struct Shared;  // what streams use
  void Free(std::byte* data, size_t bytes, bool pinned) override ABSL_LOCKS_EXCLUDED(mu_);

  const HostDeviceOptions options_;
  const std::unique_ptr<Shared> shared_;
  mutable absl::Mutex mu_;
  uint64_t allocated_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::span<std::byte>> registered_ ABSL_GUARDED_BY(mu_);
};

}  // namespace turnkeep
