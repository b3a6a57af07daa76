// Every numbered device operation and every index write of a fixed workload goes wrong in turn,
// once and from then on, in every way the fault-injecting device knows. Always: the right bytes, a
// miss or a clear error; never a hang; and the store reopens with exact accounts.
//
// The device is memory and the index lies in $TURNKEEP_FAULT_DIR, /dev/shm or the temporary folder,
// whichever there is first: a run is some 50 ms, and there are several hundred.
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <optional>
#include <thread>

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "disk_tier/testing/fault_block_device.h"
#include "disk_tier/testing/fault_index.h"
#include "disk_tier/testing/memory_block_device.h"
#include "regression/fault_workload.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

constexpr absl::Duration kHang = absl::Seconds(60);

std::string FaultDirectory() {
  if (const char* chosen = std::getenv("TURNKEEP_FAULT_DIR")) return chosen;
  if (access("/dev/shm", W_OK) == 0) return "/dev/shm";
  return std::filesystem::temp_directory_path().string();
}

// Ends the process with the run's name when a run takes longer than kHang.
class Watchdog {
 public:
  Watchdog() : thread_([this] { Watch(); }) {}
  ~Watchdog() {
    stop_ = true;
    thread_.join();
  }
  void Begin(int slot, const std::string& what) {
    std::lock_guard lock(mutex_);
    running_[slot] = {what, absl::Now()};
  }
  void End(int slot) {
    std::lock_guard lock(mutex_);
    running_[slot].what.clear();
  }

 private:
  struct Run {
    std::string what;
    absl::Time begun;
  };
  void Watch() {
    while (!stop_) {
      absl::SleepFor(absl::Milliseconds(100));
      std::lock_guard lock(mutex_);
      for (const Run& run : running_) {
        if (run.what.empty() || absl::Now() - run.begun < kHang) continue;
        std::fprintf(stderr, "HANG: %s\n", run.what.c_str());
        std::abort();
      }
    }
  }
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  Run running_[8];
  std::thread thread_;
};

struct Injection {
  std::string name;
  std::optional<Fault> device;
  std::optional<IndexFault> index;
  uint64_t index_at = 0;
  bool index_for_good = false;
};

struct RunResult {
  std::vector<std::string> problems;
  std::vector<TracedOp> trace;
  uint64_t device_operations = 0;
  uint64_t index_batches = 0;
};

// One life with the fault, one without.
RunResult RunOnce(const std::string& directory, const Injection& injection) {
  RunResult result;
  ManualClock clock;
  auto disk = std::make_shared<MemoryDisk>();
  StoreOptions options = FaultStoreOptions(directory, &clock);
  FaultBlockDevice* device = nullptr;
  FaultIndex* index = nullptr;
  options.wrap_device = [&](std::unique_ptr<BlockDevice>) {
    auto faulty = std::make_unique<FaultBlockDevice>(OpenMemoryBlockDevice(disk));
    device = faulty.get();
    if (injection.device) device->Inject(*injection.device);
    return faulty;
  };
  options.wrap_index = [&](std::unique_ptr<Index> inner) {
    auto faulty = std::make_unique<FaultIndex>(std::move(inner));
    index = faulty.get();
    if (injection.index) {
      index->Inject(injection.index_at, *injection.index, injection.index_for_good);
    }
    return faulty;
  };
  FaultOracle oracle;
  if (auto opened = OpenedStore::Open(options); opened.ok()) {
    oracle.Run((*opened)->kv());
    oracle.Check((*opened)->kv(), /*reopened=*/false);
    (void)(*opened)->Close();
    result.trace = device->Trace();
    result.device_operations = device->operation_count();
    result.index_batches = index->apply_count();
  }
  options.wrap_device = [&](std::unique_ptr<BlockDevice>) { return OpenMemoryBlockDevice(disk); };
  options.wrap_index = nullptr;
  auto reopened = OpenedStore::Open(options);
  if (!reopened.ok()) {
    result.problems = oracle.problems();
    result.problems.push_back("reopening: " + reopened.status().ToString());
    return result;
  }
  oracle.Check((*reopened)->kv(), /*reopened=*/true);
  oracle.CheckAccounts((*reopened)->kv());
  (void)(*reopened)->Close();
  result.problems = oracle.problems();
  return result;
}

