// A CUDA device as a Device. Only in builds with CUDA (the target turnkeep_cuda); the header needs
// none of CUDA's.
//
// Streams are non-blocking ones: the legacy default stream does not order them. A batch of copies
// is one cudaMemcpyBatchAsync where runtime and driver have it, else one cudaMemcpyAsync a run.
// Copies from or to host memory that is neither pinned nor registered are right, but CUDA stages
// them, and the call may then wait for the copy.
//
// One limit of Device is CUDA's here: a stream's queue is the driver's. Past its length, about a
// thousand operations, putting one in waits for a free place instead of giving ResourceExhausted.
//
// After a kernel has failed, CUDA refuses everything in this process: calls give Unavailable,
// Ready() stays false, Wait() and Synchronize() say why, and launched functions do not run.
//
//   TK_ASSIGN_OR_RETURN(auto device, CudaDevice::Open(0));
//   TK_ASSIGN_OR_RETURN(auto stream, device->NewStream());
//
// Thread-safe as Device promises. Calls leave the calling thread's current CUDA device as it was.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "gpu_tier/device.h"

namespace turnkeep {

class CudaDevice final : public Device {
 public:
  // Devices that CUDA sees; 0 without a driver.
  static int Count();
  // NotFound: no such device, with the number there are. Creates the device's context, which may
  // take a second.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open(int ordinal);

  std::string Description() const override { return description_; }
  bool is_cuda() const override { return true; }
  int ordinal() const { return ordinal_; }

  absl::StatusOr<DeviceMemory> Allocate(size_t bytes) override;
  absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) override;
  absl::Status RegisterHost(std::span<std::byte> memory) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status UnregisterHost(std::span<std::byte> memory) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::unique_ptr<DeviceStream>> NewStream() override;
  absl::StatusOr<std::unique_ptr<DeviceEvent>> NewEvent() override;
  absl::StatusOr<double> SecondsBetween(const DeviceEvent& from, const DeviceEvent& to) override;

 private:
  CudaDevice(int ordinal, std::string description)
      : ordinal_(ordinal), description_(std::move(description)) {}
  // Waits for the device's work where CUDA has to.
  void Free(std::byte* data, size_t bytes, bool pinned) override;

  const int ordinal_;
  const std::string description_;
  absl::Mutex mu_;
  std::vector<std::span<std::byte>> registered_ ABSL_GUARDED_BY(mu_);
};

}  // namespace turnkeep
