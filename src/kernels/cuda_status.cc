#include "kernels/cuda_status.h"

#include <cuda_runtime_api.h>

#include "core/status.h"

namespace turnkeep {

absl::Status CudaStatus(int error, const std::string& call) {
  const auto code = static_cast<cudaError_t>(error);
  if (code == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  const std::string text =
      fmt::format("{}: {}: {}", call, cudaGetErrorName(code), cudaGetErrorString(code));
  switch (code) {
    case cudaErrorMemoryAllocation:
      return ResourceExhausted("{}", text);
    case cudaErrorInvalidValue:
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidConfiguration:
      return InvalidArgument("{}", text);
    case cudaErrorHostMemoryAlreadyRegistered:
      return AlreadyExists("{}", text);
    case cudaErrorHostMemoryNotRegistered:
      return NotFound("{}", text);
    case cudaErrorNotReady:
    case cudaErrorInvalidResourceHandle:
      return FailedPrecondition("{}", text);
    default:
      return Unavailable("{}", text);
  }
}

CudaCurrentDevice::CudaCurrentDevice(int ordinal) {
  if (cudaGetDevice(&before_) != cudaSuccess) before_ = ordinal;
  status_ = CudaStatus(cudaSetDevice(ordinal), fmt::format("cudaSetDevice({})", ordinal));
}

CudaCurrentDevice::~CudaCurrentDevice() { cudaSetDevice(before_); }

}  // namespace turnkeep