// Runs all injections on a few threads and reports those that had problems.
void RunAll(const std::vector<Injection>& injections) {
  TemporaryDirectory build_directory;
  const std::string base = FaultDirectory() + "/turnkeep-fault-" + std::to_string(getpid());
  std::filesystem::create_directories(base);
  Watchdog watchdog;
  std::atomic<size_t> next{0};
  std::atomic<int> failures{0};
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int slot = 0; slot < 3; ++slot) {
    threads.emplace_back([&, slot] {
      while (failures < 10) {
        const size_t i = next++;
        if (i >= injections.size()) return;
        const std::string directory = base + "/" + std::to_string(i);
        watchdog.Begin(slot, injections[i].name);
        const RunResult result = RunOnce(directory, injections[i]);
        watchdog.End(slot);
        std::error_code ignored;
        std::filesystem::remove_all(directory, ignored);
        if (result.problems.empty()) continue;
        ++failures;
        std::lock_guard lock(mutex);
        for (const std::string& problem : result.problems) {
          ADD_FAILURE() << injections[i].name << ": " << problem;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::filesystem::remove_all(base);
  std::printf("%zu runs\n", injections.size());
}

RunResult RunWithoutFault() {
  TemporaryDirectory directory;
  return RunOnce(directory.path() + "/data", {.name = "no fault"});
}

// What can go wrong with an operation of this kind.
std::vector<Fault> FaultsFor(DeviceOp op, uint64_t bytes) {
  std::vector<Fault> faults = {{.kind = FaultKind::kEio}};
  switch (op) {
    case DeviceOp::kRead:
      faults.push_back({.kind = FaultKind::kShort, .bytes = bytes / 2});
      faults.push_back({.kind = FaultKind::kBitFlip, .bit = 12345});
      faults.push_back({.kind = FaultKind::kMisdirect});
      break;
    case DeviceOp::kWrite:
      faults.push_back({.kind = FaultKind::kNoSpace});
      faults.push_back({.kind = FaultKind::kShort, .bytes = bytes / 2});
      faults.push_back({.kind = FaultKind::kTorn, .bytes = bytes / 2});
      faults.push_back({.kind = FaultKind::kBitFlip, .bit = 54321});
      faults.push_back({.kind = FaultKind::kMisdirect});
      faults.push_back({.kind = FaultKind::kDrop});
      break;
    case DeviceOp::kSync:
    case DeviceOp::kCreate:
      faults.push_back({.kind = FaultKind::kNoSpace});
      break;
    default:
      break;
  }
  return faults;
}

TEST(FaultMatrix, TheWorkloadItselfHasNoProblems) {
  const RunResult result = RunWithoutFault();
  EXPECT_THAT(result.problems, ::testing::IsEmpty());
  EXPECT_GT(result.device_operations, 30u);
  EXPECT_GT(result.index_batches, 10u);
  int reads = 0;
  for (const TracedOp& op : result.trace) reads += op.op == DeviceOp::kRead;
  EXPECT_GT(reads, 0) << "the host tier is large enough for all: the workload tests nothing";
}

TEST(FaultMatrix, EveryDeviceOperationMayFailInEveryWay) {
  const RunResult dry = RunWithoutFault();
  std::vector<Injection> injections;
  for (const TracedOp& op : dry.trace) {
    for (Fault fault : FaultsFor(op.op, op.bytes)) {
      for (const bool for_good : {false, true}) {
        // For good, all operations of the kind fail in the same way.
        if (for_good && op.number % 4 != 0) continue;
        fault.at = op.number;
        fault.for_good = for_good;
        fault.only = for_good ? std::vector<DeviceOp>{op.op} : std::vector<DeviceOp>{};
        injections.push_back({.name = fmt::format("{} {}{}", NameOf(fault.kind), ToString(op),
                                                  for_good ? " for good" : ""),
                              .device = fault});
      }
    }
  }
  RunAll(injections);
}

TEST(FaultMatrix, EveryIndexWriteMayFail) {
  const RunResult dry = RunWithoutFault();
  std::vector<Injection> injections;
  for (uint64_t at = 0; at < dry.index_batches; ++at) {
    for (const IndexFault fault : {IndexFault::kRefuse, IndexFault::kFail}) {
      for (const bool for_good : {false, true}) {
        injections.push_back(
            {.name = fmt::format("index write {} {}{}", at,
                                 fault == IndexFault::kRefuse ? "refused" : "failed",
                                 for_good ? " for good" : ""),
             .index = fault,
             .index_at = at,
             .index_for_good = for_good});
      }
    }
  }
  RunAll(injections);
}

}  // namespace
}  // namespace turnkeep::testing
