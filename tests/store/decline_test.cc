// Never slower than recompute, through a store whose disk reads at a rate of the test's choosing.
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/hint.h"
#include "disk_tier/block_device.h"
#include "store/disk_sessions.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kTokens = 192;  // three whole chunks

// Every read takes its bytes ÷ rate of the manual clock.
class ThrottledDevice : public BlockDevice {
 public:
  ThrottledDevice(std::unique_ptr<BlockDevice> device, ManualClock* clock, const double* rate)
      : device_(std::move(device)), clock_(clock), rate_(rate) {}

  absl::Status CreateFile(uint32_t file, uint64_t bytes) override {
    return device_->CreateFile(file, bytes);
  }
  absl::StatusOr<uint64_t> OpenFile(uint32_t file) override { return device_->OpenFile(file); }
  absl::Status DeleteFile(uint32_t file) override { return device_->DeleteFile(file); }
  absl::StatusOr<std::vector<DeviceFile>> ListFiles() override { return device_->ListFiles(); }
  absl::Status Submit(std::span<IoRequest> requests) override {
    for (IoRequest& request : requests) {
      if (request.op != IoOp::kRead) continue;
      request.done = [this, done = std::move(request.done)](const absl::Status& status,
                                                            uint64_t bytes) mutable {
        clock_->AdvanceNs(static_cast<int64_t>(static_cast<double>(bytes) / *rate_ * 1e9));
        done(status, bytes);
      };
    }
    return device_->Submit(requests);
  }
  void RegisterMemory(std::span<std::byte> memory) override { device_->RegisterMemory(memory); }
  void UnregisterMemory(std::span<std::byte> memory) override { device_->UnregisterMemory(memory); }
  std::string Describe() const override { return device_->Describe(); }
  BlockDeviceStats Stats() const override { return device_->Stats(); }

 private:
  const std::unique_ptr<BlockDevice> device_;
  ManualClock* const clock_;
  const double* const rate_;
};

class Decline : public DiskSessions {
 protected:
  // Nothing is prefetched.
  Decline() : DiskSessions(kTokens) {
    options_.prefetch_share = 0;
    options_.wrap_device = [this](std::unique_ptr<BlockDevice> device) {
      return std::make_unique<ThrottledDevice>(std::move(device), &clock_, &rate_);
    };
  }
  void SetUp() override {
    OpenWithSessions(10);
    bytes_per_token_ = static_cast<double>(kv().Explain({.session = "s0"})->disk_bytes) / kTokens;
  }
  void TearDown() override { opened_.reset(); }  // its device looks at rate_
  // The engine prefills as many tokens a second as the disk reads at `bytes_per_s`, where there is
  // nothing to attend to.
  void EngineKeepsUpWith(double bytes_per_s, double half_speed_tokens = 0) {
    const HintReply reply =
        kv().Hint({.speeds = {{.layout = pattern_.fingerprint(),
                               .prefill_tokens_per_s = bytes_per_s / bytes_per_token_,
                               .prefill_half_speed_tokens = half_speed_tokens,
                               .copy_bytes_per_s = 1e15}}});
    ASSERT_EQ(reply.speeds[0].outcome, HintOutcome::kAccepted) << reply.speeds[0].reason;
  }

  double rate_ = 1e6;  // bytes a second
  double bytes_per_token_ = 0;
};

TEST_F(Decline, WithoutASpeedTheSlowestDiskIsRead) {
  rate_ = 1;
  for (uint64_t i = 0; i < 3; ++i) EXPECT_EQ(Restore(i).disk_tokens, kTokens);
  EXPECT_EQ(Count("restores_declined_total"), 0);
  EXPECT_EQ(kv().Explain({.session = "s5"})->recompute_us, 0);
}

TEST_F(Decline, WhatTheDiskIsTooSlowForIsPrefilled) {
  EngineKeepsUpWith(4e6);  // four times the disk
  EXPECT_EQ(Restore(0).token_count, kTokens) << "the disk has not been measured";
  const RestoreOutcome declined = Restore(1);
  EXPECT_EQ(declined.token_count, 0u);
  EXPECT_THAT(declined.miss_reason, HasSubstr("declined: loading the next 192 tokens would take"));
  EXPECT_EQ(Count("restores_declined_total"), 1);
  EXPECT_EQ(Count("declined_tokens_total"), kTokens);
  EXPECT_EQ(Restore(0).token_count, kTokens) << "what is in host memory is not slow";
}

TEST_F(Decline, ADiskThatKeepsUpIsRead) {
  EngineKeepsUpWith(0.5e6);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(Restore(i).disk_tokens, kTokens);
  EXPECT_EQ(Count("restores_declined_total"), 0);
}

