// Loads from disk that go wrong on the way, end early, or are reported on too late.
#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "store/disk_sessions.h"
#include "store/operations.h"
#include "testing/eventually.h"

namespace turnkeep::testing {
namespace {

constexpr uint64_t kTokens = 64;  // one chunk, and one read

class Load : public DiskSessions {
 protected:
  Load() : DiskSessions(kTokens) {}
  void SetUp() override { OpenWithSessions(3); }
  std::unique_ptr<RestoreOperation> Begin(uint64_t i) {
    absl::StatusOr<std::unique_ptr<RestoreOperation>> begun = absl::UnknownError("it waits");
    opened_->store().BeginRestore(*opened_->store().OpenTenant("default"),
                                  {.session = Name(i), .layout = pattern_.fingerprint()},
                                  [&begun](absl::StatusOr<std::unique_ptr<RestoreOperation>> done) {
                                    begun = std::move(done);
                                  },
                                  {});
    EXPECT_TRUE(begun.ok()) << begun.status();
    return begun.ok() ? *std::move(begun) : nullptr;
  }
  // All of the extent file: its header's block, then the slots of s0, s1, s2.
  std::string FileOnDisk() const {
    std::ifstream file(FilePath(), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  void PutOnDisk(uint64_t slot, const std::string& bytes, uint64_t offset = 0) {
    std::fstream file(FilePath(), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(kBlockBytes + slot * session_bytes_ + offset));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    ASSERT_TRUE(file.flush().good());
  }
  std::string SlotOf(const std::string& file, uint64_t slot) const {
    return file.substr(kBlockBytes + slot * session_bytes_, session_bytes_);
  }
  std::string FilePath() const { return directory_.path() + "/data/extents/00000001.tkx"; }
  // It is the load that finds out, before an engine sees anything.
  void ExpectMissFromDisk(uint64_t i) {
    const RestoreOutcome restored = Restore(i);
    EXPECT_EQ(restored.token_count, 0u);
    EXPECT_EQ(restored.data_losses, 0u);
    EXPECT_THAT(restored.miss_reason, ::testing::HasSubstr("digest"));
    EXPECT_EQ(HostBytes(), 0u);
  }
  void DelayReads() {
    device_->Inject(
        {.at = 0, .kind = FaultKind::kDelay, .for_good = true, .only = {DeviceOp::kRead}});
  }
};

// The slot that a restore was cut from may hold another chunk by now.
TEST_F(Load, AReportOfDamageInWhatWasCutDropsNothing) {
  DelayReads();
  const auto restore = Begin(0);
  ASSERT_NE(restore, nullptr);
  device_->WaitForDelayed(1);
  restore->CutAtLayer(0);
  EXPECT_EQ(restore->progress().valid_tokens, 0u);
  device_->Release();
  ASSERT_TRUE(Eventually([&] { return kv().Status()->host.used_bytes == 0; }));
  Save(7);
  EXPECT_EQ(Restore(0).disk_tokens, kTokens);
  restore->ReportDamage(0, 0);
  EXPECT_EQ(Restore(0).disk_tokens, 0u) << "it is in host memory still";
}

// A write that went astray: whole chunks with right digests, each in the other's slot.
TEST_F(Load, WhatLiesInAnotherChunksSlotIsAMiss) {
  const std::string file = FileOnDisk();
  PutOnDisk(0, SlotOf(file, 1));
  PutOnDisk(1, SlotOf(file, 0));
  ExpectMissFromDisk(0);
  ExpectMissFromDisk(1);
  EXPECT_EQ(Restore(2).disk_tokens, kTokens);
}

// A write that never came down: what the slot held before was a chunk of the same tokens, so of the
// same identity, with other KV.
TEST_F(Load, AnEarlierCopyOfTheSameTokensIsAMiss) {
  const std::string old = SlotOf(FileOnDisk(), 0);
  ASSERT_TRUE(kv().DropSession("s0").ok());
  const KvContext other = ContextOf(0, kTokens, /*salt=*/1);
  ASSERT_EQ(other.tokens(), ContextOf(0, kTokens).tokens());
  ASSERT_TRUE(SaveAll(kv(), pattern_, {.session = "s0", .context = &other}).ok());
  ASSERT_TRUE(opened_->Close().ok());
  const std::string file = FileOnDisk();
  constexpr size_t kIdOffset = 32;
  int replaced = 0;
  for (uint64_t slot = 0; kBlockBytes + (slot + 1) * session_bytes_ <= file.size(); ++slot) {
    if (SlotOf(file, slot).substr(kIdOffset, 32) != old.substr(kIdOffset, 32)) continue;
    PutOnDisk(slot, old);
    ++replaced;
  }
  ASSERT_GE(replaced, 1);
  Reopen();
  ExpectMissFromDisk(0);
}

TEST_F(Load, ADamagedHeaderIsAMiss) {
  for (uint64_t i = 0; i < 3; ++i) {
    const uint64_t offset = std::array<uint64_t, 3>{0, 40, 200}[i];  // magic, id, a digest
    const char was = SlotOf(FileOnDisk(), i)[offset];
    PutOnDisk(i, std::string(1, static_cast<char>(was ^ 1)), offset);
    ExpectMissFromDisk(i);
  }
}

TEST_F(Load, AReadThatFailsOrLiesOnceIsTriedAgain) {
  uint64_t i = 0;
  for (const FaultKind kind : {FaultKind::kEio, FaultKind::kBitFlip}) {
    device_->Inject({.at = device_->operation_count(), .kind = kind, .only = {DeviceOp::kRead}});
    const RestoreOutcome restored = Restore(i++);
    EXPECT_EQ(restored.disk_tokens, kTokens) << restored.miss_reason;
  }
  EXPECT_EQ(Count("digest_failures_total"), 0);
}

// The tokens by which a prompt is compared inside a chunk are those of that chunk.
TEST_F(Load, AMatchInsideAChunkReadsNoOthersHeader) {
  ASSERT_EQ(Restore(0).token_count, kTokens);
  ASSERT_EQ(Restore(1).token_count, kTokens);
  auto zero = Begin(0);
  auto one = Begin(1);
  std::memcpy(zero->slots()[0].memory.data(), one->slots()[0].memory.data(),
              zero->slots()[0].memory.size());
  zero.reset();
  one.reset();
  const KvContext begins_alike = ContextOf(0, kTokens - 20);
  const auto restored =
      RestoreAndCheck(kv(), pattern_, {.session = "s0", .context = &begins_alike});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->disk_tokens, kTokens - 20) << restored->miss_reason;
}

// Every engine of the tenant may report; what it says is looked at, not believed.
TEST_F(Load, AReportOfDamageIsCheckedBeforeTheCopyIsDropped) {
  for (const uint32_t layer : {0u, 3u, kHeaderLayer}) {
    SCOPED_TRACE(layer);
    ASSERT_EQ(Restore(0).token_count, kTokens);  // it is in host memory now
    auto restore = Begin(0);
    restore->ReportDamage(1, layer);  // there is none
    EXPECT_EQ(restore->progress().valid_tokens, kTokens);
    restore->ReportDamage(0, layer);
    EXPECT_EQ(restore->progress().valid_tokens, 0u) << "who does not trust it does not use it";
    restore.reset();
    EXPECT_EQ(Restore(0).host_tokens, kTokens) << "nothing was damaged";
    restore = Begin(0);
    const ChunkSlot& slot = restore->slots()[0];
    const uint64_t offset = layer == kHeaderLayer ? 40 : slot.geometry->page_offset[layer];
    slot.memory[offset] ^= std::byte{1};
    restore->ReportDamage(0, layer);
    restore.reset();
    EXPECT_EQ(Restore(0).disk_tokens, kTokens) << "the damaged copy was not dropped";
  }
}

// Sessions of two chunks, of two layers of half a MiB each: of each layer both chunks' pages are
// read, in a read each.
class LoadInTwoReads : public DiskSessions {
 protected:
  static constexpr uint64_t kLoadTokens = 128;

