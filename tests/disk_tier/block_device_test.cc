// One suite for every block device: io_uring and threads, direct and buffered, and memory.
#include "disk_tier/block_device.h"

#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <absl/synchronization/blocking_counter.h>
#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/units.h"
#include "disk_tier/aligned_buffer.h"
#include "disk_tier/testing/memory_block_device.h"
#include "testing/temporary_directory.h"

namespace turnkeep {
namespace {

using Engine = BlockDeviceOptions::Engine;
using testing::TemporaryDirectory;

struct Kind {
  std::string name;
  bool memory = false;
  BlockDeviceOptions options;
  std::string described_as;
};

std::vector<Kind> Kinds() {
  BlockDeviceOptions uring{.engine = Engine::kUring};
  BlockDeviceOptions uring_buffered{.engine = Engine::kUring, .direct_io = false};
  BlockDeviceOptions uring_narrow{.engine = Engine::kUring, .queue_depth = 1};
  BlockDeviceOptions threads{.engine = Engine::kThreads};
  BlockDeviceOptions threads_buffered{.engine = Engine::kThreads, .direct_io = false};
  return {{"UringDirect", false, uring, "io_uring"},
          {"UringBuffered", false, uring_buffered, "buffered"},
          {"UringDepthOne", false, uring_narrow, "io_uring"},
          {"ThreadsDirect", false, threads, "pread/pwrite"},
          {"ThreadsBuffered", false, threads_buffered, "buffered"},
          {"Memory", true, {}, "memory"}};
}

void Fill(std::span<std::byte> bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    uint64_t value = random();
    std::memcpy(bytes.data() + i, &value, sizeof(value));
  }
}

class BlockDeviceTest : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override { Open(); }

  void Open() {
    device_.reset();
    if (GetParam().memory) {
      device_ = OpenMemoryBlockDevice(disk_);
      return;
    }
    auto device = OpenBestBlockDevice(directory_.path(), GetParam().options);
    if (!device.ok() && GetParam().options.engine == Engine::kUring) {
      GTEST_SKIP() << "no io_uring here: " << device.status();
    }
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = std::move(*device);
  }

  TemporaryDirectory directory_;
  std::shared_ptr<MemoryDisk> disk_ = std::make_shared<MemoryDisk>();
  std::unique_ptr<BlockDevice> device_;
};

TEST_P(BlockDeviceTest, DescribesWhatItIs) {
  EXPECT_THAT(device_->Describe(), ::testing::HasSubstr(GetParam().described_as));
}

TEST_P(BlockDeviceTest, WrittenBytesAreReadBackAlsoAfterReopening) {
  ASSERT_TRUE(device_->CreateFile(7, 8 * kMiB).ok());
  AlignedBuffer written(3 * kMiB + kBlockBytes);
  Fill(written.span(), 1);
  ASSERT_TRUE(WriteBlocking(*device_, 7, 5 * kBlockBytes, written.span()).ok());
  ASSERT_TRUE(SyncBlocking(*device_, 7).ok());
  for (int round = 0; round < 2; ++round) {
    AlignedBuffer read(written.size());
    ASSERT_TRUE(ReadBlocking(*device_, 7, 5 * kBlockBytes, read.span()).ok());
    EXPECT_EQ(std::memcmp(read.data(), written.data(), read.size()), 0);
    Open();
    EXPECT_EQ(device_->OpenFile(7).value(), 8 * kMiB);
  }
}

TEST_P(BlockDeviceTest, FilesAreMadeListedOpenedAndDeleted) {
  EXPECT_TRUE(device_->ListFiles()->empty());
  ASSERT_TRUE(device_->CreateFile(12, kMiB).ok());
  ASSERT_TRUE(device_->CreateFile(3, 2 * kMiB).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(device_->CreateFile(3, kMiB)));
  EXPECT_TRUE(absl::IsInvalidArgument(device_->CreateFile(4, kMiB + 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(device_->CreateFile(0, kMiB)));
  std::vector<DeviceFile> files = device_->ListFiles().value();
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(files[0].file, 3u);
  EXPECT_EQ(files[0].bytes, 2 * kMiB);
  EXPECT_EQ(files[1].file, 12u);
  EXPECT_TRUE(absl::IsNotFound(device_->OpenFile(5).status()));
  ASSERT_TRUE(device_->DeleteFile(3).ok());
  EXPECT_TRUE(absl::IsNotFound(device_->DeleteFile(3)));
  EXPECT_EQ(device_->ListFiles()->size(), 1u);
  AlignedBuffer block(kBlockBytes);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadBlocking(*device_, 3, 0, block.span())));
}

