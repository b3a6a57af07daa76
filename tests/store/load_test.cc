// Loads from disk that go wrong on the way, end early, or are reported on too late.
#include <algorithm>
#include <fstream>
#include <functional>
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
