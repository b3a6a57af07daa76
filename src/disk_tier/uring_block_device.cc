// One thread owns the ring: it takes what callers queued, keeps up to queue_depth
// operations in the kernel, and runs the completions. It refills the ring before it
// runs completions, so that the drive works while they do.
#include "disk_tier/uring_block_device.h"

#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <iterator>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/synchronization/notification.h>

#include "core/check.h"
#include "core/status.h"
#include "core/units.h"
#include "disk_tier/device_counters.h"
#include "disk_tier/uring_memory.h"

namespace turnkeep {
namespace {

constexpr uint64_t kMaxEntryBytes = 256 * kMiB;  // the kernel stops at 2 GiB less a page
constexpr int kMaxStalls = 64;                   // results without progress before giving up

// Memory that was registered and not yet unregistered, as the callers see it.
struct RegisteredMemory {
  std::span<std::byte> memory;
  uint32_t transfers = 0;  // submitted operations in it whose transfer has not ended
};

struct Operation {
  IoRequest request;
  int fd = -1;
  uint64_t transferred = 0;
  int stalls = 0;
  UringMemory::Region* region = nullptr;   // the ring's thread's
  RegisteredMemory* registered = nullptr;  // counts this operation
  absl::Status status;
};

struct MemoryChange {
  std::span<std::byte> memory;
  bool add = true;
};

class UringBlockDevice : public BlockDevice {
 public:
  UringBlockDevice(std::unique_ptr<DirectoryFiles> files, const BlockDeviceOptions& options)
      : files_(std::move(files)), options_(options) {}

  absl::Status Start() {
    wake_fd_ = eventfd(0, EFD_CLOEXEC);
    if (wake_fd_ < 0) return ErrnoStatus(errno, "eventfd");
    absl::Notification started;
    absl::Status result;
    thread_ = std::thread([&] {
      result = SetUp();
      bool ok = result.ok();
      started.Notify();
      if (ok) Run();
    });
    started.WaitForNotification();
    return result;
  }

  ~UringBlockDevice() override {
    if (thread_.joinable()) {
      {
        absl::MutexLock lock(&mutex_);
        stopping_ = true;
        WakeLocked();
      }
      thread_.join();
    }
    if (wake_fd_ >= 0) close(wake_fd_);
  }

  absl::Status CreateFile(uint32_t file, uint64_t bytes) override {
    return files_->CreateFile(file, bytes);
  }
  absl::StatusOr<uint64_t> OpenFile(uint32_t file) override { return files_->OpenFile(file); }
  absl::Status DeleteFile(uint32_t file) override { return files_->DeleteFile(file); }
  absl::StatusOr<std::vector<DeviceFile>> ListFiles() override { return files_->ListFiles(); }

  absl::Status Submit(std::span<IoRequest> requests) override {
    std::vector<std::unique_ptr<Operation>> operations;
    operations.reserve(requests.size());
    for (const IoRequest& request : requests) {
      TK_ASSIGN_OR_RETURN(DirectoryFiles::Handle handle, files_->Find(request.file));
      TK_RETURN_IF_ERROR(ValidateIoRequest(request, handle.bytes));
      operations.push_back(std::make_unique<Operation>());
      operations.back()->fd = handle.fd;
    }
    absl::MutexLock lock(&mutex_);
    if (unfinished_ + requests.size() > kMaxQueuedIo) {
      return ResourceExhausted("{} operations are unfinished, at most {}", unfinished_,
                               kMaxQueuedIo);
    }
    unfinished_ += static_cast<uint32_t>(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      operations[i]->request = std::move(requests[i]);
      operations[i]->registered = FindRegistered(operations[i]->request);
      if (operations[i]->registered != nullptr) ++operations[i]->registered->transfers;
      incoming_.push_back(std::move(operations[i]));
    }
    WakeLocked();
    return absl::OkStatus();
  }

  void RegisterMemory(std::span<std::byte> memory) override {
    absl::MutexLock lock(&mutex_);
    registered_[memory.data()] = {memory};
    changes_.push_back({memory});
    WakeLocked();
  }

  // The ring's thread gives the pinned pages back later, in order with other changes: waiting
  // for it here could wait for a `done` that waits for the caller.
  void UnregisterMemory(std::span<std::byte> memory) override {
    absl::MutexLock lock(&mutex_);
    const auto it = registered_.find(memory.data());
    if (it == registered_.end()) return;
    const RegisteredMemory* registered = &it->second;
    const auto unused = [registered] { return registered->transfers == 0; };
    mutex_.Await(absl::Condition(&unused));
    registered_.erase(memory.data());
    changes_.push_back({memory, /*add=*/false});
    WakeLocked();
  }

  std::string Describe() const override {
    return fmt::format("io_uring depth {}, {}, {}", options_.queue_depth, files_->access(),
                       memory_.Describe());
  }