TEST_P(BlockDeviceTest, WrongRequestsAreRefusedBeforeAnythingStarts) {
  ASSERT_TRUE(device_->CreateFile(1, kMiB).ok());
  AlignedBuffer buffer(2 * kMiB);
  struct Case {
    const char* what;
    uint32_t file;
    uint64_t offset;
    std::span<std::byte> buffer;
  };
  const Case cases[] = {
      {"offset not a block", 1, 512, buffer.span().first(kBlockBytes)},
      {"length not a block", 1, 0, buffer.span().first(100)},
      {"address not a block", 1, 0, buffer.span().subspan(8, kBlockBytes)},
      {"empty", 1, 0, buffer.span().first(0)},
      {"past the end", 1, kMiB, buffer.span().first(kBlockBytes)},
      {"over the end", 1, kMiB - kBlockBytes, buffer.span().first(2 * kBlockBytes)},
      {"offset overflows", 1, UINT64_MAX - kBlockBytes + 1, buffer.span().first(kBlockBytes)},
      {"no such file", 2, 0, buffer.span().first(kBlockBytes)},
  };
  for (const Case& c : cases) {
    bool ran = false;
    IoRequest batch[2] = {{.op = IoOp::kWrite,
                           .file = 1,
                           .buffer = buffer.span().first(kBlockBytes),
                           .done = [&](const absl::Status&, uint64_t) { ran = true; }},
                          {.op = IoOp::kRead,
                           .file = c.file,
                           .offset = c.offset,
                           .buffer = c.buffer,
                           .done = [&](const absl::Status&, uint64_t) { ran = true; }}};
    EXPECT_TRUE(absl::IsInvalidArgument(device_->Submit(batch))) << c.what;
    EXPECT_TRUE(batch[0].done) << c.what << ": a refused request must be untouched";
    ASSERT_TRUE(SyncBlocking(*device_, 1).ok());  // anything started would have run by now, or soon
    EXPECT_FALSE(ran) << c.what;
  }
  EXPECT_EQ(device_->Stats().writes, 0u);
}

TEST_P(BlockDeviceTest, ManyMoreOperationsThanTheDepthAllComplete) {
  constexpr int kOperations = 2000;
  constexpr uint64_t kSlot = 2 * kBlockBytes;
  ASSERT_TRUE(device_->CreateFile(1, kOperations * kSlot).ok());
  AlignedBuffer written(kOperations * kSlot);
  AlignedBuffer read(kOperations * kSlot);
  Fill(written.span(), 2);
  for (IoOp op : {IoOp::kWrite, IoOp::kRead}) {
    AlignedBuffer& memory = op == IoOp::kWrite ? written : read;
    absl::BlockingCounter finished(kOperations);
    std::atomic<int> wrong{0};
    std::vector<IoRequest> batch;
    for (int i = 0; i < kOperations; ++i) {
      int place = (i * 7919) % kOperations;
      batch.push_back({.op = op,
                       .file = 1,
                       .offset = place * kSlot,
                       .buffer = memory.span().subspan(place * kSlot, kSlot),
                       .done = [&](const absl::Status& status, uint64_t bytes) {
                         if (!status.ok() || bytes != kSlot) ++wrong;
                         finished.DecrementCount();
                       }});
    }
    ASSERT_TRUE(device_->Submit(batch).ok());
    finished.Wait();
    EXPECT_EQ(wrong, 0);
  }
  EXPECT_EQ(std::memcmp(read.data(), written.data(), read.size()), 0);
  EXPECT_EQ(device_->Stats().reads, uint64_t{kOperations});
  EXPECT_EQ(device_->Stats().write_bytes, kOperations * kSlot);
}

TEST_P(BlockDeviceTest, AFullQueueRefusesTheBatchAndStaysUsable) {
  ASSERT_TRUE(device_->CreateFile(1, kMiB).ok());
  AlignedBuffer block(kBlockBytes);
  std::atomic<int> ran{0};
  std::vector<IoRequest> batch;
  for (uint32_t i = 0; i <= kMaxQueuedIo; ++i) {
    batch.push_back({.op = IoOp::kRead,
                     .file = 1,
                     .buffer = block.span(),
                     .done = [&](const absl::Status&, uint64_t) { ++ran; }});
  }
  EXPECT_TRUE(absl::IsResourceExhausted(device_->Submit(batch)));
  EXPECT_TRUE(ReadBlocking(*device_, 1, 0, block.span()).ok());
  EXPECT_EQ(ran, 0);
}

TEST_P(BlockDeviceTest, ACompletionMaySubmitTheNextOperation) {
  constexpr uint32_t kChain = 50;
  ASSERT_TRUE(device_->CreateFile(1, kChain * kBlockBytes).ok());
  AlignedBuffer block(kBlockBytes);
  absl::Notification finished;
  std::atomic<uint32_t> length{0};
  std::function<void()> step = [&] {
    IoRequest request{.op = IoOp::kWrite,
                      .file = 1,
                      .offset = length * kBlockBytes,
                      .buffer = block.span(),
                      .done = [&](const absl::Status& status, uint64_t) {
                        ASSERT_TRUE(status.ok()) << status;
                        if (++length == kChain) {
                          finished.Notify();
                        } else {
                          step();
                        }
                      }};
    ASSERT_TRUE(device_->Submit({&request, 1}).ok());
  };
  step();
  finished.WaitForNotification();
  EXPECT_EQ(length, kChain);
}

