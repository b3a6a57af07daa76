// The device that goes wrong on purpose does so exactly as named: a fault that did nothing would
// make every test that injects it pass.
#include "disk_tier/testing/fault_block_device.h"

#include <cstring>
#include <memory>
#include <thread>

#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "core/units.h"
#include "disk_tier/aligned_buffer.h"
#include "disk_tier/testing/memory_block_device.h"

namespace turnkeep {
namespace {

constexpr uint64_t kFileBytes = 8 * kBlockBytes;

class FaultBlockDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(device_.CreateFile(1, kFileBytes).ok());  // operation 0
    for (uint64_t block = 0; block < 8; ++block) Fill(block, block + 1);
    ASSERT_TRUE(WriteBlocking(device_, 1, 0, buffer_.span()).ok());  // operation 1
    std::memset(buffer_.data(), 0, kFileBytes);
  }

  void Fill(uint64_t block, uint64_t value) {
    std::memset(buffer_.data() + block * kBlockBytes, static_cast<int>(value), kBlockBytes);
  }
  // One operation over `blocks` blocks of the buffer and what `done` was told.
  struct Result {
    absl::Status status;
    uint64_t bytes = 0;
  };
  Result Do(IoOp op, uint64_t first_block, uint64_t blocks) {
    Result result;
    absl::Notification done;
    IoRequest request{.op = op,
                      .file = 1,
                      .offset = first_block * kBlockBytes,
                      .buffer = buffer_.span().subspan(0, blocks * kBlockBytes),
                      .done = [&](const absl::Status& status, uint64_t bytes) {
                        result = {status, bytes};
                        done.Notify();
                      }};
    EXPECT_TRUE(device_.Submit({&request, 1}).ok());
    done.WaitForNotification();
    return result;
  }
  std::byte InBuffer(uint64_t at) { return buffer_.data()[at]; }
  std::byte OnDisk(uint64_t at) const { return disk_->Contents(1)[at]; }
  static std::byte Value(uint64_t value) { return static_cast<std::byte>(value); }

  std::shared_ptr<MemoryDisk> disk_ = std::make_shared<MemoryDisk>();
  FaultBlockDevice device_{OpenMemoryBlockDevice(disk_)};
  AlignedBuffer buffer_{kFileBytes};
};

TEST_F(FaultBlockDeviceTest, NumbersAndTracesEveryOperation) {
  EXPECT_EQ(device_.operation_count(), 2u);
  device_.Inject({.at = 3, .kind = FaultKind::kEio});
  EXPECT_TRUE(Do(IoOp::kRead, 2, 1).status.ok());
  EXPECT_FALSE(SyncBlocking(device_, 1).ok());
  const std::vector<TracedOp> trace = device_.Trace();
  ASSERT_EQ(trace.size(), 4u);
  EXPECT_EQ(ToString(trace[0]), "#0 create file 1 at 0, 32768 bytes");
  EXPECT_EQ(ToString(trace[2]), "#2 read file 1 at 8192, 4096 bytes");
  EXPECT_EQ(ToString(trace[3]), "#3 sync file 1 at 0, 0 bytes (fault)");
}

TEST_F(FaultBlockDeviceTest, AnErrorTransfersNothingOnceOrForGood) {
  device_.Inject({.at = 2, .kind = FaultKind::kEio});
  EXPECT_TRUE(absl::IsUnavailable(Do(IoOp::kRead, 0, 8).status));
  EXPECT_EQ(InBuffer(0), Value(0));
  EXPECT_TRUE(Do(IoOp::kRead, 0, 8).status.ok());
  EXPECT_EQ(InBuffer(0), Value(1));
  device_.Inject(
      {.at = 4, .kind = FaultKind::kNoSpace, .for_good = true, .only = {DeviceOp::kWrite}});
  EXPECT_TRUE(Do(IoOp::kRead, 0, 8).status.ok());
  Fill(0, 99);
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(absl::IsResourceExhausted(Do(IoOp::kWrite, 0, 1).status));
    EXPECT_EQ(OnDisk(0), Value(1));
  }
  device_.ClearFaults();
  EXPECT_TRUE(Do(IoOp::kWrite, 0, 1).status.ok());
  EXPECT_EQ(OnDisk(0), Value(99));
}

