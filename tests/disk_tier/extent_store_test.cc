#include "disk_tier/extent_store.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include <absl/synchronization/blocking_counter.h>
#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/digest.h"
#include "disk_tier/aligned_buffer.h"
#include "disk_tier/extent_file_header.h"
#include "disk_tier/testing/fault_block_device.h"
#include "disk_tier/testing/memory_block_device.h"

namespace turnkeep {
namespace {

constexpr uint64_t kSlot = 4 * kBlockBytes;
constexpr auto kDemotion = WritePurpose::kDemotion;
constexpr auto kDurability = WritePurpose::kDurability;

class ExtentStoreTest : public ::testing::Test {
 protected:
  void Open(ExtentStoreOptions options) {
    store_.reset();
    device_.reset();
    device_ = std::make_unique<FaultBlockDevice>(OpenMemoryBlockDevice(disk_));
    options.clock = &clock_;
    auto store = ExtentStore::Open(device_.get(), options);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = std::move(*store);
  }
  // Files of eight slots, and room for three of them.
  void OpenSmall() { Open({.capacity_bytes = 3 * kFile, .file_bytes = kFile}); }
  static constexpr uint64_t kFile = kExtentHeaderBytes + 8 * kSlot;

  ExtentRef Take(uint64_t slot_bytes = kSlot) {
    auto ref = store_->Allocate(slot_bytes, kDurability);
    EXPECT_TRUE(ref.ok()) << ref.status();
    return ref.ok() ? *ref : ExtentRef{};
  }
  absl::Status WriteAndWait(ExtentRef ref, std::span<const std::byte> image) {
    absl::Notification finished;
    absl::Status result;
    absl::Status started = store_->Write(ref, image, [&](const absl::Status& status, uint64_t) {
      result = status;
      finished.Notify();
    });
    if (!started.ok()) return started;
    finished.WaitForNotification();
    return result;
  }
  absl::Status ReadAndWait(ExtentRef ref, uint64_t offset, std::span<std::byte> buffer) {
    absl::Notification finished;
    absl::Status result;
    absl::Status started =
        store_->Read(ref, offset, buffer, [&](const absl::Status& status, uint64_t) {
          result = status;
          finished.Notify();
        });
    if (!started.ok()) return started;
    finished.WaitForNotification();
    return result;
  }
  absl::Status SyncAndWait(std::vector<uint32_t> files) {
    absl::Notification finished;
    absl::Status result;
    absl::Status started = store_->Sync(files, [&](const absl::Status& status) {
      result = status;
      finished.Notify();
    });
    if (!started.ok()) return started;
    finished.WaitForNotification();
    return result;
  }
  uint64_t BytesOnDisk() {
    uint64_t bytes = 0;
    std::vector<DeviceFile> files = device_->ListFiles().value();
    for (const DeviceFile& file : files) bytes += file.bytes;
    return bytes;
  }

  ManualClock clock_;
  std::shared_ptr<MemoryDisk> disk_ = std::make_shared<MemoryDisk>();
  std::unique_ptr<FaultBlockDevice> device_;
  std::unique_ptr<ExtentStore> store_;
};

TEST_F(ExtentStoreTest, WhatIsWrittenToASlotIsReadFromIt) {
  OpenSmall();
  ExtentRef ref = Take();
  AlignedBuffer image(kSlot);
  std::memset(image.data(), 0x3C, image.size());
  ASSERT_TRUE(WriteAndWait(ref, image.span()).ok());
  AlignedBuffer read(2 * kBlockBytes);
  ASSERT_TRUE(ReadAndWait(ref, kBlockBytes, read.span()).ok());
  EXPECT_EQ(std::memcmp(read.data(), image.data(), read.size()), 0);
}

TEST_F(ExtentStoreTest, RefusesIoOutsideTheSlotOrOnAFreeSlot) {
  OpenSmall();
  ExtentRef ref = Take();
  AlignedBuffer buffer(2 * kSlot);
  EXPECT_TRUE(absl::IsInvalidArgument(WriteAndWait(ref, buffer.span())));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadAndWait(ref, kSlot, buffer.span().first(kBlockBytes))));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadAndWait({9, 0}, 0, buffer.span().first(kBlockBytes))));
  store_->Free(ref);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadAndWait(ref, 0, buffer.span().first(kBlockBytes))));
}

