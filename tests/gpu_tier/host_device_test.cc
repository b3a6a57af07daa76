// The host device keeps the order that events ask for, and shows it when one is missing.
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include <absl/synchronization/notification.h>

#include "core/clock.h"
#include "core/status.h"
#include "gpu_tier/host_device.h"

namespace turnkeep::testing {
namespace {

constexpr size_t kWords = 256;
constexpr uint64_t kSeed = 20240604;

#if defined(__SANITIZE_THREAD__)
constexpr bool kRacesAreErrors = true;
#else
constexpr bool kRacesAreErrors = false;
#endif

void Fill(uint64_t* words, uint64_t value) { std::fill_n(words, kWords, value); }
bool Holds(const uint64_t* words, uint64_t value) {
  return std::all_of(words, words + kWords, [value](uint64_t word) { return word == value; });
}

// One engine in miniature: a compute stream, a copy stream, KV on the device, pages on the host.
class Rig {
 public:
  explicit Rig(HostDeviceOptions options) : device_(options) {
    compute_ = device_.NewStream().value();
    copies_ = device_.NewStream().value();
    computed_ = device_.NewEvent().value();
    copied_ = device_.NewEvent().value();
    kv_ = device_.Allocate(kWords * 8).value();
    page_ = device_.AllocatePinned(kWords * 8).value();
  }
  uint64_t* kv() { return reinterpret_cast<uint64_t*>(kv_.data()); }
  uint64_t* page() { return reinterpret_cast<uint64_t*>(page_.data()); }

  // The kernel writes `value`; the save copies it out. True if the page has it.
  bool Save(uint64_t value) {
    EXPECT_TRUE(compute_->Launch([this, value] { Fill(kv(), value); }).ok());
    EXPECT_TRUE(compute_->Record(*computed_).ok());
    EXPECT_TRUE(copies_->WaitFor(*computed_).ok());
    EXPECT_TRUE(copies_->Copy(CopyKind::kToHost, page(), kv(), kWords * 8).ok());
    EXPECT_TRUE(copies_->Synchronize().ok());
    const bool right = Holds(page(), value);
    EXPECT_TRUE(compute_->Synchronize().ok());
    return right;
  }

  // The restore copies `value` in; the kernel reads it. True if it read that.
  bool Restore(uint64_t value) {
    Fill(page(), value);
    std::atomic<bool> right = false;
    EXPECT_TRUE(copies_->Copy(CopyKind::kToDevice, kv(), page(), kWords * 8).ok());
    EXPECT_TRUE(copies_->Record(*copied_).ok());
    EXPECT_TRUE(compute_->WaitFor(*copied_).ok());
    EXPECT_TRUE(compute_->Launch([&] { right = Holds(kv(), value); }).ok());
    EXPECT_TRUE(compute_->Synchronize().ok());
    EXPECT_TRUE(copies_->Synchronize().ok());
    return right;
  }

