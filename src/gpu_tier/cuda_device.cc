#include "gpu_tier/cuda_device.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include <cuda_runtime_api.h>

#include "core/status.h"
#include "kernels/cuda_status.h"

namespace turnkeep {
namespace {

cudaMemcpyKind KindOf(CopyKind kind) {
  switch (kind) {
    case CopyKind::kToDevice:
      return cudaMemcpyHostToDevice;
    case CopyKind::kToHost:
      return cudaMemcpyDeviceToHost;
    case CopyKind::kOnDevice:
      break;
  }
  return cudaMemcpyDeviceToDevice;
}

class CudaEvent final : public DeviceEvent {
 public:
  explicit CudaEvent(cudaEvent_t event) : event_(event) {}
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  bool Ready() const override {
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaErrorNotReady) cudaGetLastError();  // not an error
    return error == cudaSuccess;
  }
  absl::Status Wait() const override {
    return CudaStatus(cudaEventSynchronize(event_), "cudaEventSynchronize");
  }
  cudaEvent_t handle() const { return event_; }

  // Whether it was ever recorded, which CUDA does not tell. Relaxed: a hint for an error message;
  // the order of the recording itself is CUDA's.
  mutable std::atomic<bool> recorded{false};

 private:
  const cudaEvent_t event_;
};

// Every event that a stream is given is of the same device, as DeviceStream asks.
const CudaEvent& Ours(const DeviceEvent& event) { return static_cast<const CudaEvent&>(event); }

void RunFunction(void* function) {
  const std::unique_ptr<std::function<void()>> owned(static_cast<std::function<void()>*>(function));
  (*owned)();
}

class CudaStream final : public DeviceStream {
 public:
  CudaStream(int ordinal, cudaStream_t stream) : ordinal_(ordinal), stream_(stream) {}
  ~CudaStream() override {
    const CudaCurrentDevice current(ordinal_);
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  absl::Status CopyBatch(CopyKind kind, std::span<const CopyRun> runs) override {
    const CudaCurrentDevice current(ordinal_);
    TK_RETURN_IF_ERROR(current.status());
    if (runs.size() > 1 && !batches_refused_.load(std::memory_order_relaxed)) {
      bool refused = false;
      TK_RETURN_IF_ERROR(CopyAsBatch(runs, &refused));
      if (!refused) return absl::OkStatus();
      batches_refused_.store(true, std::memory_order_relaxed);
    }
    for (size_t i = 0; i < runs.size(); ++i) {
      const CopyRun& run = runs[i];
      if (run.bytes == 0) continue;
      TK_RETURN_IF_ERROR(CudaStatus(
          cudaMemcpyAsync(run.to, run.from, run.bytes, KindOf(kind), stream_),
          fmt::format("cudaMemcpyAsync of {} bytes, run {} of {}", run.bytes, i, runs.size())));
    }
    return absl::OkStatus();
  }

  absl::Status Record(DeviceEvent& event) override {
    const CudaCurrentDevice current(ordinal_);
    TK_RETURN_IF_ERROR(current.status());
    TK_RETURN_IF_ERROR(
        CudaStatus(cudaEventRecord(Ours(event).handle(), stream_), "cudaEventRecord"));
    Ours(event).recorded.store(true, std::memory_order_relaxed);
    return absl::OkStatus();
  }
  absl::Status WaitFor(const DeviceEvent& event) override {
    return CudaStatus(cudaStreamWaitEvent(stream_, Ours(event).handle(), 0), "cudaStreamWaitEvent");
  }
  absl::Status Launch(std::function<void()> function) override {
    auto owned = std::make_unique<std::function<void()>>(std::move(function));
    TK_RETURN_IF_ERROR(
        CudaStatus(cudaLaunchHostFunc(stream_, &RunFunction, owned.get()), "cudaLaunchHostFunc"));
    owned.release();  // the stream's; lost if the device fails before it runs
    return absl::OkStatus();
  }
  absl::Status Synchronize() override {
    return CudaStatus(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  void* native_handle() const override { return stream_; }

 private:
  // `refused`: this runtime or driver has no batches; nothing was copied.
  absl::Status CopyAsBatch(std::span<const CopyRun> runs, bool* refused) {
#if CUDART_VERSION >= 13000
    std::vector<void*> to;
    std::vector<const void*> from;
    std::vector<size_t> bytes;
    size_t total = 0;
    for (const CopyRun& run : runs) {
      if (run.bytes == 0) continue;  // which CUDA refuses
      to.push_back(run.to);
      from.push_back(run.from);
      bytes.push_back(run.bytes);
      total += run.bytes;
    }
    if (to.empty()) return absl::OkStatus();
    cudaMemcpyAttributes attributes = {};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    size_t first_run = 0;  // which the attributes are for
    const cudaError_t error = cudaMemcpyBatchAsync(to.data(), from.data(), bytes.data(), to.size(),
                                                   &attributes, &first_run, 1, stream_);
    if (error == cudaErrorNotSupported || error == cudaErrorCallRequiresNewerDriver) {
      cudaGetLastError();
      *refused = true;
      return absl::OkStatus();
    }
    return CudaStatus(
        error, fmt::format("cudaMemcpyBatchAsync of {} runs, {} bytes together", to.size(), total));
#else
    static_cast<void>(runs);
    *refused = true;
    return absl::OkStatus();
#endif
  }

  const int ordinal_;
  const cudaStream_t stream_;
  std::atomic<bool> batches_refused_{false};  // relaxed: only saves a call
};

}  // namespace

int CudaDevice::Count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(int ordinal) {
  if (ordinal < 0 || ordinal >= Count())
    return NotFound("CUDA device {}: there are {}", ordinal, Count());
  const CudaCurrentDevice current(ordinal);
  TK_RETURN_IF_ERROR(current.status());
  cudaDeviceProp properties = {};
  TK_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, ordinal),
                                fmt::format("cudaGetDeviceProperties({})", ordinal)));
  TK_RETURN_IF_ERROR(CudaStatus(cudaFree(nullptr), fmt::format("context of device {}", ordinal)));
  return std::unique_ptr<CudaDevice>(
      new CudaDevice(ordinal, fmt::format("{} (cuda:{})", properties.name, ordinal)));
}