TEST_F(ExtentStoreTest, TheCapCountsWholeFilesAndIsCheckedBeforeOneIsMade) {
  Open({.capacity_bytes = 2 * kFile + kExtentHeaderBytes + 2 * kSlot, .file_bytes = kFile});
  std::vector<ExtentRef> refs;
  for (int i = 0; i < 18; ++i) refs.push_back(Take());  // the third file has two slots
  absl::StatusOr<ExtentRef> more = store_->Allocate(kSlot, kDurability);
  EXPECT_TRUE(absl::IsResourceExhausted(more.status()));
  EXPECT_THAT(std::string(more.status().message()), ::testing::HasSubstr("cap"));
  EXPECT_EQ(store_->Usage().file_bytes, store_->Usage().capacity_bytes);
  EXPECT_EQ(BytesOnDisk(), store_->Usage().file_bytes);
  store_->Free(refs[5]);
  EXPECT_EQ(Take(), refs[5]);
}

TEST_F(ExtentStoreTest, AnEntirelyFreeFileGivesItsSpaceToAnotherClass) {
  OpenSmall();
  std::vector<ExtentRef> refs;
  for (int i = 0; i < 24; ++i) refs.push_back(Take());
  EXPECT_TRUE(absl::IsResourceExhausted(store_->Allocate(2 * kSlot, kDurability).status()));
  EXPECT_EQ(store_->CheapestFileToEmpty(2 * kSlot), 1u);
  for (ExtentRef ref : refs) {
    if (ref.file == 2) store_->Free(ref);
  }
  ExtentRef other = Take(2 * kSlot);
  EXPECT_EQ(other.file, 4u) << "file numbers are not reused";
  EXPECT_LE(BytesOnDisk(), 3 * kFile);
  EXPECT_EQ(BytesOnDisk(), store_->Usage().file_bytes);
}

TEST_F(ExtentStoreTest, ASlotLargerThanAUsualFileGetsAFileThatFits) {
  Open({.capacity_bytes = 64 * kMiB, .file_bytes = kMiB});
  ExtentRef ref = Take(8 * kMiB);
  EXPECT_EQ(store_->Files().at(0).slots, 4u);
  EXPECT_EQ(store_->SlotBytes(ref.file), 8 * kMiB);
  EXPECT_TRUE(absl::IsResourceExhausted(store_->Allocate(64 * kMiB, kDurability).status()));
}

TEST_F(ExtentStoreTest, AFullFileSystemChangesNothing) {
  disk_ = std::make_shared<MemoryDisk>(kFile);
  OpenSmall();
  for (int i = 0; i < 8; ++i) Take();
  ExtentUsage before = store_->Usage();
  EXPECT_TRUE(absl::IsResourceExhausted(store_->Allocate(kSlot, kDurability).status()));
  EXPECT_EQ(store_->Usage(), before);
}

TEST_F(ExtentStoreTest, AFileWhoseHeaderCannotBeWrittenIsTakenBack) {
  OpenSmall();
  device_->Inject({.at = 0, .kind = FaultKind::kEio, .for_good = true, .only = {DeviceOp::kWrite}});
  EXPECT_TRUE(absl::IsUnavailable(store_->Allocate(kSlot, kDurability).status()));
  EXPECT_EQ(BytesOnDisk(), 0u);
  EXPECT_EQ(store_->Usage().file_bytes, 0u);
  device_->ClearFaults();
  EXPECT_FALSE(Take().IsNull());
}

TEST_F(ExtentStoreTest, AdjacentSlotsAndMemoryBecomeOneWrite) {
  OpenSmall();
  AlignedBuffer images(4 * kSlot);
  for (size_t i = 0; i < images.size(); ++i) images.data()[i] = static_cast<std::byte>(i * 31 >> 7);
  absl::BlockingCounter finished(4);
  std::vector<ExtentWrite> writes;
  std::vector<uint64_t> bytes(4);
  for (size_t i = 0; i < 4; ++i) {
    writes.push_back({Take(), images.span().subspan(i * kSlot, kSlot),
                      [&, i](const absl::Status& status, uint64_t n) {
                        EXPECT_TRUE(status.ok()) << status;
                        bytes[i] = n;
                        finished.DecrementCount();
                      }});
  }
  uint64_t before = device_->operation_count();
  std::vector<ExtentRef> refs;
  for (auto& write : writes) refs.push_back(write.ref);
  ASSERT_TRUE(store_->WriteMany(writes).ok());
  finished.Wait();
  EXPECT_EQ(device_->operation_count() - before, 1u);
  EXPECT_THAT(bytes, ::testing::Each(kSlot));
  AlignedBuffer read(kSlot);
  for (size_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(ReadAndWait(refs[i], 0, read.span()).ok());
    EXPECT_EQ(std::memcmp(read.data(), images.data() + i * kSlot, kSlot), 0) << i;
  }
}

