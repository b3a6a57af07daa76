// A CUDA device for benches: a stream, and times between events on it.
//
// Not thread-safe.
#pragma once

#include <functional>
#include <memory>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/status.h"
#include "cuda_bench.h"
#include "gpu_tier/cuda_device.h"

namespace turnkeep::bench {

class CudaTiming {
 public:
  static absl::StatusOr<CudaTiming> Open() {
    TK_RETURN_IF_ERROR(CudaIsThere());
    CudaTiming out;
    TK_ASSIGN_OR_RETURN(out.device_, CudaDevice::Open(0));
    TK_ASSIGN_OR_RETURN(out.stream_, out.device_->NewStream());
    TK_ASSIGN_OR_RETURN(out.begin_, out.device_->NewEvent());
    TK_ASSIGN_OR_RETURN(out.end_, out.device_->NewEvent());
    return out;
  }
  CudaDevice& device() { return *device_; }
  DeviceStream& stream() { return *stream_; }
  void* on() { return stream_->native_handle(); }

  // Seconds of what `work` puts into the stream.
  absl::StatusOr<double> Seconds(const std::function<absl::Status()>& work) {
    TK_RETURN_IF_ERROR(stream_->Synchronize());
    TK_RETURN_IF_ERROR(stream_->Record(*begin_));
    TK_RETURN_IF_ERROR(work());
    TK_RETURN_IF_ERROR(stream_->Record(*end_));
    TK_RETURN_IF_ERROR(end_->Wait());
    return device_->SecondsBetween(*begin_, *end_);
  }
  // `bytes` there, copied from host memory.
  absl::StatusOr<DeviceMemory> Upload(const void* from, size_t bytes) {
    TK_ASSIGN_OR_RETURN(DeviceMemory memory, device_->Allocate(bytes));
    TK_RETURN_IF_ERROR(stream_->Copy(CopyKind::kToDevice, memory.data(), from, bytes));
    TK_RETURN_IF_ERROR(stream_->Synchronize());
    return memory;
  }

 private:
  std::unique_ptr<CudaDevice> device_;  // outlives what is of it
  std::unique_ptr<DeviceStream> stream_;
  std::unique_ptr<DeviceEvent> begin_, end_;
};

}  // namespace turnkeep::bench
