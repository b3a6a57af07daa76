// CUDA's errors as ours. Only in builds with CUDA; the header needs none of CUDA's.
//
// Thread-safe.
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

}  // namespace turnkeep