TEST_F(ExtentStoreTest, ARefusedBatchLeavesItsCompletionsWithTheCaller) {
  OpenSmall();
  AlignedBuffer image(2 * kSlot);
  std::vector<ExtentWrite> writes;
  int ran = 0;
  for (int i = 0; i < 2; ++i) {
    writes.push_back({Take(), image.span().subspan(i * kSlot, kSlot),
                      [&](const absl::Status&, uint64_t) { ++ran; }});
  }
  ASSERT_TRUE(device_->DeleteFile(1).ok());  // the device now refuses the file
  EXPECT_FALSE(store_->WriteMany(writes).ok());
  ASSERT_TRUE(writes[0].done && writes[1].done);
  writes[0].done(absl::OkStatus(), 0);
  EXPECT_EQ(ran, 1);
}

TEST_F(ExtentStoreTest, AShortTransferIsAnErrorAndNotASuccess) {
  OpenSmall();
  ExtentRef ref = Take();
  AlignedBuffer image(kSlot);
  device_->Inject(
      {.at = device_->operation_count(), .kind = FaultKind::kShort, .bytes = kBlockBytes});
  EXPECT_TRUE(absl::IsUnavailable(WriteAndWait(ref, image.span())));
  device_->Inject({.at = device_->operation_count(), .kind = FaultKind::kShort, .bytes = 0});
  EXPECT_TRUE(absl::IsUnavailable(ReadAndWait(ref, 0, image.span())));
}

TEST_F(ExtentStoreTest, AFailedSyncPoisonsTheFileForWritesOnly) {
  OpenSmall();
  ExtentRef ref = Take();
  AlignedBuffer image(kSlot);
  ASSERT_TRUE(WriteAndWait(ref, image.span()).ok());
  device_->Inject({.at = device_->operation_count(), .kind = FaultKind::kEio});
  EXPECT_TRUE(absl::IsUnavailable(SyncAndWait({1})));
  EXPECT_TRUE(store_->IsPoisoned(1));
  uint64_t operations = device_->operation_count();
  EXPECT_TRUE(absl::IsUnavailable(SyncAndWait({1}))) << "not retried";
  EXPECT_TRUE(absl::IsUnavailable(WriteAndWait(ref, image.span())));
  EXPECT_EQ(device_->operation_count(), operations);
  EXPECT_TRUE(ReadAndWait(ref, 0, image.span()).ok());
  EXPECT_EQ(Take().file, 2u) << "new slots come from another file";
  EXPECT_EQ(store_->Usage().quarantined_bytes, 7 * kSlot);
  store_->Free(ref);
  EXPECT_EQ(store_->DeleteFreeFiles().value(), 1u);
  EXPECT_EQ(store_->Usage().poisoned_files, 0u);
}

TEST_F(ExtentStoreTest, ASyncOfSeveralFilesReportsTheFirstErrorOnce) {
  OpenSmall();
  for (int i = 0; i < 17; ++i) Take();
  device_->Inject({.at = device_->operation_count() + 1, .kind = FaultKind::kEio});
  EXPECT_TRUE(absl::IsUnavailable(SyncAndWait({1, 2, 3})));
  EXPECT_FALSE(store_->IsPoisoned(1));
  EXPECT_TRUE(store_->IsPoisoned(2));
  EXPECT_FALSE(store_->IsPoisoned(3));
  EXPECT_TRUE(SyncAndWait({1, 3}).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(SyncAndWait({77})));
  EXPECT_TRUE(SyncAndWait({}).ok());
}

