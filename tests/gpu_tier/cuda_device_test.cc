// The CUDA device keeps the order that events ask for, and shows it when one is missing. Skips
// where CUDA sees no device.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "core/status.h"
#include "gpu_tier/cuda_device.h"
#include "gpu_tier/cuda_ordering.h"

namespace turnkeep::testing {
namespace {

constexpr size_t kWords = 4096;
constexpr uint64_t kSeed = 20240604;
constexpr uint64_t kIterations = 10'000;

TEST(CudaDevice, ADeviceThatIsNotThereIsNotFound) {
  EXPECT_EQ(CudaDevice::Open(CudaDevice::Count()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(CudaDevice::Open(-1).status().code(), absl::StatusCode::kNotFound);
}

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (CudaDevice::Count() == 0) GTEST_SKIP() << "CUDA sees no device";
    auto device = CudaDevice::Open(0);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
  }
  std::unique_ptr<CudaDevice> device_;
};

// One engine in miniature: a compute stream, a copy stream, KV on the device, pages on the host.
class CudaOrdering : public CudaDeviceTest {
 protected:
  void SetUp() override {
    CudaDeviceTest::SetUp();
    if (device_ == nullptr) return;
    RecordProperty("seed", static_cast<int>(kSeed));
    compute_ = device_->NewStream().value();
    copies_ = device_->NewStream().value();
    computed_ = device_->NewEvent().value();
    copied_ = device_->NewEvent().value();
    kv_ = device_->Allocate(kWords * 8).value();
    wrong_ = device_->Allocate(256).value();
    page_ = device_->AllocatePinned(kWords * 8).value();
    count_ = device_->AllocatePinned(256).value();
  }
  uint64_t* kv() { return reinterpret_cast<uint64_t*>(kv_.data()); }
  uint64_t* page() { return reinterpret_cast<uint64_t*>(page_.data()); }
  unsigned int* count() { return reinterpret_cast<unsigned int*>(count_.data()); }
  uint32_t Spin() { return static_cast<uint32_t>(random_() % 50'000); }

  // The kernel writes `value`; the save copies it out. True if the page has it.
  bool Save(uint64_t value, bool wait) {
    FillAfter(compute_->native_handle(), kv(), kWords, value, Spin());
    EXPECT_TRUE(compute_->Record(*computed_).ok());
    if (wait) {
      EXPECT_TRUE(copies_->WaitFor(*computed_).ok());
    }
    EXPECT_TRUE(copies_->Copy(CopyKind::kToHost, page(), kv(), kWords * 8).ok());
    EXPECT_EQ(copies_->Synchronize(), absl::OkStatus());
    const bool right =
        std::all_of(page(), page() + kWords, [value](uint64_t word) { return word == value; });
    EXPECT_EQ(compute_->Synchronize(), absl::OkStatus());
    return right;
  }

  // The restore copies `value` in, behind a kernel that takes its time; the kernel reads it.
  bool Restore(uint64_t value, bool wait) {
    std::fill_n(page(), kWords, value);
    *count() = 0;
    EXPECT_TRUE(compute_->Copy(CopyKind::kToDevice, wrong_.data(), count(), 4).ok());
    FillAfter(copies_->native_handle(), kv(), kWords, ~value, Spin());
    EXPECT_TRUE(copies_->Copy(CopyKind::kToDevice, kv(), page(), kWords * 8).ok());
    EXPECT_TRUE(copies_->Record(*copied_).ok());
    if (wait) {
      EXPECT_TRUE(compute_->WaitFor(*copied_).ok());
    }
    CountWrong(compute_->native_handle(), kv(), kWords, value,
               reinterpret_cast<unsigned int*>(wrong_.data()));
    EXPECT_TRUE(compute_->Copy(CopyKind::kToHost, count(), wrong_.data(), 4).ok());
    EXPECT_EQ(compute_->Synchronize(), absl::OkStatus());
    EXPECT_EQ(copies_->Synchronize(), absl::OkStatus());
    return *count() == 0;
  }

  std::mt19937_64 random_{kSeed};
  std::unique_ptr<DeviceStream> compute_, copies_;
  std::unique_ptr<DeviceEvent> computed_, copied_;
  DeviceMemory kv_, wrong_, page_, count_;
};

TEST_F(CudaOrdering, ASaveNeverReadsBeforeComputeHasFinished) {
  for (uint64_t i = 1; i <= kIterations; ++i) ASSERT_TRUE(Save(i, true)) << "iteration " << i;
}

TEST_F(CudaOrdering, ARestoreIsNeverReadBeforeItHasLanded) {
  for (uint64_t i = 1; i <= kIterations; ++i) ASSERT_TRUE(Restore(i, true)) << "iteration " << i;
}

TEST_F(CudaOrdering, ASaveWithoutItsWaitIsCaught) {
  uint64_t i = 1;
  while (i <= kIterations && Save(i, false)) ++i;
  EXPECT_LE(i, kIterations) << "no iteration saw the missing wait";
}

TEST_F(CudaOrdering, ARestoreWithoutItsWaitIsCaught) {
  uint64_t i = 1;
  while (i <= kIterations && Restore(i, false)) ++i;
  EXPECT_LE(i, kIterations) << "no iteration saw the missing wait";
}

TEST_F(CudaDeviceTest, ABatchMovesEveryRunExactly) {
  const auto stream = device_->NewStream().value();
  constexpr size_t kRuns = 100;
  constexpr size_t kStride = 1024;
  const DeviceMemory from = device_->AllocatePinned(kRuns * kStride).value();
  const DeviceMemory to = device_->AllocatePinned(kRuns * kStride).value();
  const DeviceMemory there = device_->Allocate(kRuns * kStride).value();
  std::mt19937_64 random(kSeed);
  for (std::byte& byte : from.span()) byte = static_cast<std::byte>(random());
  std::fill(to.span().begin(), to.span().end(), std::byte{0});
  std::vector<CopyRun> down, up;
  for (size_t i = 0; i < kRuns; ++i) {
    const size_t bytes = i * 10;  // the first is empty
    const size_t at = (kRuns - 1 - i) * kStride;
    down.push_back({there.data() + at, from.data() + i * kStride, bytes});
    up.push_back({to.data() + i * kStride, there.data() + at, bytes});
  }
  ASSERT_EQ(stream->CopyBatch(CopyKind::kToDevice, down), absl::OkStatus());
  ASSERT_EQ(stream->CopyBatch(CopyKind::kToHost, up), absl::OkStatus());
  ASSERT_EQ(stream->Synchronize(), absl::OkStatus());
  for (size_t i = 0; i < kRuns; ++i)
    for (size_t j = 0; j < kStride; ++j)
      ASSERT_EQ(to.data()[i * kStride + j],
                j < i * 10 ? from.data()[i * kStride + j] : std::byte{0})
          << "run " << i << " byte " << j;
}

TEST_F(CudaDeviceTest, AnAllocationBeyondTheDeviceNamesTheSizes) {
  const absl::Status status = device_->Allocate(size_t{1} << 50).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(MessageOf(status).find("1125899906842624 bytes"), std::string::npos) << status;
}

TEST_F(CudaDeviceTest, RegisteredMemoryDoesNotOverlap) {
  std::vector<std::byte> arena(1 << 20);
  const std::span<std::byte> all(arena);
  ASSERT_EQ(device_->RegisterHost(all.first(1 << 19)), absl::OkStatus());
  EXPECT_EQ(device_->RegisterHost(all.subspan((1 << 19) - 1, 10)).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(device_->UnregisterHost(all).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(device_->UnregisterHost(all.first(1 << 19)), absl::OkStatus());
}

TEST_F(CudaDeviceTest, FunctionsRunInStreamOrderAndTimeIsMeasured) {
  const auto stream = device_->NewStream().value();
  const auto begin = device_->NewEvent().value();
  const auto end = device_->NewEvent().value();
  EXPECT_TRUE(begin->Ready());
  EXPECT_EQ(device_->SecondsBetween(*begin, *end).status().code(),
            absl::StatusCode::kFailedPrecondition);
  std::vector<int> order;
  ASSERT_EQ(stream->Record(*begin), absl::OkStatus());
  for (int i = 0; i < 10; ++i)
    ASSERT_EQ(stream->Launch([&order, i] { order.push_back(i); }), absl::OkStatus());
  ASSERT_EQ(stream->Record(*end), absl::OkStatus());
  ASSERT_EQ(end->Wait(), absl::OkStatus());
  EXPECT_TRUE(end->Ready());
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_GE(device_->SecondsBetween(*begin, *end).value(), 0.0);
}

}  // namespace
}  // namespace turnkeep::testing