  static KvLayout TwoReads() {
    KvLayout layout = BlockLayout("two-reads");
    layout.layers.assign(2, LayerSpec::Full(4, 512, DType::kBFloat16));
    return layout;
  }

  LoadInTwoReads() : DiskSessions(kLoadTokens, TwoReads()) {
    options_.host_segment_bytes = 4 * kMiB;
    options_.extent_file_bytes = 16 * kMiB;
  }
  void SetUp() override { OpenWithSessions(1); }
  std::unique_ptr<RestoreTicket> Begin() {
    auto begun = kv().BeginRestore({.session = "s0", .layout = pattern_.fingerprint()});
    EXPECT_TRUE(begun.ok()) << begun.status();
    return begun.ok() ? *std::move(begun) : nullptr;
  }
  // A restore of s0 whose first layer is there, and whose second read is held up.
  void BeginAndHoldTheSecondRead() {
    device_->Inject({.at = device_->operation_count() + 2,
                     .kind = FaultKind::kDelay,
                     .for_good = true,
                     .only = {DeviceOp::kRead}});
    restore_ = Begin();
    ASSERT_NE(restore_, nullptr);
    ASSERT_EQ(*restore_->WaitLayer(0), kLoadTokens) << restore_->miss_reason();
    page_ = restore_->Page(0, 0);
    before_.assign(page_.begin(), page_.end());
    device_->WaitForDelayed(2);
  }
  // Every slot ends with the last layer.
  void FlipLastLayerOnDisk() {
    std::fstream file(directory_.path() + "/data/extents/00000001.tkx",
                      std::ios::binary | std::ios::in | std::ios::out);
    const std::string junk(kBlockBytes, '\x5a');
    for (int slot = 1; slot <= 2; ++slot) {
      file.seekp(static_cast<std::streamoff>(slot * session_bytes_ / 2));
      file.write(junk.data(), static_cast<std::streamsize>(junk.size()));
    }
    ASSERT_TRUE(file.flush().good());
  }
  // What the engine copies from is still the page, while others take what slots they can; its slot
  // goes with the restore.
  void ExpectPageKeptUntilTheRelease(uint64_t host_bytes) {
    EXPECT_EQ(HostBytes(), host_bytes);
    for (uint64_t i = 1; i < 4; ++i) Save(i);
    EXPECT_TRUE(std::equal(page_.begin(), page_.end(), before_.begin()));
    const uint64_t with = HostBytes();
    restore_.reset();
    EXPECT_TRUE(Eventually([&] { return HostBytes() == with - session_bytes_; }));
  }