TEST_F(ExtentStoreTest, TheWriteBudgetRefusesDemotionsButOnlyCountsWhatMustBeWritten) {
  Open({.capacity_bytes = 64 * kMiB,
        .file_bytes = kMiB,
        .write_budget_bytes_per_day = 24 * 10 * kSlot});
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(store_->Allocate(kSlot, kDemotion).ok()) << i;
  absl::StatusOr<ExtentRef> over = store_->Allocate(kSlot, kDemotion);
  EXPECT_TRUE(absl::IsResourceExhausted(over.status()));
  EXPECT_THAT(std::string(over.status().message()), ::testing::HasSubstr("budget"));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(store_->Allocate(kSlot, kDurability).ok());
  clock_.AdvanceSeconds(3600 / 2);  // pays the debt back, no more
  EXPECT_FALSE(store_->Allocate(kSlot, kDemotion).ok());
  clock_.AdvanceSeconds(3600 / 4);
  EXPECT_TRUE(store_->Allocate(kSlot, kDemotion).ok());
  // No day sees more than the day's budget granted.
  int granted = 0;
  for (int minute = 0; minute < 24 * 60; ++minute) {
    while (store_->Allocate(kSlot, kDemotion).ok()) ++granted;
    clock_.AdvanceSeconds(60);
  }
  EXPECT_LE(granted, 240);
  EXPECT_GE(granted, 225);
}

TEST_F(ExtentStoreTest, ReopenedFilesKnowTheirClassAndAreFreeUntilMarked) {
  OpenSmall();
  ExtentRef a = Take();
  ExtentRef b = Take(2 * kSlot);
  OpenSmall();
  EXPECT_EQ(store_->SlotBytes(a.file), kSlot);
  EXPECT_EQ(store_->SlotBytes(b.file), 2 * kSlot);
  EXPECT_EQ(store_->Usage().used_bytes, 0u);
  EXPECT_TRUE(store_->MarkUsed(a, kSlot).ok());
  EXPECT_EQ(store_->DeleteFreeFiles().value(), 1u);
  EXPECT_EQ(store_->Files().size(), 1u);
  EXPECT_EQ(Take(2 * kSlot).file, 3u);
}

// Slots that are free in files over the cap are no room.
TEST_F(ExtentStoreTest, ACapThatWasMadeSmallerHoldsAtOnce) {
  OpenSmall();
  const ExtentRef a = Take();
  const ExtentRef b = Take(2 * kSlot);
  Open({.capacity_bytes = kFile, .file_bytes = kFile});
  ASSERT_TRUE(store_->MarkUsed(a, kSlot).ok() && store_->MarkUsed(b, 2 * kSlot).ok());
  const auto refused = store_->Allocate(kSlot, WritePurpose::kDurability);
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status())) << refused.status();
}

TEST_F(ExtentStoreTest, ADamagedHeaderIsRepairedFromTheRecords) {
  OpenSmall();
  ExtentRef ref = Take();
  AlignedBuffer image(kSlot);
  std::memset(image.data(), 0x77, image.size());
  ASSERT_TRUE(WriteAndWait(ref, image.span()).ok());
  disk_->FlipBit(1, 33, 4);
  OpenSmall();
  EXPECT_THAT(store_->FilesWithDamagedHeaders(), ::testing::ElementsAre(1u));
  ASSERT_TRUE(store_->MarkUsed(ref, kSlot).ok());
  ASSERT_TRUE(store_->RepairHeaders().ok());
  AlignedBuffer read(kSlot);
  ASSERT_TRUE(ReadAndWait(ref, 0, read.span()).ok());
  EXPECT_EQ(std::memcmp(read.data(), image.data(), kSlot), 0);
  OpenSmall();
  EXPECT_TRUE(store_->FilesWithDamagedHeaders().empty());
  EXPECT_EQ(store_->SlotBytes(1), kSlot);
}

TEST_F(ExtentStoreTest, FilesOfAnotherStoreAreRefused) {
  OpenSmall();
  Take();
  ExtentStoreOptions other{.capacity_bytes = kGiB, .store_id = {1, 2, 3}};
  EXPECT_TRUE(absl::IsFailedPrecondition(ExtentStore::Open(device_.get(), other).status()));
}

