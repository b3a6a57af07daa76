#include "gpu_tier/host_device.h"

#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <thread>

#include <absl/time/clock.h>

#include "core/check.h"
#include "core/clock.h"
#include "core/status.h"

namespace turnkeep {
namespace {

int64_t Now() { return Clock::System()->NowNs(); }

void WaitUntil(int64_t when_ns) {
  // The kernel wakes a sleeper up to a scheduling tick late; the last microseconds are yielded.
  constexpr int64_t kYieldedNs = 20'000;
  for (;;) {
    const int64_t left = when_ns - Now();
    if (left <= 0) return;
    if (left > kYieldedNs)
      absl::SleepFor(absl::Nanoseconds(left - kYieldedNs));
    else
      std::this_thread::yield();
  }
}

// One recorded place. Shared by the event, the stream that reaches it, and streams that wait.
class Place {
 public:
  void Reach(int64_t at_ns) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    at_ns_ = at_ns;
    reached_ = true;
  }
  int64_t Wait() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&reached_));
    return at_ns_;
  }
  bool reached() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return reached_;
  }

 private:
  mutable absl::Mutex mu_;
  bool reached_ ABSL_GUARDED_BY(mu_) = false;
  int64_t at_ns_ ABSL_GUARDED_BY(mu_) = 0;
};

class HostEvent final : public DeviceEvent {
 public:
  bool Ready() const override {
    const auto place = current();
    return place == nullptr || place->reached();
  }
  absl::Status Wait() const override {
    if (const auto place = current()) place->Wait();
    return absl::OkStatus();
  }
  std::shared_ptr<Place> current() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return place_;
  }
  std::shared_ptr<Place> Renew() ABSL_LOCKS_EXCLUDED(mu_) {
    auto fresh = std::make_shared<Place>();
    absl::MutexLock lock(&mu_);
    place_ = fresh;
    return fresh;
  }

 private:
  mutable absl::Mutex mu_;
  std::shared_ptr<Place> place_ ABSL_GUARDED_BY(mu_);
};

// One direction of the link: copies of all streams share it.
class Link {
 public:
  explicit Link(double bytes_per_s) : bytes_per_s_(bytes_per_s) {}
  // A copy that may start at `start_ns` holds the link until what is returned.
  int64_t Take(int64_t start_ns, uint64_t bytes) ABSL_LOCKS_EXCLUDED(mu_) {
    if (bytes_per_s_ <= 0) return start_ns;
    absl::MutexLock lock(&mu_);
    free_at_ns_ = std::max(start_ns, free_at_ns_) +
                  static_cast<int64_t>(static_cast<double>(bytes) / bytes_per_s_ * 1e9);
    return free_at_ns_;
  }

 private:
  const double bytes_per_s_;
  absl::Mutex mu_;
  int64_t free_at_ns_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace

struct HostDevice::Shared {
  explicit Shared(const HostDeviceOptions& options)
      : to_device(options.to_device_bytes_per_s), to_host(options.to_host_bytes_per_s) {}
  Link to_device;
  Link to_host;
  std::atomic<uint64_t> stream_count{0};  // relaxed: only a number for the seed
};

class HostStream final : public DeviceStream {
 public:
  HostStream(const HostDeviceOptions& options, HostDevice::Shared& shared)
      : options_(options),
        shared_(shared),
        random_(options.seed * 1000 + shared.stream_count.fetch_add(1, std::memory_order_relaxed)),
        worker_([this] { Work(); }) {}
  ~HostStream() override {
    {
      absl::MutexLock lock(&mu_);
      closing_ = true;
    }
    worker_.join();
  }

  absl::Status CopyBatch(CopyKind kind, std::span<const CopyRun> runs) override {
    return Put([this, kind, copies = std::vector<CopyRun>(runs.begin(), runs.end())](
                   int64_t start) { return RunCopies(kind, copies, start); });
  }
  absl::Status Record(DeviceEvent& event) override {
    auto place = static_cast<HostEvent&>(event).Renew();
    const absl::Status put = Put([place](int64_t start) {
      place->Reach(start);
      return start;
    });
    if (!put.ok()) place->Reach(Now());  // nobody may wait for what will not come
    return put;
  }
  absl::Status WaitFor(const DeviceEvent& event) override {
    auto place = static_cast<const HostEvent&>(event).current();
    if (place == nullptr || options_.ignore_waits_for_test) return absl::OkStatus();
    return Put([place](int64_t start) { return std::max(start, place->Wait()); });
  }
  absl::Status Launch(std::function<void()> function) override {
    return LaunchFor(absl::ZeroDuration(), std::move(function));
  }
  absl::Status LaunchFor(absl::Duration duration, std::function<void()> function) {
    const int64_t duration_ns = absl::ToInt64Nanoseconds(duration);
    return Put([duration_ns, function = std::move(function)](int64_t start) {
      WaitUntil(start + duration_ns);
      const int64_t begin = Now();
      if (function != nullptr) function();
      return start + duration_ns + (Now() - begin);
    });
  }
  absl::Status Synchronize() override {
    HostEvent end;
    TK_RETURN_IF_ERROR(Record(end));
    return end.Wait();
  }

 private:
  // Gets when it may start, does the work, returns when it ended; see the file head.
  using Operation = std::function<int64_t(int64_t start_ns)>;
  struct Queued {
    int64_t put_ns;
    Operation run;
  };

  absl::Status Put(Operation run) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (queue_.size() >= kMaxStreamOperations)
      return ResourceExhausted("stream: {} operations wait already", queue_.size());
    queue_.push_back({Now(), std::move(run)});
    return absl::OkStatus();
  }

