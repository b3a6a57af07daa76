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

#include "store/disk_sessions.h"
#include "store/store.h"

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

class RoomWait : public DiskSessions {
 protected:
  RoomWait() : DiskSessions(kTokens) {
    options_.durability = Durability::kNone;
    options_.host_bytes = kHostBytes;
  }
  // Sessions s0 … on disk only, then the host tier nearly full of sessions f0 …, on no disk.
  void OpenFull(uint64_t on_disk, uint64_t fill) {
    OpenWithSessions(on_disk);
    for (uint64_t i = 0; i < fill; ++i) SaveAs("f" + std::to_string(100 + i), 100 + i);
    ASSERT_EQ(kv().StatSession("f100")->disk_bytes, 0u);
  }
  RestoreRequest Request(const std::string& session) {
    return {.session = session, .layout = pattern_.fingerprint()};
  }
  // Its deadline is not the clock's.
  RestoreOutcome Restore(uint64_t i) {
    return DiskSessions::Restore(i, {.give_prompt = false, .deadline = absl::InfiniteDuration()});
  }
  void HoldWrites() {
    device_->Inject({.kind = FaultKind::kDelay, .for_good = true, .only = {DeviceOp::kWrite}});
  }
  void LetWritesGo() {
    device_->ClearFaults();
    device_->Release();
  }
  double Waited() { return Count("restores_waited_total"); }
  uint64_t OpenTickets() { return opened_->store().GetStatus().open_tickets; }
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