  BlockDeviceStats Stats() const override {
    uint32_t in_kernel = in_kernel_.load(std::memory_order_relaxed);
    absl::MutexLock lock(&mutex_);
    return counters_.Read(in_kernel, unfinished_ > in_kernel ? unfinished_ - in_kernel : 0);
  }

 private:
  absl::Status SetUp() {
    io_uring_params params{};
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    unsigned entries = options_.queue_depth + 1;  // and the wake-up read
    int rc = io_uring_queue_init_params(entries, &ring_, &params);
    if (rc == -EINVAL) {  // before Linux 6.1
      params = {};
      rc = io_uring_queue_init_params(entries, &ring_, &params);
    }
    if (rc < 0) return ErrnoStatus(-rc, "io_uring_setup");
    io_uring_probe* probe = io_uring_get_probe_ring(&ring_);
    bool supported = probe != nullptr && io_uring_opcode_supported(probe, IORING_OP_READ) &&
                     io_uring_opcode_supported(probe, IORING_OP_WRITE) &&
                     io_uring_opcode_supported(probe, IORING_OP_FSYNC);
    if (probe != nullptr) io_uring_free_probe(probe);
    if (!supported) {
      io_uring_queue_exit(&ring_);
      return Unavailable("io_uring: the kernel lacks read, write or fsync");
    }
    memory_.Init(&ring_, options_.register_memory);
    return absl::OkStatus();
  }

  void Run() {
    thread_id_ = std::this_thread::get_id();
    ArmWake();
    while (!TakeIncoming()) {
      Fill();
      int rc = io_uring_submit_and_wait(&ring_, 1);
      // EINTR: a signal. EAGAIN, EBUSY: the kernel wants completions reaped first.
      TK_CHECK(rc >= 0 || rc == -EINTR || rc == -EAGAIN || rc == -EBUSY);
      Reap();
      Fill();
      if (io_uring_sq_ready(&ring_) > 0) {
        rc = io_uring_submit(&ring_);
        TK_CHECK(rc >= 0 || rc == -EINTR || rc == -EAGAIN || rc == -EBUSY);
      }
      Finish();
    }
    io_uring_queue_exit(&ring_);
  }

  // Moves what callers queued to the thread's own list. True when the device is closing and
  // nothing is left to do.
  bool TakeIncoming() {
    std::vector<std::unique_ptr<Operation>> operations;
    std::vector<MemoryChange> changes;
    bool last = false;
    {
      absl::MutexLock lock(&mutex_);
      operations.swap(incoming_);
      changes.swap(changes_);
      // Changes of memory that are still here are made first: nobody wakes the thread again.
      last = stopping_ && unfinished_ == 0;
      wake_wanted_ = true;
    }
    // Before the operations: those in memory that is being removed were taken in and have
    // ended, and those in new memory come after its registration.
    for (const MemoryChange& change : changes) {
      if (change.add) {
        memory_.Add(change.memory);
      } else {
        memory_.Remove(change.memory);
      }
    }
    for (auto& operation : operations) {
      if (operation->request.op != IoOp::kSync) {
        operation->region = memory_.Acquire(operation->request.buffer);
      }
      waiting_.push_back(operation.release());
    }
    return last;
  }

  void Fill() {
    while (!waiting_.empty() && in_kernel_.load(std::memory_order_relaxed) < options_.queue_depth) {
      io_uring_sqe* entry = io_uring_get_sqe(&ring_);
      if (entry == nullptr) return;
      Prepare(waiting_.front(), entry);
      waiting_.pop_front();
      in_kernel_.fetch_add(1, std::memory_order_relaxed);
    }
  }

  void Prepare(Operation* operation, io_uring_sqe* entry) {
    const IoRequest& request = operation->request;
    if (request.op == IoOp::kSync) {
      io_uring_prep_fsync(entry, operation->fd, IORING_FSYNC_DATASYNC);
      io_uring_sqe_set_data(entry, operation);
      return;
    }
    std::byte* data = request.buffer.data() + operation->transferred;
    uint64_t length = std::min(request.buffer.size() - operation->transferred, kMaxEntryBytes);
    uint64_t offset = request.offset + operation->transferred;
    int index = -1;
    if (operation->region != nullptr) {
      uint64_t bytes_left = 0;
      index = memory_.FixedIndex(operation->region, data, &bytes_left);
      if (index >= 0) length = std::min(length, bytes_left);
    }
    auto count = static_cast<unsigned>(length);
    if (request.op == IoOp::kRead) {
      if (index >= 0) {
        io_uring_prep_read_fixed(entry, operation->fd, data, count, offset, index);
      } else {
        io_uring_prep_read(entry, operation->fd, data, count, offset);
      }
    } else if (index >= 0) {
      io_uring_prep_write_fixed(entry, operation->fd, data, count, offset, index);
    } else {
      io_uring_prep_write(entry, operation->fd, data, count, offset);
    }
    io_uring_sqe_set_data(entry, operation);
  }