  int64_t RunCopies(CopyKind kind, const std::vector<CopyRun>& copies, int64_t start) {
    const int64_t begin = Now();
    uint64_t bytes = 0;
    for (const CopyRun& copy : copies) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      bytes += copy.bytes;
    }
    const int64_t really = start + (Now() - begin);
    if (kind == CopyKind::kOnDevice) return really;
    Link& link = kind == CopyKind::kToDevice ? shared_.to_device : shared_.to_host;
    const int64_t end =
        std::max(really, link.Take(start, bytes) + absl::ToInt64Nanoseconds(options_.copy_latency));
    WaitUntil(end);
    return end;
  }

  void Work() {
    prctl(PR_SET_TIMERSLACK, 1000UL);  // sleeps end within a microsecond instead of fifty
    const int64_t max_delay = absl::ToInt64Nanoseconds(options_.max_random_delay);
    int64_t stream_ns = 0;  // end of the operation before
    for (;;) {
      Queued next;
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(this, &HostStream::Something));
        if (queue_.empty()) return;
        next = std::move(queue_.front());
        queue_.pop_front();
      }
      int64_t start = std::max(next.put_ns, stream_ns);
      if (max_delay > 0) {
        start = Now() + static_cast<int64_t>(random_() % static_cast<uint64_t>(max_delay));
        WaitUntil(start);
      }
      stream_ns = next.run(start);
    }
  }
  bool Something() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return closing_ || !queue_.empty(); }

  const HostDeviceOptions options_;
  HostDevice::Shared& shared_;
  std::mt19937_64 random_;  // the worker's
  absl::Mutex mu_;
  std::deque<Queued> queue_ ABSL_GUARDED_BY(mu_);
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  std::thread worker_;  // last: it uses everything above
};

HostDevice::HostDevice(HostDeviceOptions options)
    : options_(options), shared_(std::make_unique<Shared>(options)) {}

HostDevice::~HostDevice() { TK_CHECK(allocated_bytes() == 0); }

std::string HostDevice::Description() const {
  const auto rate = [](double bytes_per_s) {
    return bytes_per_s <= 0 ? std::string("memcpy")
                            : fmt::format("{:.1f} GB/s", bytes_per_s * 1e-9);
  };
  return fmt::format("host device, {} to, {} from", rate(options_.to_device_bytes_per_s),
                     rate(options_.to_host_bytes_per_s));
}

absl::StatusOr<DeviceMemory> HostDevice::Allocate(size_t bytes) {
  {
    absl::MutexLock lock(&mu_);
    if (bytes > options_.memory_bytes - allocated_bytes_)
      return ResourceExhausted("device memory: {} bytes asked for, {} of {} are taken", bytes,
                               allocated_bytes_, options_.memory_bytes);
    allocated_bytes_ += bytes;
  }
  const size_t rounded = (std::max<size_t>(bytes, 1) + 255) / 256 * 256;
  auto* data = static_cast<std::byte*>(std::aligned_alloc(256, rounded));
  if (data == nullptr) {
    absl::MutexLock lock(&mu_);
    allocated_bytes_ -= bytes;
    return ResourceExhausted("device memory: the host has no {} bytes", bytes);
  }
  return DeviceMemory(this, data, bytes, false);
}

absl::StatusOr<DeviceMemory> HostDevice::AllocatePinned(size_t bytes) {
  const size_t rounded = (std::max<size_t>(bytes, 1) + 255) / 256 * 256;
  auto* data = static_cast<std::byte*>(std::aligned_alloc(256, rounded));
  if (data == nullptr) return ResourceExhausted("pinned memory: the host has no {} bytes", bytes);
  return DeviceMemory(this, data, bytes, true);
}

void HostDevice::Free(std::byte* data, size_t bytes, bool pinned) {
  std::free(data);
  if (pinned) return;
  absl::MutexLock lock(&mu_);
  allocated_bytes_ -= bytes;
}

absl::Status HostDevice::RegisterHost(std::span<std::byte> memory) {
  absl::MutexLock lock(&mu_);
  for (const auto& other : registered_) {
    if (memory.data() < other.data() + other.size() && other.data() < memory.data() + memory.size())
      return AlreadyExists("register host memory: {} bytes overlap {} registered ones",
                           memory.size(), other.size());
  }
  registered_.push_back(memory);
  return absl::OkStatus();
}

absl::Status HostDevice::UnregisterHost(std::span<std::byte> memory) {
  absl::MutexLock lock(&mu_);
  const auto found = std::find_if(registered_.begin(), registered_.end(), [&](const auto& other) {
    return other.data() == memory.data() && other.size() == memory.size();
  });
  if (found == registered_.end())
    return NotFound("unregister host memory: no such span of {} bytes", memory.size());
  registered_.erase(found);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DeviceStream>> HostDevice::NewStream() {
  return std::make_unique<HostStream>(options_, *shared_);
}

absl::StatusOr<std::unique_ptr<DeviceEvent>> HostDevice::NewEvent() {
  return std::make_unique<HostEvent>();
}

absl::StatusOr<double> HostDevice::SecondsBetween(const DeviceEvent& from, const DeviceEvent& to) {
  const auto begin = static_cast<const HostEvent&>(from).current();
  const auto end = static_cast<const HostEvent&>(to).current();
  if (begin == nullptr || end == nullptr || !begin->reached() || !end->reached())
    return FailedPrecondition("time between events: one of them is not reached");
  return static_cast<double>(end->Wait() - begin->Wait()) * 1e-9;
}

absl::Status HostDevice::LaunchFor(DeviceStream& stream, absl::Duration duration,
                                   std::function<void()> function) {
  return static_cast<HostStream&>(stream).LaunchFor(duration, std::move(function));
}

uint64_t HostDevice::allocated_bytes() const {
  absl::MutexLock lock(&mu_);
  return allocated_bytes_;
}

}  // namespace turnkeep