TEST_F(ExtentStoreTest, ParallelAllocationNeverGivesASlotTwiceNorPassesTheCap) {
  constexpr uint64_t kCapacity = 40 * kFile;
  Open({.capacity_bytes = kCapacity, .file_bytes = kFile});
  std::vector<std::vector<ExtentRef>> kept(4);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kept.size(); ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 3000; ++i) {
        if (!kept[t].empty() && random() % 2 == 0) {
          std::swap(kept[t][random() % kept[t].size()], kept[t].back());
          store_->Free(kept[t].back());
          kept[t].pop_back();
          continue;
        }
        uint64_t slot_bytes = (random() % 3 + 1) * kSlot;
        absl::StatusOr<ExtentRef> ref = store_->Allocate(slot_bytes, kDemotion);
        if (ref.ok()) kept[t].push_back(*ref);
        EXPECT_LE(store_->Usage().file_bytes, kCapacity);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<ExtentRef> all;
  uint64_t used_bytes = 0;
  for (const auto& refs : kept) all.insert(all.end(), refs.begin(), refs.end());
  for (ExtentRef ref : all) used_bytes += store_->SlotBytes(ref.file);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());
  EXPECT_EQ(store_->Usage().used_bytes, used_bytes);
  EXPECT_EQ(BytesOnDisk(), store_->Usage().file_bytes);
}

ExtentFileHeader GoodFileHeader() {
  return {.file = 9,
          .slot_count = 15,
          .store_id = {7},
          .slot_bytes = kSlot,
          .file_bytes = kExtentHeaderBytes + 15 * kSlot,
          .created_unix_s = 12};
}

TEST(ExtentFileHeader, RoundTripsAndEveryFlippedBitIsDamage) {
  const ExtentFileHeader header = GoodFileHeader();
  AlignedBuffer block(kExtentHeaderBytes);
  EncodeExtentFileHeader(header, block.span());
  EXPECT_EQ(DecodeExtentFileHeader(block.span(), 9).value(), header);
  EXPECT_TRUE(absl::IsDataLoss(DecodeExtentFileHeader(block.span(), 8).status()));
  for (size_t bit = 0; bit < kExtentHeaderBytes * 8; ++bit) {
    block.data()[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    ASSERT_TRUE(absl::IsDataLoss(DecodeExtentFileHeader(block.span(), 9).status())) << bit;
    block.data()[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
}

// A right digest over what no header of ours says.
TEST(ExtentFileHeader, EveryFieldIsCheckedUnderARightDigest) {
  const ExtentFileHeader good = GoodFileHeader();
  AlignedBuffer block(kExtentHeaderBytes);
  const auto with = [&](size_t offset, auto value, uint32_t sealed_for = 9) {
    EncodeExtentFileHeader(good, block.span());
    std::memcpy(block.data() + offset, &value, sizeof(value));
    const size_t bound = kExtentHeaderBytes - sizeof(Digest);
    const Digest digest =
        ComputeDigest({.layer = kHeaderLayer, .epoch = sealed_for}, std::span(block.data(), bound));
    std::memcpy(block.data() + bound, &digest, sizeof(digest));
    return DecodeExtentFileHeader(block.span(), sealed_for).status();
  };
  EXPECT_TRUE(with(8, kExtentFormatVersion).ok());
  EXPECT_TRUE(absl::IsDataLoss(with(0, 'X'))) << "magic";
  EXPECT_TRUE(absl::IsDataLoss(with(8, uint32_t{0}))) << "version 0";
  EXPECT_TRUE(absl::IsFailedPrecondition(with(8, kExtentFormatVersion + 1))) << "newer version";
  EXPECT_TRUE(absl::IsDataLoss(with(12, uint32_t{9}, 8))) << "sealed for another file";
  EXPECT_TRUE(absl::IsDataLoss(with(32, uint64_t{0}))) << "slots of nothing";
  EXPECT_TRUE(absl::IsDataLoss(with(32, uint64_t{kSlot / 2 + 1}))) << "slots off the blocks";
  EXPECT_TRUE(absl::IsDataLoss(with(48, uint32_t{16}))) << "more slots than fit";
  EncodeExtentFileHeader(good, block.span());
  EXPECT_TRUE(absl::IsDataLoss(
      DecodeExtentFileHeader(block.span().first(kExtentHeaderBytes - 1), 9).status()));
}

}  // namespace
}  // namespace turnkeep
