#include "disk_tier/testing/fault_block_device.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <set>
#include <thread>
#include <utility>

#include <absl/base/thread_annotations.h>
#include <absl/functional/any_invocable.h>
#include <absl/synchronization/mutex.h>

#include "core/status.h"
#include "core/units.h"
#include "disk_tier/aligned_buffer.h"

namespace turnkeep {
namespace {

DeviceOp DeviceOpOf(IoOp op) {
  switch (op) {
    case IoOp::kRead:
      return DeviceOp::kRead;
    case IoOp::kWrite:
      return DeviceOp::kWrite;
    case IoOp::kSync:
      return DeviceOp::kSync;
  }
  return DeviceOp::kSync;
}

bool Changes(DeviceOp op) {
  return op != DeviceOp::kRead && op != DeviceOp::kOpen && op != DeviceOp::kList;
}

void FlipBit(std::span<std::byte> bytes, uint64_t bit) {
  bit %= bytes.size() * 8;
  bytes[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
}

}  // namespace

const char* NameOf(DeviceOp op) {
  constexpr const char* kNames[] = {"",       "read", "write",  "sync",
                                    "create", "open", "delete", "list"};
  return kNames[static_cast<size_t>(op)];
}

const char* NameOf(FaultKind kind) {
  constexpr const char* kNames[] = {"",         "eio",       "no_space", "short", "torn",
                                    "bit_flip", "misdirect", "drop",     "delay"};
  return kNames[static_cast<size_t>(kind)];
}

std::string ToString(const TracedOp& op) {
  return fmt::format("#{} {} file {} at {}, {} bytes{}", op.number, NameOf(op.op), op.file,
                     op.offset, op.bytes, op.faulted ? " (fault)" : "");
}

class FaultBlockDevice::Impl {
 public:
  explicit Impl(std::unique_ptr<BlockDevice> device)
      : device_(std::move(device)), thread_([this] { Run(); }) {}

  ~Impl() {
    Release();
    device_.reset();  // waits for its operations; nothing comes after them
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

  BlockDevice& device() { return *device_; }

  void Inject(const Fault& fault) {
    absl::MutexLock lock(&mutex_);
    faults_.push_back(fault);
  }
  void ClearFaults() {
    absl::MutexLock lock(&mutex_);
    faults_.clear();
    drop_from_ = UINT64_MAX;
  }
  void DropAllAfter(uint64_t at) {
    absl::MutexLock lock(&mutex_);
    drop_from_ = at;
  }
  void WaitForDelayed(uint32_t count) {
    absl::MutexLock lock(&mutex_);
    auto enough = [this, count]()
                      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return delayed_.size() >= count; };
    mutex_.Await(absl::Condition(&enough));
  }
  uint64_t operation_count() const {
    absl::MutexLock lock(&mutex_);
    return next_number_;
  }
  std::vector<TracedOp> Trace() const {
    absl::MutexLock lock(&mutex_);
    return trace_;
  }

  void Release() {
    std::vector<IoRequest> released;
    {
      absl::MutexLock lock(&mutex_);
      released.swap(delayed_);
      released_ = true;
    }
    for (IoRequest& request : released) Pass(std::move(request));
  }

  // False: Release has come first.
  bool Delay(IoRequest* request) {
    absl::MutexLock lock(&mutex_);
    if (!released_) delayed_.push_back(std::move(*request));
    return !released_;
  }

  // Numbers a file call; the fault's status, or OK with `dropped` set when it must not be made.
  absl::Status FileCall(DeviceOp op, uint32_t file, uint64_t bytes, bool* dropped) {
    absl::MutexLock lock(&mutex_);
    Fault fault;
    bool faulted = Number({.op = op, .file = file, .bytes = bytes}, &fault, dropped);
    if (*dropped && op == DeviceOp::kCreate) phantom_files_.insert(file);
    return faulted ? FaultStatus(fault, op, file) : absl::OkStatus();
  }

  absl::Status Submit(std::span<IoRequest> requests);

 private:
  // What becomes of one request: passed on (changed perhaps), or completed here.
  struct Outcome {
    bool pass = true;
    bool delay = false;
    absl::Status status;
    uint64_t bytes = 0;
  };

  static absl::Status FaultStatus(const Fault& fault, DeviceOp op, uint32_t file) {
    if (fault.kind == FaultKind::kNoSpace) {
      return ResourceExhausted("{} file {}: injected: no space left", NameOf(op), file);
    }
    if (fault.kind == FaultKind::kEio) {
      return Unavailable("{} file {}: injected: input/output error", NameOf(op), file);
    }
    return absl::OkStatus();
  }

