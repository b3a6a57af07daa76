// CUDA's errors as ours, and the current device. Only in builds with CUDA; the header needs none of
// CUDA's.
//
// Thread-safe; a CudaCurrentDevice belongs to its thread.
#pragma once

#include <string>

#include <absl/status/status.h>

namespace turnkeep {

// `error` is a cudaError_t; the message is "call: CUDA's name and text". Out of memory:
// ResourceExhausted; a bad argument: InvalidArgument; registered already: AlreadyExists, not
// registered: NotFound; not ready or not recorded: FailedPrecondition; everything else, a failed
// kernel among it: Unavailable, for the device's context does not recover from those. Clears the
// runtime's last error where it is not one of the latter.
absl::Status CudaStatus(int error, const std::string& call);

// The calling thread's current device, until the end of the scope; then the one before.
class CudaCurrentDevice {
 public:
  explicit CudaCurrentDevice(int ordinal);
  ~CudaCurrentDevice();
  CudaCurrentDevice(const CudaCurrentDevice&) = delete;
  CudaCurrentDevice& operator=(const CudaCurrentDevice&) = delete;
  const absl::Status& status() const { return status_; }

 private:
  int before_ = 0;
  absl::Status status_;
};

}  // namespace turnkeep