// As in WhatTheDiskIsTooSlowForIsPrefilled, but attention makes 192 tokens as dear as 2,035.
TEST_F(Decline, ALongContextIsReadWhereItsTokensAloneWouldNotPay) {
  EngineKeepsUpWith(4e6, /*half_speed_tokens=*/10);
  for (uint64_t i = 0; i < 3; ++i) EXPECT_EQ(Restore(i).disk_tokens, kTokens);
  EXPECT_EQ(Count("restores_declined_total"), 0);
  const auto explanation = kv().Explain({.session = "s5"});
  EXPECT_EQ(explanation->declined_tokens, 0u);
  EXPECT_NEAR(explanation->recompute_us, (192 + 192 * 192 / 20.0) * bytes_per_token_ / 4e6 * 1e6,
              1);
}

TEST_F(Decline, ARestoreEndsWhereItStopsPaying) {
  EngineKeepsUpWith(4e6);
  // The first two chunks of s1 are part's as well, and in host memory once that is restored.
  ASSERT_TRUE(
      kv().ForkSession({.source = "s1", .target = "part", .token_count = kTokens * 2 / 3}).ok());
  const KvContext part = ContextOf(1, kTokens * 2 / 3);
  ASSERT_EQ(RestoreAndCheck(kv(), pattern_, {.session = "part", .context = &part})->disk_tokens,
            kTokens * 2 / 3);
  const RestoreOutcome restored = Restore(1);
  EXPECT_EQ(restored.token_count, kTokens * 2 / 3);
  EXPECT_EQ(restored.disk_tokens, 0u);
  EXPECT_THAT(restored.miss_reason, HasSubstr("declined: loading the next 64 tokens"));
}

TEST_F(Decline, WhatTheEngineHasCostsNothing) {
  EngineKeepsUpWith(4e6);
  EXPECT_EQ(Restore(0).token_count, kTokens) << "the disk has not been measured";
  std::vector<ChunkId> held;
  const auto detail = kv().ShowSession("s1");
  for (const SessionSpan& span : detail->spans) held.push_back(span.chunk);
  held.pop_back();
  const RestoreOutcome restored = Restore(1, {.held_chunks = held});
  EXPECT_EQ(restored.token_count, kTokens * 2 / 3);
  EXPECT_EQ(restored.held_tokens, kTokens * 2 / 3);
  EXPECT_THAT(restored.miss_reason, HasSubstr("declined: loading the next 64 tokens"));
}

TEST_F(Decline, ExplainGivesBothTimes) {
  EngineKeepsUpWith(4e6);
  EXPECT_EQ(Restore(0).token_count, kTokens);
  const auto explanation = kv().Explain({.session = "s1"});
  ASSERT_TRUE(explanation.ok()) << explanation.status();
  EXPECT_EQ(explanation->token_count, kTokens);
  EXPECT_EQ(explanation->restorable_tokens, 0u);
  EXPECT_EQ(explanation->declined_tokens, kTokens);
  EXPECT_NEAR(explanation->recompute_us, kTokens * bytes_per_token_ / 4e6 * 1e6, 1);
  // Slots have headers and padding beside the pages, so that reading takes a little longer.
  EXPECT_GT(explanation->predicted_us, 3.9 * explanation->recompute_us);
  EXPECT_LT(explanation->predicted_us, 5 * explanation->recompute_us);
  ASSERT_EQ(explanation->parts.size(), 1u);
  EXPECT_EQ(explanation->parts[0].tier, Tier::kDisk);
  EXPECT_THAT(explanation->parts[0].reason, HasSubstr("declined"));
  ASSERT_FALSE(explanation->notes.empty());
  EXPECT_THAT(explanation->notes.back(), HasSubstr("192 of the stored tokens are declined"));
  const auto warm = kv().Explain({.session = "s0"});
  EXPECT_EQ(warm->restorable_tokens, kTokens);
  EXPECT_EQ(warm->declined_tokens, 0u);
}

TEST_F(Decline, AMinuteLaterOneRestoreMeasuresAnew) {
  EngineKeepsUpWith(4e6);
  EXPECT_EQ(Restore(0).token_count, kTokens);
  EXPECT_EQ(Restore(1).token_count, 0u);
  clock_.AdvanceSeconds(61);
  rate_ = 1e9;
  EXPECT_EQ(Restore(1).disk_tokens, kTokens) << "as good as the first";
  EXPECT_EQ(Restore(2).disk_tokens, kTokens) << "the disk has become fast enough";
}

}  // namespace
}  // namespace turnkeep::testing