absl::StatusOr<DeviceMemory> CudaDevice::Allocate(size_t bytes) {
  const CudaCurrentDevice current(ordinal_);
  TK_RETURN_IF_ERROR(current.status());
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error != cudaSuccess) {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return CudaStatus(error, fmt::format("cudaMalloc of {} bytes, {} of {} free", bytes, free_bytes,
                                         total_bytes));
  }
  return DeviceMemory(this, static_cast<std::byte*>(data), bytes, /*pinned=*/false);
}

absl::StatusOr<DeviceMemory> CudaDevice::AllocatePinned(size_t bytes) {
  const CudaCurrentDevice current(ordinal_);
  TK_RETURN_IF_ERROR(current.status());
  void* data = nullptr;
  TK_RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(&data, bytes, cudaHostAllocPortable),
                                fmt::format("cudaHostAlloc of {} bytes", bytes)));
  return DeviceMemory(this, static_cast<std::byte*>(data), bytes, /*pinned=*/true);
}

void CudaDevice::Free(std::byte* data, size_t /*bytes*/, bool pinned) {
  const CudaCurrentDevice current(ordinal_);
  // A failure here is an earlier one of the device, which the streams have reported.
  const cudaError_t error = pinned ? cudaFreeHost(data) : cudaFree(data);
  if (error != cudaSuccess) cudaGetLastError();
}

absl::Status CudaDevice::RegisterHost(std::span<std::byte> memory) {
  {
    absl::MutexLock lock(&mu_);
    for (const std::span<std::byte> other : registered_) {
      if (memory.data() < other.data() + other.size() &&
          other.data() < memory.data() + memory.size())
        return AlreadyExists("registering {} bytes of host memory: it overlaps {} registered ones",
                             memory.size(), other.size());
    }
    registered_.push_back(memory);
  }
  const CudaCurrentDevice current(ordinal_);
  absl::Status status = current.status();
  if (status.ok())
    status = CudaStatus(cudaHostRegister(memory.data(), memory.size(), cudaHostRegisterPortable),
                        fmt::format("cudaHostRegister of {} bytes", memory.size()));
  if (status.ok()) return status;
  absl::MutexLock lock(&mu_);
  std::erase_if(registered_, [&](std::span<std::byte> s) { return s.data() == memory.data(); });
  return status;
}

absl::Status CudaDevice::UnregisterHost(std::span<std::byte> memory) {
  {
    absl::MutexLock lock(&mu_);
    const auto at = std::find_if(registered_.begin(), registered_.end(), [&](auto other) {
      return other.data() == memory.data() && other.size() == memory.size();
    });
    if (at == registered_.end())
      return NotFound("unregistering {} bytes of host memory that are not registered",
                      memory.size());
    registered_.erase(at);
  }
  const CudaCurrentDevice current(ordinal_);
  TK_RETURN_IF_ERROR(current.status());
  return CudaStatus(cudaHostUnregister(memory.data()),
                    fmt::format("cudaHostUnregister of {} bytes", memory.size()));
}

absl::StatusOr<std::unique_ptr<DeviceStream>> CudaDevice::NewStream() {
  const CudaCurrentDevice current(ordinal_);
  TK_RETURN_IF_ERROR(current.status());
  cudaStream_t stream = nullptr;
  TK_RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                                "cudaStreamCreateWithFlags"));
  return std::unique_ptr<DeviceStream>(new CudaStream(ordinal_, stream));
}

absl::StatusOr<std::unique_ptr<DeviceEvent>> CudaDevice::NewEvent() {
  const CudaCurrentDevice current(ordinal_);
  TK_RETURN_IF_ERROR(current.status());
  cudaEvent_t event = nullptr;
  TK_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&event, cudaEventBlockingSync),
                                "cudaEventCreateWithFlags"));
  return std::unique_ptr<DeviceEvent>(new CudaEvent(event));
}

absl::StatusOr<double> CudaDevice::SecondsBetween(const DeviceEvent& from, const DeviceEvent& to) {
  if (!Ours(from).recorded.load(std::memory_order_relaxed) ||
      !Ours(to).recorded.load(std::memory_order_relaxed))
    return FailedPrecondition("time between two events of which one was never recorded");
  float milliseconds = 0;
  TK_RETURN_IF_ERROR(
      CudaStatus(cudaEventElapsedTime(&milliseconds, Ours(from).handle(), Ours(to).handle()),
                 "cudaEventElapsedTime"));
  return double{milliseconds} * 1e-3;
}

}  // namespace turnkeep