 private:
  HostDevice device_;
  std::unique_ptr<DeviceStream> compute_, copies_;
  std::unique_ptr<DeviceEvent> computed_, copied_;
  DeviceMemory kv_, page_;
};

HostDeviceOptions Delayed(bool ignore_waits) {
  return {.max_random_delay = absl::Microseconds(30),
          .seed = kSeed,
          .ignore_waits_for_test = ignore_waits};
}

constexpr uint64_t kIterations = 10'000;

TEST(Ordering, ASaveNeverReadsBeforeComputeHasFinished) {
  RecordProperty("seed", static_cast<int>(kSeed));
  Rig rig(Delayed(false));
  for (uint64_t i = 1; i <= kIterations; ++i) ASSERT_TRUE(rig.Save(i)) << "iteration " << i;
}

TEST(Ordering, ARestoreIsNeverReadBeforeItHasLanded) {
  RecordProperty("seed", static_cast<int>(kSeed));
  Rig rig(Delayed(false));
  for (uint64_t i = 1; i <= kIterations; ++i) ASSERT_TRUE(rig.Restore(i)) << "iteration " << i;
}

// Without the wait some iteration must show it; typically one of the first three does.
TEST(Ordering, ASaveWithoutItsWaitIsCaught) {
  if (kRacesAreErrors) GTEST_SKIP() << "races on purpose, which the thread sanitizer refuses";
  Rig rig(Delayed(true));
  uint64_t i = 1;
  while (i <= kIterations && rig.Save(i)) ++i;
  EXPECT_LE(i, kIterations) << "no iteration saw the missing wait";
}

TEST(Ordering, ARestoreWithoutItsWaitIsCaught) {
  if (kRacesAreErrors) GTEST_SKIP() << "races on purpose, which the thread sanitizer refuses";
  Rig rig(Delayed(true));
  uint64_t i = 1;
  while (i <= kIterations && rig.Restore(i)) ++i;
  EXPECT_LE(i, kIterations) << "no iteration saw the missing wait";
}

TEST(HostDevice, PuttingWorkInDoesNotWaitForIt) {
  HostDevice device;
  const auto stream = device.NewStream().value();
  const auto event = device.NewEvent().value();
  absl::Notification go;
  EXPECT_TRUE(event->Ready());
  ASSERT_TRUE(stream->Launch([&] { go.WaitForNotification(); }).ok());
  ASSERT_TRUE(stream->Record(*event).ok());
  EXPECT_FALSE(event->Ready());
  go.Notify();
  ASSERT_TRUE(event->Wait().ok());
  EXPECT_TRUE(event->Ready());
}

TEST(HostDevice, AWaitIsForThePlaceAtTheTimeOfTheCall) {
  HostDevice device;
  const auto first = device.NewStream().value();
  const auto second = device.NewStream().value();
  auto event = device.NewEvent().value();
  absl::Notification go;
  ASSERT_TRUE(first->Record(*event).ok());
  ASSERT_TRUE(second->WaitFor(*event).ok());
  ASSERT_TRUE(first->Launch([&] { go.WaitForNotification(); }).ok());
  ASSERT_TRUE(first->Record(*event).ok());  // again, behind what does not end
  ASSERT_TRUE(second->Synchronize().ok());  // which the second stream does not wait for
  event.reset();
  go.Notify();
}

TEST(HostDevice, CopiesTakeTheTimeOfTheLinkAndShareIt) {
  HostDevice device({.to_device_bytes_per_s = 1e9, .copy_latency = absl::Microseconds(10)});
  const auto a = device.NewStream().value();
  const auto b = device.NewStream().value();
  const auto begin = device.NewEvent().value();
  const auto end_a = device.NewEvent().value();
  const auto end_b = device.NewEvent().value();
  std::vector<std::byte> from(1'000'000), to(2'000'000);
  ASSERT_TRUE(a->Record(*begin).ok());
  ASSERT_TRUE(b->WaitFor(*begin).ok());
  ASSERT_TRUE(a->Copy(CopyKind::kToDevice, to.data(), from.data(), from.size()).ok());
  ASSERT_TRUE(b->Copy(CopyKind::kToDevice, to.data() + from.size(), from.data(), from.size()).ok());
  ASSERT_TRUE(a->Record(*end_a).ok());
  ASSERT_TRUE(b->Record(*end_b).ok());
  ASSERT_TRUE(a->Synchronize().ok());
  ASSERT_TRUE(b->Synchronize().ok());
  const double seconds_a = device.SecondsBetween(*begin, *end_a).value();
  const double seconds_b = device.SecondsBetween(*begin, *end_b).value();
  // A megabyte each at 1 GB/s: the later of the two waits for the other.
  EXPECT_GE(std::min(seconds_a, seconds_b), 0.00101);
  EXPECT_GE(std::max(seconds_a, seconds_b), 0.00201);
}

TEST(HostDevice, MemoryHasABudget) {
  HostDevice device({.memory_bytes = 1000});
  {
    auto some = device.Allocate(600);
    ASSERT_TRUE(some.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(some->data()) % 256, 0u);
    EXPECT_EQ(device.Allocate(401).status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(device.Allocate(400).ok());
  }
  EXPECT_EQ(device.allocated_bytes(), 0u);
}

TEST(HostDevice, RegisteredMemoryDoesNotOverlap) {
  HostDevice device;
  std::vector<std::byte> arena(4096);
  const std::span<std::byte> all(arena);
  ASSERT_TRUE(device.RegisterHost(all.first(2048)).ok());
  EXPECT_EQ(device.RegisterHost(all.subspan(2047, 10)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(device.RegisterHost(all.subspan(2048)).ok());
  EXPECT_EQ(device.UnregisterHost(all).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(device.UnregisterHost(all.first(2048)).ok());
}

TEST(HostDevice, TimeBetweenPlacesNotReachedIsRefused) {
  HostDevice device;
  const auto a = device.NewEvent().value();
  const auto b = device.NewEvent().value();
  EXPECT_EQ(device.SecondsBetween(*a, *b).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace turnkeep::testing