  bool Number(TracedOp op, Fault* fault, bool* dropped) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    op.number = next_number_++;
    *dropped = op.number >= drop_from_ && Changes(op.op);
    for (const Fault& candidate : faults_) {
      bool hit = candidate.for_good ? op.number >= candidate.at : op.number == candidate.at;
      bool admitted = candidate.only.empty() ||
                      std::count(candidate.only.begin(), candidate.only.end(), op.op) > 0;
      if (!hit || !admitted) continue;
      *fault = candidate;
      op.faulted = true;
      if (candidate.kind == FaultKind::kDrop && Changes(op.op)) *dropped = true;
      break;
    }
    bool faulted = op.faulted;
    op.faulted = faulted || *dropped;
    trace_.push_back(op);
    return faulted;
  }

  Outcome Shape(const Fault& fault, IoRequest* request);
  void Misdirect(int64_t shift, IoRequest* request);

  // Hands a request to the device; a refusal becomes its result.
  void Pass(IoRequest request) {
    absl::Status status = device_->Submit({&request, 1});
    if (!status.ok()) Complete(std::move(request.done), status, 0);
  }

  void Complete(IoDone done, absl::Status status, uint64_t bytes) {
    absl::MutexLock lock(&mutex_);
    completions_.push_back([done = std::move(done), status = std::move(status), bytes]() mutable {
      done(status, bytes);
    });
  }

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !completions_.empty() || stopping_;
  }

  void Run() {
    while (true) {
      absl::AnyInvocable<void()> completion;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &Impl::HasWork));
        if (completions_.empty()) return;
        completion = std::move(completions_.front());
        completions_.pop_front();
      }
      completion();
    }
  }

  std::unique_ptr<BlockDevice> device_;
  mutable absl::Mutex mutex_;
  std::vector<Fault> faults_ ABSL_GUARDED_BY(mutex_);
  uint64_t drop_from_ ABSL_GUARDED_BY(mutex_) = UINT64_MAX;
  uint64_t next_number_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<TracedOp> trace_ ABSL_GUARDED_BY(mutex_);
  std::set<uint32_t> phantom_files_ ABSL_GUARDED_BY(mutex_);  // whose creation was dropped
  std::vector<IoRequest> delayed_ ABSL_GUARDED_BY(mutex_);
  bool released_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<absl::AnyInvocable<void()>> completions_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

void FaultBlockDevice::Impl::Misdirect(int64_t shift, IoRequest* request) {
  absl::StatusOr<uint64_t> file_bytes = device_->OpenFile(request->file);
  if (!file_bytes.ok() || *file_bytes <= request->buffer.size()) return;
  auto places = static_cast<int64_t>((*file_bytes - request->buffer.size()) / kBlockBytes + 1);
  auto place = static_cast<int64_t>(request->offset / kBlockBytes) +
               shift / static_cast<int64_t>(kBlockBytes);
  place = ((place % places) + places) % places;
  request->offset = static_cast<uint64_t>(place) * kBlockBytes;
}

FaultBlockDevice::Impl::Outcome FaultBlockDevice::Impl::Shape(const Fault& fault,
                                                              IoRequest* request) {
  uint64_t whole = request->op == IoOp::kSync ? 0 : request->buffer.size();
  uint64_t part = std::min(RoundDown(fault.bytes, kBlockBytes), whole);
  switch (fault.kind) {
    case FaultKind::kEio:
    case FaultKind::kNoSpace:
      return {.pass = false, .status = FaultStatus(fault, DeviceOpOf(request->op), request->file)};
    case FaultKind::kDrop:
      return {.pass = false, .bytes = whole};
    case FaultKind::kDelay:
      return {.pass = true, .delay = true};
    case FaultKind::kShort:
      if (part == 0) return {.pass = false, .bytes = 0};
      request->buffer = request->buffer.first(part);
      return {};
    case FaultKind::kTorn:
      if (request->op != IoOp::kWrite) return {};
      if (part == 0) return {.pass = false, .bytes = whole};
      request->buffer = request->buffer.first(part);
      request->done = [whole, done = std::move(request->done)](const absl::Status& status,
                                                               uint64_t) mutable {
        done(status, status.ok() ? whole : 0);
      };
      return {};
    case FaultKind::kMisdirect:
      if (request->op != IoOp::kSync) Misdirect(fault.offset_shift, request);
      return {};
    case FaultKind::kBitFlip:
      if (request->op == IoOp::kRead) {
        request->done = [buffer = request->buffer, bit = fault.bit,
                         done = std::move(request->done)](const absl::Status& status,
                                                          uint64_t bytes) mutable {
          if (status.ok()) FlipBit(buffer, bit);
          done(status, bytes);
        };
      } else if (request->op == IoOp::kWrite) {
        AlignedBuffer copy(whole);
        std::memcpy(copy.data(), request->buffer.data(), whole);
        FlipBit(copy.span(), fault.bit);
        request->buffer = copy.span().first(whole);
        // The copy lives until the operation is over.
        request->done = [copy = std::move(copy), done = std::move(request->done)](
                            const absl::Status& status, uint64_t bytes) mutable {
          done(status, bytes);
        };
      }
      return {};
  }
  return {};
}

