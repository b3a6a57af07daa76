#include "disk_tier/posix_block_device.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "core/status.h"
#include "core/units.h"
#include "disk_tier/device_counters.h"

namespace turnkeep {
namespace {

// One system call transfers at most this much (Linux stops at 2 GiB less a page).
constexpr uint64_t kMaxCallBytes = kGiB;
constexpr int kMaxStalls = 64;

class PosixBlockDevice : public BlockDevice {
 public:
  PosixBlockDevice(std::unique_ptr<DirectoryFiles> files, const BlockDeviceOptions& options,
                   std::string reason)
      : files_(std::move(files)), reason_(std::move(reason)) {
    threads_.reserve(options.thread_count);
    running_.resize(options.thread_count);
    for (uint32_t i = 0; i < options.thread_count; ++i)
      threads_.emplace_back([this, i] { Run(i); });
  }

  ~PosixBlockDevice() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }

  absl::Status CreateFile(uint32_t file, uint64_t bytes) override {
    return files_->CreateFile(file, bytes);
  }
  absl::StatusOr<uint64_t> OpenFile(uint32_t file) override { return files_->OpenFile(file); }
  absl::Status DeleteFile(uint32_t file) override { return files_->DeleteFile(file); }
  absl::StatusOr<std::vector<DeviceFile>> ListFiles() override { return files_->ListFiles(); }

  absl::Status Submit(std::span<IoRequest> requests) override {
    std::vector<int> fds;
    fds.reserve(requests.size());
    for (const IoRequest& request : requests) {
      TK_ASSIGN_OR_RETURN(DirectoryFiles::Handle handle, files_->Find(request.file));
      TK_RETURN_IF_ERROR(ValidateIoRequest(request, handle.bytes));
      fds.push_back(handle.fd);
    }
    absl::MutexLock lock(&mutex_);
    if (unfinished_ + requests.size() > kMaxQueuedIo) {
      return ResourceExhausted("{} operations are unfinished, at most {}", unfinished_,
                               kMaxQueuedIo);
    }
    unfinished_ += static_cast<uint32_t>(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      queue_.push_back({fds[i], std::move(requests[i])});
    }
    return absl::OkStatus();
  }

  void RegisterMemory(std::span<std::byte>) override {}  // nothing to gain for pread
  void UnregisterMemory(std::span<std::byte> memory) override {
    auto unused = [this, memory]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      for (const Operation& operation : queue_) {
        if (Overlap(operation.request.buffer, memory)) return false;
      }
      for (std::span<std::byte> buffer : running_) {
        if (Overlap(buffer, memory)) return false;
      }
      return true;
    };
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&unused));
  }

  std::string Describe() const override {
    return fmt::format("{} pread/pwrite threads ({}), {}", threads_.size(), reason_,
                       files_->access());
  }

  BlockDeviceStats Stats() const override {
    absl::MutexLock lock(&mutex_);
    auto queued = static_cast<uint32_t>(queue_.size());
    return counters_.Read(unfinished_ - queued, queued);
  }

 private:
  struct Operation {
    int fd;
    IoRequest request;
  };

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !queue_.empty() || (stopping_ && unfinished_ == 0);
  }

  static bool Overlap(std::span<std::byte> a, std::span<std::byte> b) {
    return !a.empty() && a.data() < b.data() + b.size() && b.data() < a.data() + a.size();
  }

  void Run(uint32_t self) {
    while (true) {
      Operation operation;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &PosixBlockDevice::HasWork));
        if (queue_.empty()) return;
        operation = std::move(queue_.front());
        queue_.pop_front();
        running_[self] = operation.request.buffer;
      }
      IoRequest& request = operation.request;
      uint64_t transferred = 0;
      absl::Status status = Execute(operation.fd, request, &transferred);
      counters_.Count(request.op, transferred, status.ok());
      {
        absl::MutexLock lock(&mutex_);
        --unfinished_;        // before `done`, which may submit the next
        running_[self] = {};  // and may take the buffer's memory back
      }
      request.done(status, transferred);
    }
  }

  absl::Status Execute(int fd, const IoRequest& request, uint64_t* transferred) {
    auto object = [&] {
      return fmt::format("{} {} at {}, {} bytes", NameOf(request.op), files_->NameOf(request.file),
                         request.offset, request.buffer.size());
    };
    if (request.op == IoOp::kSync) {
      int rc = 0;
      do {
        rc = fdatasync(fd);
      } while (rc != 0 && errno == EINTR);
      return rc == 0 ? absl::OkStatus() : ErrnoStatus(errno, object());
    }
    int stalls = 0;
    while (*transferred < request.buffer.size()) {
      std::byte* data = request.buffer.data() + *transferred;
      uint64_t length = std::min(request.buffer.size() - *transferred, kMaxCallBytes);
      auto offset = static_cast<off_t>(request.offset + *transferred);
      ssize_t n = request.op == IoOp::kRead ? pread(fd, data, length, offset)
                                            : pwrite(fd, data, length, offset);
      if (n < 0 && errno != EINTR && errno != EAGAIN) return ErrnoStatus(errno, object());
      // Direct I/O goes on from a block boundary.
      uint64_t progress = n > 0 ? RoundDown(static_cast<uint64_t>(n), kBlockBytes) : 0;
      *transferred += progress;
      if (progress == 0 && ++stalls >= kMaxStalls) {
        return Unavailable("{}: no progress after {} bytes", object(), *transferred);
      }
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<DirectoryFiles> files_;
  const std::string reason_;
  DeviceCounters counters_;
  mutable absl::Mutex mutex_;
  std::deque<Operation> queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::span<std::byte>> running_ ABSL_GUARDED_BY(mutex_);  // by thread
  uint32_t unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // set in the constructor
};

}  // namespace

std::unique_ptr<BlockDevice> OpenPosixBlockDevice(std::unique_ptr<DirectoryFiles> files,
                                                  const BlockDeviceOptions& options,
                                                  std::string reason) {
  return std::make_unique<PosixBlockDevice>(std::move(files), options, std::move(reason));
}

}  // namespace turnkeep