TEST_F(FaultBlockDeviceTest, AShortTransferSaysHowMuchAndATornWriteDoesNot) {
  device_.Inject({.at = 2, .kind = FaultKind::kShort, .bytes = 3 * kBlockBytes});
  const Result read = Do(IoOp::kRead, 0, 8);
  EXPECT_TRUE(read.status.ok());
  EXPECT_EQ(read.bytes, 3 * kBlockBytes);
  EXPECT_EQ(InBuffer(3 * kBlockBytes - 1), Value(3));
  EXPECT_EQ(InBuffer(3 * kBlockBytes), Value(0));
  device_.Inject({.at = 3, .kind = FaultKind::kTorn, .bytes = kBlockBytes});
  Fill(0, 50);
  Fill(1, 51);
  const Result write = Do(IoOp::kWrite, 0, 2);
  EXPECT_TRUE(write.status.ok());
  EXPECT_EQ(write.bytes, 2 * kBlockBytes);
  EXPECT_EQ(OnDisk(0), Value(50));
  EXPECT_EQ(OnDisk(kBlockBytes), Value(2));
}

TEST_F(FaultBlockDeviceTest, ABitFlipsInWhatIsReadOrInWhatLands) {
  device_.Inject({.at = 2, .kind = FaultKind::kBitFlip, .bit = 8 * 5});
  EXPECT_TRUE(Do(IoOp::kRead, 0, 1).status.ok());
  EXPECT_EQ(InBuffer(5), Value(1 ^ 1));
  EXPECT_EQ(InBuffer(4), Value(1));
  EXPECT_EQ(OnDisk(5), Value(1));
  device_.Inject({.at = 3, .kind = FaultKind::kBitFlip, .bit = 8 * kBlockBytes + 7});
  Fill(0, 0);
  EXPECT_TRUE(Do(IoOp::kWrite, 0, 1).status.ok());
  EXPECT_EQ(OnDisk(0), Value(0x80));  // bit 7, counted modulo the buffer
  EXPECT_EQ(InBuffer(0), Value(0));   // the caller's buffer is its own
}

TEST_F(FaultBlockDeviceTest, AMisdirectedTransferGoesElsewhereAndWraps) {
  device_.Inject({.at = 2, .kind = FaultKind::kMisdirect, .offset_shift = 2 * 4096});
  EXPECT_TRUE(Do(IoOp::kRead, 1, 1).status.ok());
  EXPECT_EQ(InBuffer(0), Value(4));
  device_.Inject({.at = 3, .kind = FaultKind::kMisdirect, .offset_shift = 4096});
  Fill(0, 77);
  EXPECT_TRUE(Do(IoOp::kWrite, 7, 1).status.ok());
  EXPECT_EQ(OnDisk(7 * kBlockBytes), Value(8));
  EXPECT_EQ(OnDisk(0), Value(77));
}

TEST_F(FaultBlockDeviceTest, WhatIsDroppedReportsSuccessAndChangesNothing) {
  device_.Inject({.at = 2, .kind = FaultKind::kDrop});
  Fill(0, 60);
  const Result write = Do(IoOp::kWrite, 0, 1);
  EXPECT_TRUE(write.status.ok());
  EXPECT_EQ(write.bytes, kBlockBytes);
  EXPECT_EQ(OnDisk(0), Value(1));
  device_.DropAllAfter(3);
  EXPECT_TRUE(Do(IoOp::kWrite, 0, 1).status.ok());
  EXPECT_TRUE(device_.DeleteFile(1).ok());
  EXPECT_TRUE(device_.CreateFile(2, kFileBytes).ok());
  EXPECT_EQ(OnDisk(0), Value(1));
  EXPECT_THAT(device_.ListFiles()->size(), 1u);
}

TEST_F(FaultBlockDeviceTest, ADelayedOperationWaitsForItsRelease) {
  device_.Inject({.at = 2, .kind = FaultKind::kDelay});
  Fill(0, 61);
  std::thread releaser([&] {
    device_.WaitForDelayed(1);
    EXPECT_EQ(OnDisk(0), Value(1));
    device_.Release();
  });
  EXPECT_TRUE(Do(IoOp::kWrite, 0, 1).status.ok());
  releaser.join();
  EXPECT_EQ(OnDisk(0), Value(61));
}

}  // namespace
}  // namespace turnkeep