absl::Status FaultBlockDevice::Impl::Submit(std::span<IoRequest> requests) {
  // The common case passes the batch on whole, so that a refusal leaves it untouched.
  std::vector<std::pair<size_t, Fault>> faulted;
  {
    absl::MutexLock lock(&mutex_);
    for (size_t i = 0; i < requests.size(); ++i) {
      const IoRequest& request = requests[i];
      Fault fault;
      bool dropped = false;
      bool hit = Number({.op = DeviceOpOf(request.op),
                         .file = request.file,
                         .offset = request.offset,
                         .bytes = request.op == IoOp::kSync ? 0 : request.buffer.size()},
                        &fault, &dropped);
      if (dropped) fault.kind = FaultKind::kDrop;
      bool phantom = !dropped && phantom_files_.contains(request.file);
      if (phantom) fault.kind = FaultKind::kEio;
      if (hit && fault.kind == FaultKind::kDelay && released_) continue;
      if (hit || dropped || phantom) faulted.push_back({i, fault});
    }
  }
  if (faulted.empty()) return device_->Submit(requests);
  std::vector<IoRequest> clean;
  size_t next = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (next < faulted.size() && faulted[next].first == i) {
      ++next;
    } else {
      clean.push_back(std::move(requests[i]));
    }
  }
  for (const auto& [i, fault] : faulted) {
    IoRequest request = std::move(requests[i]);
    Outcome outcome = Shape(fault, &request);
    if (!outcome.pass) {
      Complete(std::move(request.done), outcome.status, outcome.bytes);
    } else if (!outcome.delay || !Delay(&request)) {
      Pass(std::move(request));
    }
  }
  for (IoRequest& request : clean) Pass(std::move(request));
  return absl::OkStatus();
}

FaultBlockDevice::FaultBlockDevice(std::unique_ptr<BlockDevice> device)
    : impl_(std::make_unique<Impl>(std::move(device))) {}
FaultBlockDevice::~FaultBlockDevice() = default;

void FaultBlockDevice::Inject(const Fault& fault) { impl_->Inject(fault); }
void FaultBlockDevice::ClearFaults() { impl_->ClearFaults(); }
void FaultBlockDevice::DropAllAfter(uint64_t at) { impl_->DropAllAfter(at); }
void FaultBlockDevice::Release() { impl_->Release(); }
void FaultBlockDevice::WaitForDelayed(uint32_t count) { impl_->WaitForDelayed(count); }
uint64_t FaultBlockDevice::operation_count() const { return impl_->operation_count(); }
std::vector<TracedOp> FaultBlockDevice::Trace() const { return impl_->Trace(); }

absl::Status FaultBlockDevice::CreateFile(uint32_t file, uint64_t bytes) {
  bool dropped = false;
  TK_RETURN_IF_ERROR(impl_->FileCall(DeviceOp::kCreate, file, bytes, &dropped));
  return dropped ? absl::OkStatus() : impl_->device().CreateFile(file, bytes);
}

absl::StatusOr<uint64_t> FaultBlockDevice::OpenFile(uint32_t file) {
  bool dropped = false;
  TK_RETURN_IF_ERROR(impl_->FileCall(DeviceOp::kOpen, file, 0, &dropped));
  return impl_->device().OpenFile(file);
}

absl::Status FaultBlockDevice::DeleteFile(uint32_t file) {
  bool dropped = false;
  TK_RETURN_IF_ERROR(impl_->FileCall(DeviceOp::kDelete, file, 0, &dropped));
  return dropped ? absl::OkStatus() : impl_->device().DeleteFile(file);
}

absl::StatusOr<std::vector<DeviceFile>> FaultBlockDevice::ListFiles() {
  bool dropped = false;
  TK_RETURN_IF_ERROR(impl_->FileCall(DeviceOp::kList, 0, 0, &dropped));
  return impl_->device().ListFiles();
}

absl::Status FaultBlockDevice::Submit(std::span<IoRequest> requests) {
  return impl_->Submit(requests);
}
void FaultBlockDevice::RegisterMemory(std::span<std::byte> memory) {
  impl_->device().RegisterMemory(memory);
}
void FaultBlockDevice::UnregisterMemory(std::span<std::byte> memory) {
  impl_->device().UnregisterMemory(memory);
}
std::string FaultBlockDevice::Describe() const {
  return impl_->device().Describe() + ", with injected faults";
}
BlockDeviceStats FaultBlockDevice::Stats() const { return impl_->device().Stats(); }

}  // namespace turnkeep
