// Restores from disk that find the host tier full of what is not on disk yet: they wait for its
// writes, no longer than their deadline, and never for one another.
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <absl/synchronization/notification.h>
#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "disk_tier/testing/fault_block_device.h"
#include "store/store.h"
#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kTokens = 64 * 32;  // 2 MiB of pages
constexpr uint64_t kHostBytes = 8 * kMiB;

// What a restore that was begun without waiting for it comes to.
class Begun {
 public:
  using Result = absl::StatusOr<std::unique_ptr<RestoreOperation>>;
  Begun(Store& store, const RestoreRequest& request, std::function<bool()> abandoned = {}) {
    store.BeginRestore(
        0, request,
        [this](Result result) {
          result_ = std::move(result);
          done_.Notify();
        },
        std::move(abandoned));
  }
  bool done() const { return done_.HasBeenNotified(); }
  bool Await() { return done_.WaitForNotificationWithTimeout(absl::Seconds(20)); }
  Result& result() { return *result_; }
  uint64_t tokens() { return (*result_)->get()->progress().valid_tokens; }
  std::string reason() { return (*result_)->get()->progress().miss_reason; }

 private:
  std::optional<Result> result_;
  absl::Notification done_;
};

class RoomWait : public ::testing::Test {
 protected:
  RoomWait() : options_(SmallStoreOptions(directory_.path() + "/data", &clock_)) {
    options_.durability = Durability::kNone;
    options_.host_bytes = kHostBytes;
    options_.wrap_device = [this](std::unique_ptr<BlockDevice> device) {
      auto faulty = std::make_unique<FaultBlockDevice>(std::move(device));
      device_ = faulty.get();
      return faulty;
    };
  }
  void Reopen() {
    opened_.reset();
    auto opened = OpenedStore::Open(options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    opened_ = *std::move(opened);
    ASSERT_TRUE(kv().RegisterLayout(BlockLayout()).ok());
  }
  // Sessions s0 … on disk only, then the host tier nearly full of sessions f0 …, on no disk.
  void OpenFull(int on_disk, int fill) {
    Reopen();
    for (int i = 0; i < on_disk; ++i) Save("s", i);
    ASSERT_TRUE(opened_->Close().ok());
    Reopen();
    for (int i = 0; i < fill; ++i) Save("f", 100 + i);
    ASSERT_EQ(kv().StatSession("f100")->disk_bytes, 0u);
  }
  void Save(const std::string& prefix, int i) {
    const KvContext context = ContextOf(static_cast<uint64_t>(i), kTokens);
    const auto saved =
        SaveAll(kv(), pattern_, {.session = prefix + std::to_string(i), .context = &context});
    ASSERT_TRUE(saved.ok()) << saved.status();
    ASSERT_EQ(saved->token_count, kTokens);
  }
  RestoreRequest Request(const std::string& session) {
    return {.session = session, .layout = pattern_.fingerprint()};
  }
  RestoreOutcome Restore(int i) {
    const KvContext context = ContextOf(static_cast<uint64_t>(i), kTokens);
    const auto restored = RestoreAndCheck(kv(), pattern_,
                                          {.session = "s" + std::to_string(i),
                                           .context = &context,
                                           .give_prompt = false,
                                           .deadline = absl::InfiniteDuration()});
    EXPECT_TRUE(restored.ok()) << restored.status();
    return restored.ok() ? *restored : RestoreOutcome{};
  }
  void HoldWrites() {
    device_->Inject({.kind = FaultKind::kDelay, .for_good = true, .only = {DeviceOp::kWrite}});
  }
  void LetWritesGo() {
    device_->ClearFaults();
    device_->Release();
  }
  double Waited() {
    const StoreStatus status = *kv().Status();
    for (const NamedCount& count : status.counts)
      if (count.name.find("restores_waited_total") != std::string::npos) return count.value;
    ADD_FAILURE() << "no count of restores that waited";
    return 0;
  }
  uint64_t OpenTickets() { return opened_->store().GetStatus().open_tickets; }
  KvStore& kv() { return opened_->kv(); }

  TemporaryDirectory directory_;
  ManualClock clock_;
  StoreOptions options_;
  const KvPattern pattern_{BlockLayout()};
  FaultBlockDevice* device_ = nullptr;
  std::unique_ptr<OpenedStore> opened_;
};

TEST_F(RoomWait, WhatMustBeWrittenFirstIsWaitedForAndTheRestoreIsWhole) {
  OpenFull(4, 3);
  for (int i = 0; i < 4; ++i) {
    const RestoreOutcome restored = Restore(i);
    EXPECT_EQ(restored.token_count, kTokens) << i << ": " << restored.miss_reason;
    EXPECT_EQ(restored.disk_tokens, kTokens) << i;
  }
  EXPECT_GT(Waited(), 0);
  // What made room was written before it went.
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(kv().StatSession("f" + std::to_string(100 + i))->restorable_tokens, kTokens) << i;
}

TEST_F(RoomWait, TheRestoreBeginsWhenTheWritesHaveEndedAndNotBefore) {
  OpenFull(1, 3);
  HoldWrites();
  Begun restore(opened_->store(), Request("s0"));
  EXPECT_FALSE(restore.done());
  EXPECT_EQ(OpenTickets(), 1u);
  LetWritesGo();
  ASSERT_TRUE(restore.Await());
  ASSERT_TRUE(restore.result().ok()) << restore.result().status();
  EXPECT_EQ(restore.tokens(), kTokens) << restore.reason();
  restore.result()->reset();
  EXPECT_EQ(OpenTickets(), 0u);
}

TEST_F(RoomWait, AtTheDeadlineItIsCutToWhatHasRoomAndSaysSo) {
  OpenFull(1, 3);
  HoldWrites();
  RestoreRequest request = Request("s0");
  request.deadline = absl::Seconds(5);
  Begun restore(opened_->store(), request);
  EXPECT_FALSE(restore.done());
  clock_.AdvanceSeconds(6);
  ASSERT_TRUE(restore.Await());
  ASSERT_TRUE(restore.result().ok()) << restore.result().status();
  EXPECT_LT(restore.tokens(), kTokens);
  EXPECT_THAT(restore.reason(), HasSubstr("no room in the host tier"));
  restore.result()->reset();
  LetWritesGo();
  EXPECT_EQ(Restore(0).token_count, kTokens);
}

TEST_F(RoomWait, ADeadlineOfNothingWaitsForNothing) {
  OpenFull(1, 3);
  HoldWrites();
  RestoreRequest request = Request("s0");
  request.deadline = absl::ZeroDuration();
  Begun restore(opened_->store(), request);
  ASSERT_TRUE(restore.done());
  EXPECT_LT(restore.tokens(), kTokens);
  restore.result()->reset();
  LetWritesGo();
}

TEST_F(RoomWait, WhoIsGoneDoesNotWaitOn) {
  OpenFull(2, 3);
  HoldWrites();
  std::atomic<bool> gone{false};
  Begun restore(opened_->store(), Request("s0"), [&] { return gone.load(); });
  Begun behind(opened_->store(), Request("s1"));
  EXPECT_FALSE(restore.done());
  gone = true;
  ASSERT_TRUE(restore.Await());  // while no write has ended
  restore.result()->reset();
  EXPECT_FALSE(behind.done());
  EXPECT_EQ(OpenTickets(), 1u);
  LetWritesGo();
  ASSERT_TRUE(behind.Await());
  EXPECT_EQ(behind.tokens(), kTokens) << behind.reason();
  behind.result()->reset();
}

TEST_F(RoomWait, ClosingEndsTheWait) {
  OpenFull(1, 3);
  HoldWrites();
  Begun restore(opened_->store(), Request("s0"));
  EXPECT_FALSE(restore.done());
  std::thread closing([&] { EXPECT_TRUE(opened_->Close().ok()); });
  ASSERT_TRUE(restore.Await());
  EXPECT_TRUE(absl::IsUnavailable(restore.result().status())) << restore.result().status();
  LetWritesGo();
  closing.join();
}

// Each holds a part of the host tier that the other would need: neither waits for the other.
TEST_F(RoomWait, TwoThatHoldWhatTheOtherNeedsBothEnd) {
  options_.host_bytes = 6 * kMiB;
  OpenFull(4, 2);
  HoldWrites();
  Begun first(opened_->store(), Request("s0"));
  Begun second(opened_->store(), Request("s1"));
  Begun third(opened_->store(), Request("s2"));
  EXPECT_FALSE(first.done() || second.done() || third.done());
  LetWritesGo();
  // None is released until all have begun.
  ASSERT_TRUE(first.Await() && second.Await() && third.Await());
  EXPECT_EQ(first.tokens(), kTokens) << first.reason();
  EXPECT_EQ(second.tokens(), kTokens) << second.reason();
  EXPECT_LT(third.tokens(), kTokens);
  EXPECT_THAT(third.reason(), HasSubstr("no room in the host tier"));
  for (Begun* restore : {&first, &second, &third}) restore->result()->reset();
  EXPECT_EQ(OpenTickets(), 0u);
  EXPECT_EQ(Restore(2).token_count, kTokens);
}

// Two restores of one session that is only on disk share its loads, also while they wait.
TEST_F(RoomWait, WhoJoinsALoadThatWaitsGetsItToo) {
  OpenFull(1, 3);
  HoldWrites();
  std::atomic<bool> gone{false};
  Begun owner(opened_->store(), Request("s0"), [&] { return gone.load(); });
  Begun joined(opened_->store(), Request("s0"));
  LetWritesGo();
  gone = true;
  ASSERT_TRUE(owner.Await());
  owner.result()->reset();
  ASSERT_TRUE(joined.Await());
  EXPECT_EQ(joined.tokens(), kTokens) << joined.reason();
  const absl::Time end = absl::Now() + absl::Seconds(20);
  while (!(*joined.result())->progress().finished && absl::Now() < end)
    absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE((*joined.result())->progress().finished);
  joined.result()->reset();
}

// Many engines with more sessions than the host tier holds, each holding one ticket while it begins
// another: everything ends, and no byte is wrong.
TEST_F(RoomWait, ManyAtOnceThatHoldTicketsWhileTheyBeginOthersAllEnd) {
  OpenFull(8, 3);
  std::vector<std::thread> threads;
  std::atomic<uint64_t> whole{0};
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 12; ++round) {
        const int i = (t * 5 + round * 3) % 8;
        const auto held = kv().BeginRestore(Request("s" + std::to_string((i + 1) % 8)));
        EXPECT_TRUE(held.ok()) << held.status();
        if (Restore(i).token_count == kTokens) ++whole;
        if (round % 3 == t) {
          const KvContext context = ContextOf(200 + static_cast<uint64_t>(t), kTokens);
          const std::string name = "n" + std::to_string(t);
          (void)kv().DropSession(name);
          (void)SaveAll(kv(), pattern_, {.session = name, .context = &context});
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(whole, 0u);
  EXPECT_EQ(OpenTickets(), 0u);
  ASSERT_TRUE(opened_->Close().ok());
}

}  // namespace
}  // namespace turnkeep::testing
