// Loads from disk that go wrong on the way, end early, or are reported on too late.
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "disk_tier/testing/fault_block_device.h"
#include "store/operations.h"
#include "testing/eventually.h"
#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

constexpr uint64_t kTokens = 64;  // one chunk, and one read

class Load : public ::testing::Test {
 protected:
  // Sessions s0 … s2, on disk and not in host memory.
  void SetUp() override {
    StoreOptions options = SmallStoreOptions(directory_.path() + "/data", &clock_);
    options.wrap_device = [this](std::unique_ptr<BlockDevice> device) {
      auto faulty = std::make_unique<FaultBlockDevice>(std::move(device));
      device_ = faulty.get();
      return faulty;
    };
    for (const bool fill : {true, false}) {
      opened_.reset();
      auto opened = OpenedStore::Open(options);
      ASSERT_TRUE(opened.ok()) << opened.status();
      opened_ = *std::move(opened);
      ASSERT_TRUE(kv().RegisterLayout(BlockLayout()).ok());
      for (uint64_t i = 0; fill && i < 3; ++i) Save(i);
      if (!fill) continue;
      ASSERT_TRUE(opened_->Close().ok());
    }
    ASSERT_EQ(kv().Status()->host.used_bytes, 0u);
  }
  void Save(uint64_t i) {
    const KvContext context = ContextOf(i, kTokens);
    const auto saved = SaveAll(kv(), pattern_, {.session = Name(i), .context = &context});
    ASSERT_TRUE(saved.ok()) << saved.status();
  }
  RestoreOutcome Restore(uint64_t i) {
    const KvContext context = ContextOf(i, kTokens);
    const auto restored =
        RestoreAndCheck(kv(), pattern_, {.session = Name(i), .context = &context});
    EXPECT_TRUE(restored.ok()) << restored.status();
    return restored.ok() ? *restored : RestoreOutcome{};
  }
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
  static std::string Name(uint64_t i) { return "s" + std::to_string(i); }
  KvStore& kv() { return opened_->kv(); }

  TemporaryDirectory directory_;
  ManualClock clock_;
  const KvPattern pattern_{BlockLayout()};
  FaultBlockDevice* device_ = nullptr;
  std::unique_ptr<OpenedStore> opened_;
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
