// Device: where the engine's KV lives. Memory, streams, events and asynchronous copies, as little
// as the layer pipeline needs, with a host implementation (host_device.h) of the same asynchrony,
// so that every pipeline is built and tested without a GPU.
//
// A stream runs what is put into it in order; two streams know of each other only through events.
// Putting work into a stream never waits for the work. A buffer given to a stream belongs to the
// operation until it has ended: until an event recorded behind it is ready, or Synchronize.
//
// Thread-safety: Device is thread-safe. A stream may be used by several threads; their order is
// then their own affair. An event may be queried by any thread while one records it.
//
//   TK_ASSIGN_OR_RETURN(auto loaded, device.NewEvent());
//   TK_RETURN_IF_ERROR(read.Copy(CopyKind::kToDevice, to, from, bytes));
//   TK_RETURN_IF_ERROR(read.Record(*loaded));
//   TK_RETURN_IF_ERROR(compute.WaitFor(*loaded));  // does not block this thread
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace turnkeep {

class Device;

enum class CopyKind : uint8_t { kToDevice = 1, kToHost, kOnDevice };

struct CopyRun {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
};

// A place in a stream, as of the last Record. Reusable: recording again forgets the old place.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  // Everything before the place has ended; also true when never recorded. Never blocks.
  virtual bool Ready() const = 0;
  // Blocks the calling thread until Ready.
  virtual absl::Status Wait() const = 0;
};

class DeviceStream {
 public:
  // Ends what was put in first. Blocks.
  virtual ~DeviceStream() = default;

  // All of these return at once. ResourceExhausted: more than kMaxStreamOperations wait;
  // Unavailable: the device is lost. Both memories stay the operation's until it has ended.
  absl::Status Copy(CopyKind kind, void* to, const void* from, size_t bytes) {
    const CopyRun run{to, from, bytes};
    return CopyBatch(kind, {&run, 1});
  }
  // As many copies, in any order, as one operation. `runs` itself is read before the return.
  virtual absl::Status CopyBatch(CopyKind kind, std::span<const CopyRun> runs) = 0;
  // The place behind everything put in so far. `event` is of the same device.
  virtual absl::Status Record(DeviceEvent& event) = 0;
  // Later operations of this stream start after the place that `event` has now. `event` may be
  // recorded again, or destroyed, right after the return.
  virtual absl::Status WaitFor(const DeviceEvent& event) = 0;
  // Runs `function` on a host thread in stream order. It must not use a device. On the host
  // device this is what a kernel is.
  virtual absl::Status Launch(std::function<void()> function) = 0;
  // Blocks until everything put in has ended.
  virtual absl::Status Synchronize() = 0;

  // cudaStream_t of a CUDA stream, null on the host device.
  virtual void* native_handle() const { return nullptr; }
};

// Move-only memory; freed by the destructor. Nothing may use it then.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Device* device, std::byte* data, size_t bytes, bool pinned)
      : device_(device), data_(data), bytes_(bytes), pinned_(pinned) {}
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(pinned_, other.pinned_);
    return *this;
  }
  inline ~DeviceMemory();

  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }
  std::span<std::byte> span() const { return {data_, bytes_}; }

 private:
  Device* device_ = nullptr;  // outlives this
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  bool pinned_ = false;
};

// Streams, events and memory of a device must be destroyed before it.
class Device {
 public:
  virtual ~Device() = default;

  // "host device, 12.0 GB/s to, 12.0 GB/s from", "NVIDIA H200 (cuda:0)".
  virtual std::string Description() const = 0;
  // False where "device" memory is host memory.
  virtual bool is_cuda() const = 0;

  // 256-byte aligned, not initialised. ResourceExhausted with the sizes.
  virtual absl::StatusOr<DeviceMemory> Allocate(size_t bytes) = 0;
  // Host memory that copies reach without staging. May block for milliseconds a gigabyte.
  virtual absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) = 0;
  // Makes existing host memory (a segment of the arena) such memory until UnregisterHost with
  // the same span, which must come before it is unmapped. AlreadyExists: it overlaps another.
  virtual absl::Status RegisterHost(std::span<std::byte> memory) = 0;
  virtual absl::Status UnregisterHost(std::span<std::byte> memory) = 0;

  virtual absl::StatusOr<std::unique_ptr<DeviceStream>> NewStream() = 0;
  virtual absl::StatusOr<std::unique_ptr<DeviceEvent>> NewEvent() = 0;
  // Time between the places of two events that are ready, in seconds. FailedPrecondition: one
  // is not ready or was never recorded.
  virtual absl::StatusOr<double> SecondsBetween(const DeviceEvent& from, const DeviceEvent& to) = 0;

 private:
  friend class DeviceMemory;
  virtual void Free(std::byte* data, size_t bytes, bool pinned) = 0;
};

inline DeviceMemory::~DeviceMemory() {
  if (device_ != nullptr) device_->Free(data_, bytes_, pinned_);
}

// Operations that may wait in one stream.
inline constexpr size_t kMaxStreamOperations = 1u << 16;

}  // namespace turnkeep