  std::unique_ptr<RestoreTicket> restore_;
  std::span<const std::byte> page_;
  std::vector<std::byte> before_;
};

// An engine copies a page of layer 0 while its restore is cut at layer 1: by a read that failed
// twice, or by the deadline.
TEST_F(LoadInTwoReads, APageStaysWhereItIsWhenItsLoadFails) {
  BeginAndHoldTheSecondRead();
  FlipLastLayerOnDisk();
  device_->Release();
  EXPECT_EQ(*restore_->WaitLayer(1), 0u);
  EXPECT_EQ(Restore(0).token_count, 0u);
  ExpectPageKeptUntilTheRelease(session_bytes_);
}

TEST_F(LoadInTwoReads, APageStaysWhereItIsWhenItsLoadIsCutAtADeadline) {
  BeginAndHoldTheSecondRead();
  EXPECT_EQ(*restore_->WaitLayer(1, absl::ZeroDuration()), 0u);
  device_->Release();
  EXPECT_EQ(Restore(0).disk_tokens, kLoadTokens) << "read again, to another slot";
  ExpectPageKeptUntilTheRelease(2 * session_bytes_);
}

TEST_F(LoadInTwoReads, APageStaysWhereItIsWhenAnotherRestoreGoesOnWithItsLoad) {
  BeginAndHoldTheSecondRead();
  auto other = Begin();
  EXPECT_EQ(*restore_->WaitLayer(1, absl::ZeroDuration()), 0u);
  device_->Release();
  EXPECT_EQ(*other->WaitLayer(1), kLoadTokens);
  other.reset();
  ASSERT_TRUE(kv().DropSession("s0").ok());
  ExpectPageKeptUntilTheRelease(session_bytes_);
}

TEST_F(Load, AReportOfDamageInWhatIsStillReadDropsNothing) {
  DelayReads();
  const auto restore = Begin(0);
  ASSERT_NE(restore, nullptr);
  const auto other = Begin(0);  // joins
  device_->WaitForDelayed(1);
  restore->ReportDamage(0, 0);
  EXPECT_EQ(restore->progress().valid_tokens, 0u);
  device_->Release();
  ASSERT_TRUE(Eventually([&] { return other->progress().finished; }));
  EXPECT_EQ(other->progress().valid_tokens, kTokens);
  EXPECT_EQ(Restore(0).disk_tokens, 0u);
}

}  // namespace
}  // namespace turnkeep::testing
