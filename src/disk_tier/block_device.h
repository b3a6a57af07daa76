// BlockDevice: asynchronous I/O on numbered, preallocated files of one directory.
//
// Implementations: UringBlockDevice, PosixBlockDevice (threads), and for tests
// MemoryBlockDevice and FaultBlockDevice (disk_tier/testing). All keep these rules:
//  - Offsets, lengths and buffer addresses are multiples of kBlockBytes, direct I/O or not.
//  - A buffer belongs to the operation from Submit until its `done` runs.
//  - `done` runs exactly once, on a thread of the device (several may run at once): it may
//    call Submit, and must not block or call anything else of the device.
//  - Short transfers, EINTR and EAGAIN are continued inside; an operation is whole or failed.
//  - Operations run in no particular order. A sync covers the writes whose `done` has run
//    before the sync was submitted, and no others.
//
// Thread-safe. File calls (CreateFile ... ListFiles) block on I/O; Submit does not.
//
//   std::vector<IoRequest> batch;
//   batch.push_back({.op = IoOp::kRead, .file = 1, .offset = 4096, .buffer = slot,
//                    .done = [](const absl::Status& status, uint64_t bytes) {...}});
//   TK_RETURN_IF_ERROR(device->Submit(absl::MakeSpan(batch)));
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/functional/any_invocable.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/limits.h"

namespace turnkeep {

enum class IoOp : uint8_t { kRead = 1, kWrite, kSync };
const char* NameOf(IoOp op);

// `bytes` is what was transferred: the whole buffer when `status` is OK.
using IoDone = absl::AnyInvocable<void(const absl::Status& status, uint64_t bytes)>;

struct IoRequest {
  IoOp op = IoOp::kRead;
  uint32_t file = 0;
  uint64_t offset = 0;
  std::span<std::byte> buffer;  // kWrite only reads it; kSync ignores it
  IoDone done;
};

// Operations submitted and not yet finished, over all callers.
inline constexpr uint32_t kMaxQueuedIo = 1u << 15;
// Largest transfer of one request.
inline constexpr uint64_t kMaxIoBytes = kMaxChunkBytes;

struct DeviceFile {
  uint32_t file = 0;
  uint64_t bytes = 0;
};

struct BlockDeviceStats {
  uint64_t reads = 0;
  uint64_t read_bytes = 0;
  uint64_t writes = 0;
  uint64_t write_bytes = 0;
  uint64_t syncs = 0;
  uint64_t errors = 0;
  uint32_t in_flight = 0;  // given to the kernel
  uint32_t queued = 0;     // waiting for room
};

class BlockDevice {
 public:
  // Waits until every submitted operation has finished and its `done` has run.
  virtual ~BlockDevice() = default;

  // Makes a file of `bytes` bytes, its space reserved and its name durable, and opens
  // it. Content is unspecified (zero where never written). AlreadyExists when there is
  // one; ResourceExhausted when the file system is full, and then nothing is left behind.
  virtual absl::Status CreateFile(uint32_t file, uint64_t bytes) = 0;
  // Opens an existing file and returns its size. Opening an open file is allowed.
  virtual absl::StatusOr<uint64_t> OpenFile(uint32_t file) = 0;
  // Closes and removes a file and gives its space back. No operation on it may be running.
  virtual absl::Status DeleteFile(uint32_t file) = 0;
  // Every numbered file of the directory, by number, open or not.
  virtual absl::StatusOr<std::vector<DeviceFile>> ListFiles() = 0;

  // Starts all of `requests` (moved from) or none. InvalidArgument: misaligned, past
  // the end, or a file that is not open. ResourceExhausted: kMaxQueuedIo operations are
  // unfinished. After an error no `done` runs and `requests` are untouched.
  virtual absl::Status Submit(std::span<IoRequest> requests) = 0;

  // Offers memory for I/O without per-operation page pinning. A hint: it is pinned in
  // pieces, at the first operation that touches a piece, and plain I/O is used where that is
  // refused (Describe() then says why). Until UnregisterMemory the memory must not be unmapped,
  // remapped or hole-punched. Regions must not overlap.
  virtual void RegisterMemory(std::span<std::byte> memory) = 0;
  // Blocks until no operation transfers to or from the region; not for any `done`, so it
  // may be called under a lock that a `done` takes, and inside one. `memory` as given to
  // RegisterMemory; it may be unmapped afterwards, and other memory registered at its address.
  virtual void UnregisterMemory(std::span<std::byte> memory) = 0;

  // What is in use and why, one line for people: "io_uring, direct I/O, 3 of 3 segments
  // registered", "pread/pwrite threads (io_uring_setup: Operation not permitted), ...".
  virtual std::string Describe() const = 0;
  virtual BlockDeviceStats Stats() const = 0;
};

// The part of Submit's InvalidArgument that needs only the file's size.
absl::Status ValidateIoRequest(const IoRequest& request, uint64_t file_bytes);

// One operation, waited for. For opening, recovery and tools; never on a `done` thread.
absl::Status ReadBlocking(BlockDevice& device, uint32_t file, uint64_t offset,
                          std::span<std::byte> buffer);
absl::Status WriteBlocking(BlockDevice& device, uint32_t file, uint64_t offset,
                           std::span<const std::byte> buffer);
absl::Status SyncBlocking(BlockDevice& device, uint32_t file);

struct BlockDeviceOptions {
  enum class Engine : uint8_t { kAuto = 1, kUring, kThreads };
  Engine engine = Engine::kAuto;
  bool direct_io = true;       // false: never try O_DIRECT
  bool allow_buffered = true;  // false: a file system that refuses O_DIRECT is an error
  uint32_t queue_depth = 64;   // 1..kMaxIoQueueDepth, operations in the kernel at once
  uint32_t thread_count = 8;   // of the thread fallback; its depth
  bool register_memory = true;
};

// Opens `directory` (made if missing, mode 0700) with io_uring and direct I/O, or what
// comes nearest: threads where the kernel refuses io_uring, buffered where the file
// system refuses O_DIRECT. Describe() tells which and why.
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenBestBlockDevice(const std::string& directory,
                                                                 const BlockDeviceOptions& options);

}  // namespace turnkeep