TEST_P(BlockDeviceTest, ClosingWaitsForEveryCompletion) {
  constexpr int kOperations = 300;
  ASSERT_TRUE(device_->CreateFile(1, kMiB).ok());
  AlignedBuffer buffer(kOperations * kBlockBytes);
  std::atomic<int> ran{0};
  std::vector<IoRequest> batch;
  for (int i = 0; i < kOperations; ++i) {
    batch.push_back({.op = IoOp::kRead,
                     .file = 1,
                     .buffer = buffer.span().subspan(i * kBlockBytes, kBlockBytes),
                     .done = [&](const absl::Status&, uint64_t) { ++ran; }});
  }
  ASSERT_TRUE(device_->Submit(batch).ok());
  device_.reset();
  EXPECT_EQ(ran, kOperations);
}

TEST_P(BlockDeviceTest, RegisteredMemoryServesOperationsAcrossItsPieces) {
  constexpr uint64_t kRegion = 130 * kMiB;  // three pieces of the ring's table
  void* memory = mmap(nullptr, kRegion, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  std::span<std::byte> region(static_cast<std::byte*>(memory), kRegion);
  device_->RegisterMemory(region);
  ASSERT_TRUE(device_->CreateFile(1, 4 * kMiB).ok());
  std::span<std::byte> across = region.subspan(63 * kMiB, 2 * kMiB);
  Fill(across, 3);
  ASSERT_TRUE(WriteBlocking(*device_, 1, kMiB, across).ok());
  std::span<std::byte> elsewhere = region.subspan(128 * kMiB, 2 * kMiB);
  ASSERT_TRUE(ReadBlocking(*device_, 1, kMiB, elsewhere).ok());
  EXPECT_EQ(std::memcmp(across.data(), elsewhere.data(), across.size()), 0);
  device_->UnregisterMemory(region);
  ASSERT_TRUE(ReadBlocking(*device_, 1, kMiB, elsewhere).ok());  // plain from here on
  munmap(memory, kRegion);
}

TEST_P(BlockDeviceTest, UnregisteringWaitsForTransfersOfTheMemory) {
  if (GetParam().memory) GTEST_SKIP() << "a memory device registers nothing";
  AlignedBuffer region(16 * kMiB);
  std::memset(region.span().data(), 0x5A, region.span().size());
  device_->RegisterMemory(region.span());
  ASSERT_TRUE(device_->CreateFile(1, 16 * kMiB).ok());
  std::vector<IoRequest> batch;
  for (int i = 0; i < 64; ++i) {
    batch.push_back(
        {.op = IoOp::kWrite,
         .file = 1,
         .offset = i * 256 * kKiB,
         .buffer = region.span().subspan(i * 256 * kKiB, 256 * kKiB),
         .done = [](const absl::Status& status, uint64_t) { EXPECT_TRUE(status.ok()); }});
  }
  ASSERT_TRUE(device_->Submit(batch).ok());
  device_->UnregisterMemory(region.span());
  // The memory is ours again: what becomes of it does not reach the file.
  std::memset(region.span().data(), 0xFF, region.span().size());
  AlignedBuffer read(16 * kMiB);
  ASSERT_TRUE(ReadBlocking(*device_, 1, 0, read.span()).ok());
  EXPECT_TRUE(std::all_of(read.span().begin(), read.span().end(),
                          [](std::byte b) { return b == std::byte{0x5A}; }));
}

TEST_P(BlockDeviceTest, UnregisteringDoesNotWaitForACompletionThatWaitsForTheCaller) {
  AlignedBuffer region(kMiB);
  AlignedBuffer other(kMiB);
  device_->RegisterMemory(region.span());
  device_->RegisterMemory(other.span());
  ASSERT_TRUE(device_->CreateFile(1, kMiB).ok());
  absl::Notification in_done, unregistered, ended;
  std::vector<IoRequest> batch;
  batch.push_back({.op = IoOp::kWrite,
                   .file = 1,
                   .buffer = region.span(),
                   .done = [&](const absl::Status&, uint64_t) {
                     in_done.Notify();
                     unregistered.WaitForNotification();  // as for a lock that the caller holds
                     device_->UnregisterMemory(region.span());  // and its own memory
                     ended.Notify();
                   }});
  ASSERT_TRUE(device_->Submit(batch).ok());
  in_done.WaitForNotification();
  device_->UnregisterMemory(other.span());
  unregistered.Notify();
  ended.WaitForNotification();
  // The addresses may be registered again at once.
  for (int i = 0; i < 100; ++i) {
    device_->RegisterMemory(region.span());
    ASSERT_TRUE(ReadBlocking(*device_, 1, 0, region.span()).ok());
    device_->UnregisterMemory(region.span());
  }
}

INSTANTIATE_TEST_SUITE_P(All, BlockDeviceTest, ::testing::ValuesIn(Kinds()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace turnkeep