  void ArmWake() {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    TK_CHECK(entry != nullptr);  // one entry more than the depth
    io_uring_prep_read(entry, wake_fd_, &wake_count_, sizeof(wake_count_), 0);
    io_uring_sqe_set_data(entry, nullptr);
  }

  void Reap() {
    unsigned head = 0;
    unsigned count = 0;
    bool woken = false;
    io_uring_cqe* completion = nullptr;
    io_uring_for_each_cqe(&ring_, head, completion) {
      ++count;
      auto* operation = static_cast<Operation*>(io_uring_cqe_get_data(completion));
      if (operation == nullptr) {
        woken = true;
        continue;
      }
      in_kernel_.fetch_sub(1, std::memory_order_relaxed);
      if (Advance(operation, completion->res)) {
        finished_.push_back(operation);
      } else {
        waiting_.push_front(operation);
      }
    }
    io_uring_cq_advance(&ring_, count);
    if (woken) ArmWake();
  }

  // Takes one result in; false when the operation has to go on.
  bool Advance(Operation* operation, int result) {
    const IoRequest& request = operation->request;
    auto object = [&] {
      return fmt::format("{} {} at {}, {} bytes", NameOf(request.op), files_->NameOf(request.file),
                         request.offset, request.buffer.size());
    };
    if (result < 0 && result != -EINTR && result != -EAGAIN) {
      operation->status = ErrnoStatus(-result, object());
      return true;
    }
    if (request.op == IoOp::kSync && result >= 0) return true;
    // Direct I/O goes on from a block boundary.
    uint64_t progress = result > 0 ? RoundDown(static_cast<uint64_t>(result), kBlockBytes) : 0;
    operation->transferred += progress;
    if (request.op != IoOp::kSync && operation->transferred == request.buffer.size()) return true;
    if (progress == 0 && ++operation->stalls >= kMaxStalls) {
      operation->status =
          Unavailable("{}: no progress after {} bytes", object(), operation->transferred);
      return true;
    }
    return false;
  }

  void Finish() {
    if (finished_.empty()) return;
    {
      absl::MutexLock lock(&mutex_);
      unfinished_ -= static_cast<uint32_t>(finished_.size());
      for (const Operation* operation : finished_) {
        if (operation->registered != nullptr) --operation->registered->transfers;
      }
    }
    for (Operation* raw : finished_) {
      std::unique_ptr<Operation> operation(raw);
      counters_.Count(operation->request.op, operation->transferred, operation->status.ok());
      operation->request.done(operation->status, operation->transferred);
      if (operation->region != nullptr) memory_.Release(operation->region);
    }
    finished_.clear();
  }

  // The registered memory that holds all of the buffer; null if none.
  RegisteredMemory* FindRegistered(const IoRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (request.op == IoOp::kSync) return nullptr;
    const std::byte* begin = request.buffer.data();
    auto it = registered_.upper_bound(begin);
    if (it == registered_.begin()) return nullptr;
    RegisteredMemory* registered = &std::prev(it)->second;
    const std::byte* end = registered->memory.data() + registered->memory.size();
    return begin + request.buffer.size() <= end ? registered : nullptr;
  }

  void WakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    // The thread itself takes what is queued before it sleeps.
    if (!wake_wanted_ || std::this_thread::get_id() == thread_id_) return;
    wake_wanted_ = false;
    uint64_t one = 1;
    ssize_t n = write(wake_fd_, &one, sizeof(one));
    TK_CHECK(n == sizeof(one));
  }

  const std::unique_ptr<DirectoryFiles> files_;
  const BlockDeviceOptions options_;
  DeviceCounters counters_;
  int wake_fd_ = -1;  // set in Start
  std::thread thread_;

  mutable absl::Mutex mutex_;
  std::vector<std::unique_ptr<Operation>> incoming_ ABSL_GUARDED_BY(mutex_);
  std::vector<MemoryChange> changes_ ABSL_GUARDED_BY(mutex_);
  std::map<const std::byte*, RegisteredMemory> registered_ ABSL_GUARDED_BY(mutex_);  // by start
  uint32_t unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  bool wake_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  // Written by the thread before its first TakeIncoming sets wake_wanted_ under the mutex.
  std::thread::id thread_id_;
  std::atomic<uint32_t> in_kernel_{0};  // written by the thread, read by Stats: orders nothing

  // The thread's own.
  io_uring ring_{};
  UringMemory memory_;  // Describe may be called by anyone
  std::deque<Operation*> waiting_;
  std::vector<Operation*> finished_;
  uint64_t wake_count_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenUringBlockDevice(
    std::unique_ptr<DirectoryFiles> files, const BlockDeviceOptions& options) {
  auto device = std::make_unique<UringBlockDevice>(std::move(files), options);
  TK_RETURN_IF_ERROR(device->Start());
  return std::unique_ptr<BlockDevice>(std::move(device));
}

}  // namespace turnkeep
