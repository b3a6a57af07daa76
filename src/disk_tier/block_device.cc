#include "disk_tier/block_device.h"

#include <absl/synchronization/notification.h>

#include "core/status.h"
#include "core/units.h"
#include "disk_tier/posix_block_device.h"
#include "disk_tier/uring_block_device.h"

namespace turnkeep {
namespace {

absl::Status RunBlocking(BlockDevice& device, IoRequest request) {
  absl::Notification finished;
  absl::Status result;
  uint64_t expected = request.op == IoOp::kSync ? 0 : request.buffer.size();
  uint64_t transferred = 0;
  request.done = [&](const absl::Status& status, uint64_t bytes) {
    result = status;
    transferred = bytes;
    finished.Notify();
  };
  const char* name = NameOf(request.op);
  uint32_t file = request.file;
  uint64_t offset = request.offset;
  TK_RETURN_IF_ERROR(device.Submit({&request, 1}));
  finished.WaitForNotification();
  TK_RETURN_IF_ERROR(result);
  if (transferred != expected) {
    return Unavailable("{} file {} at {}: {} of {} bytes", name, file, offset, transferred,
                       expected);
  }
  return absl::OkStatus();
}

}  // namespace

const char* NameOf(IoOp op) {
  switch (op) {
    case IoOp::kRead:
      return "read";
    case IoOp::kWrite:
      return "write";
    case IoOp::kSync:
      return "sync";
  }
  return "unknown";
}

absl::Status ValidateIoRequest(const IoRequest& request, uint64_t file_bytes) {
  if (request.op == IoOp::kSync) return absl::OkStatus();
  uint64_t length = request.buffer.size();
  auto address = reinterpret_cast<uintptr_t>(request.buffer.data());
  if (length == 0 || length > kMaxIoBytes || length % kBlockBytes != 0 ||
      request.offset % kBlockBytes != 0 || address % kBlockBytes != 0) {
    return InvalidArgument("{} file {} at {}, {} bytes: not whole blocks of {} bytes",
                           NameOf(request.op), request.file, request.offset, length, kBlockBytes);
  }
  if (request.offset > file_bytes || length > file_bytes - request.offset) {
    return InvalidArgument("{} file {} at {}, {} bytes: past its end at {}", NameOf(request.op),
                           request.file, request.offset, length, file_bytes);
  }
  return absl::OkStatus();
}

absl::Status ReadBlocking(BlockDevice& device, uint32_t file, uint64_t offset,
                          std::span<std::byte> buffer) {
  return RunBlocking(device, {.op = IoOp::kRead, .file = file, .offset = offset, .buffer = buffer});
}

absl::Status WriteBlocking(BlockDevice& device, uint32_t file, uint64_t offset,
                           std::span<const std::byte> buffer) {
  // A write only reads the buffer.
  std::span<std::byte> bytes(const_cast<std::byte*>(buffer.data()), buffer.size());
  return RunBlocking(device, {.op = IoOp::kWrite, .file = file, .offset = offset, .buffer = bytes});
}

absl::Status SyncBlocking(BlockDevice& device, uint32_t file) {
  return RunBlocking(device, {.op = IoOp::kSync, .file = file});
}

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenBestBlockDevice(
    const std::string& directory, const BlockDeviceOptions& options) {
  if (options.queue_depth == 0 || options.queue_depth > kMaxIoQueueDepth) {
    return InvalidArgument("queue_depth {}: must be 1 to {}", options.queue_depth,
                           kMaxIoQueueDepth);
  }
  if (options.thread_count == 0 || options.thread_count > kMaxIoQueueDepth) {
    return InvalidArgument("thread_count {}: must be 1 to {}", options.thread_count,
                           kMaxIoQueueDepth);
  }
  std::string reason = "chosen";
  if (options.engine != BlockDeviceOptions::Engine::kThreads) {
    TK_ASSIGN_OR_RETURN(auto files, DirectoryFiles::Open(directory, options));
    auto uring = OpenUringBlockDevice(std::move(files), options);
    if (uring.ok() || options.engine == BlockDeviceOptions::Engine::kUring) return uring;
    reason = MessageOf(uring.status());
  }
  TK_ASSIGN_OR_RETURN(auto files, DirectoryFiles::Open(directory, options));
  return OpenPosixBlockDevice(std::move(files), options, reason);
}

}  // namespace turnkeep
