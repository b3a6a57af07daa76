// Hints in a store with a disk: the waiting queue orders prefetches and protects what it needs, a
// restore overtakes prefetches, and what leaves the queue is not brought.
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/hint.h"
#include "store/disk_sessions.h"
#include "testing/eventually.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kTokens = 192;  // three whole chunks
constexpr uint64_t kSessions = 10;

class HintPath : public DiskSessions {
 protected:
  HintPath() : DiskSessions(kTokens) {}

  void OpenWithSessions() { DiskSessions::OpenWithSessions(kSessions); }
  // The fetch window in sessions.
  void SetWindow(double sessions) {
    options_.prefetch_share = (sessions * static_cast<double>(session_bytes_) + 1) /
                              static_cast<double>(options_.host_bytes);
    Reopen();
  }

  std::vector<HintAnswer> Queue(const std::vector<uint64_t>& sessions) {
    std::vector<WaitingRequest> queue;
    for (const uint64_t i : sessions) queue.push_back({.target = {.session = Name(i)}});
    return kv().Hint({.queue = std::move(queue)}).queue;
  }
  bool InHost(uint64_t i) { return kv().StatSession(Name(i))->host_bytes == session_bytes_; }
  bool Absent(uint64_t i) { return kv().StatSession(Name(i))->host_bytes == 0; }
  bool Idle() {
    return Eventually([&] { return Count("prefetch_in_flight_bytes") == 0; });
  }

  uint64_t next_ = 0;
};

TEST_F(HintPath, TheQueueIsPrefetchedInItsOrder) {
  OpenWithSessions();
  SetWindow(1);
  const auto answers = Queue({3, 1, 2});
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_EQ(answers[0].outcome, HintOutcome::kAccepted) << answers[0].reason;
  EXPECT_EQ(answers[1].outcome, HintOutcome::kDeferred) << answers[1].reason;
  EXPECT_THAT(answers[1].reason, HasSubstr(std::to_string(session_bytes_) + " bytes wait"));
  for (const uint64_t next : {3, 1, 2}) {
    ASSERT_TRUE(Eventually([&] { return InHost(next); })) << next;
    ASSERT_TRUE(Idle());
    for (const uint64_t later : {1, 2}) {
      const bool waits = next == 3 || (next == 1 && later == 2);
      EXPECT_TRUE(!waits || Absent(later)) << later;
    }
    EXPECT_EQ(Restore(next).disk_tokens, 0u);
  }
  EXPECT_EQ(Count("prefetches_used_total"), 9);
  EXPECT_EQ(Count("prefetches_wasted_total"), 0);
  EXPECT_EQ(Count("hinted_queue_requests"), 0) << "all have come";
}

TEST_F(HintPath, PriorityComesBeforeWaitingTime) {
  OpenWithSessions();
  SetWindow(1);
  kv().Hint({.queue = std::vector<WaitingRequest>{
                 {.target = {.session = "s1"}, .waited = absl::Seconds(1)},
                 {.target = {.session = "s2"}, .waited = absl::Seconds(5)},
                 {.target = {.session = "s3"}, .priority = 7}}});
  for (const uint64_t next : {3, 2, 1}) {
    ASSERT_TRUE(Eventually([&] { return InHost(next); })) << next;
    EXPECT_EQ(Restore(next).disk_tokens, 0u);
  }
}

TEST_F(HintPath, WhatLeavesTheQueueIsNotBrought) {
  OpenWithSessions();
  SetWindow(1);
  Queue({3, 1});
  ASSERT_TRUE(Eventually([&] { return InHost(3); }));
  Queue({2});
  ASSERT_TRUE(Eventually([&] { return InHost(2); })) << "the window is free for it";
  ASSERT_TRUE(Idle());
  EXPECT_TRUE(Absent(1));
  EXPECT_EQ(Count("prefetches_wasted_total"), 3) << "of session 3";
  Queue({});
  EXPECT_EQ(Count("hinted_chunks"), 0);
}

// With reads held back: of a prefetch that no queue wants any more only what is being read comes.
TEST_F(HintPath, ADroppedEntryCancelsItsPrefetch) {
  options_.io_depth = 1;  // about two sessions in flight
  OpenWithSessions();
  SetWindow(10);
  device_->Inject(
      {.at = 0, .kind = FaultKind::kDelay, .for_good = true, .only = {DeviceOp::kRead}});
  Queue({0, 1, 2, 3, 4, 5, 6, 7});
  device_->WaitForDelayed(1);
  const double begun = Count("prefetches_begun_total");
  EXPECT_LT(begun, 10);
  Queue({});
  device_->Release();
  ASSERT_TRUE(Idle());
  EXPECT_EQ(Count("prefetches_begun_total"), begun);
  EXPECT_TRUE(Absent(7));
}

TEST_F(HintPath, ARestoreOvertakesPrefetches) {
  OpenWithSessions();
  SetWindow(10);
  device_->Inject(
      {.at = 0, .kind = FaultKind::kDelay, .for_good = true, .only = {DeviceOp::kRead}});
  const KvContext context = ContextOf(5, kTokens);
  const auto restore = kv().BeginRestore(
      {.session = "s5", .prompt = {.tokens = context.tokens()}, .layout = pattern_.fingerprint()});
  ASSERT_TRUE(restore.ok()) << restore.status();
  device_->WaitForDelayed(1);
  const auto answers = Queue({0, 1});
  EXPECT_EQ(answers[0].outcome, HintOutcome::kDeferred) << answers[0].reason;
  EXPECT_EQ(Count("prefetches_begun_total"), 0) << "while a restore reads";
  device_->Release();
  const uint32_t last = static_cast<uint32_t>(BlockLayout().layers.size()) - 1;
  EXPECT_EQ((*restore)->WaitLayer(last).value_or(0), kTokens);
  EXPECT_TRUE(Eventually([&] { return InHost(0) && InHost(1); }));
}

// Its engine may keep the ticket for as long as it computes.
TEST_F(HintPath, ARestoreThatWasCutHoldsUpNoPrefetch) {
  OpenWithSessions();
  SetWindow(10);
  device_->Inject(
      {.at = 0, .kind = FaultKind::kDelay, .for_good = true, .only = {DeviceOp::kRead}});
  const auto restore = kv().BeginRestore({.session = "s5", .layout = pattern_.fingerprint()});
  ASSERT_TRUE(restore.ok()) << restore.status();
  device_->WaitForDelayed(1);
  EXPECT_EQ((*restore)->WaitLayer(0, absl::ZeroDuration()).value_or(1), 0u);
  Queue({0});
  EXPECT_GT(Count("prefetches_begun_total"), 0);
  device_->Release();
  EXPECT_TRUE(Eventually([&] { return InHost(0); }));
}

TEST_F(HintPath, APrefetchEvictsTheTailOfTheQueueAndNothingSooner) {
  options_.host_bytes = 2 * kMiB;  // 27 chunks below the low watermark: nine sessions
  options_.policy = "look_ahead";
  options_.prefetch_share = 1;
  OpenWithSessions();
  Queue({0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  ASSERT_TRUE(Idle());
  for (uint64_t i = 0; i < 9; ++i) EXPECT_TRUE(InHost(i)) << i;
  EXPECT_TRUE(Absent(9));
  // The prefetch that brought a chunk holds it for a moment longer.
  ASSERT_TRUE(Eventually([&] {
    const SessionDetail shown = *kv().ShowSession("s8");
    for (const SessionSpan& span : shown.spans) {
      if (span.pin_count > 0) return false;
    }
    return true;
  }));
  const auto answers = Queue({0, 1, 2, 9, 3, 4, 5, 6, 7, 8});
  EXPECT_EQ(answers[3].outcome, HintOutcome::kAccepted) << answers[3].reason;
  ASSERT_TRUE(Eventually([&] { return InHost(9); }));
  for (uint64_t i = 0; i < 8; ++i) EXPECT_TRUE(InHost(i)) << i << " is needed sooner than 8";
  EXPECT_FALSE(InHost(8));
}

TEST_F(HintPath, WhatTheQueueNeedsSurvivesASaveThatNeedsRoom) {
  options_.host_bytes = 2 * kMiB;
  options_.policy = "look_ahead";
  options_.prefetch_share = 0.5;
  OpenWithSessions();
  Queue({0, 1});
  ASSERT_TRUE(Eventually([&] { return InHost(0) && InHost(1); }));
  for (uint64_t i = 100; i < 120; ++i) Save(i);
  EXPECT_GT(Count("evictions_total"), 20);
  EXPECT_TRUE(InHost(0));
  EXPECT_TRUE(InHost(1));
  Queue({});
  for (uint64_t i = 120; i < 140; ++i) Save(i);
  EXPECT_TRUE(Absent(0)) << "nobody expects it any more";
}

TEST_F(HintPath, RetainedSessionsOutliveOthersUntilTheirTimeIsOver) {
  options_.host_bytes = 2 * kMiB;
  OpenWithSessions();
  EXPECT_EQ(Restore(4).token_count, kTokens);
  const HintReply reply = kv().Hint({.items = {{.action = HintAction::kRetain,
                                                .target = {.session = "s4"},
                                                .ttl = absl::Seconds(60)}}});
  EXPECT_EQ(reply.items[0].outcome, HintOutcome::kAccepted) << reply.items[0].reason;
  for (uint64_t i = 100; i < 130; ++i) Save(i);
  EXPECT_TRUE(InHost(4));
  clock_.AdvanceNs(61 * int64_t{1'000'000'000});
  EXPECT_TRUE(Eventually([&] {
    Save(1000 + next_++);
    return Absent(4);
  }));
}

TEST_F(HintPath, DropSoonTakesWhatOthersDoNotShow) {
  options_.host_bytes = 2 * kMiB;
  OpenWithSessions();
  ASSERT_TRUE(kv().ForkSession({.source = "s0", .target = "fork"}).ok());
  for (const uint64_t i : {0, 1}) EXPECT_EQ(Restore(i).token_count, kTokens);
  const HintReply reply =
      kv().Hint({.items = {{.action = HintAction::kDropSoon, .target = {.session = "s0"}},
                           {.action = HintAction::kDropSoon, .target = {.session = "s1"}}}});
  EXPECT_EQ(reply.items[0].outcome, HintOutcome::kClipped);
  EXPECT_THAT(reply.items[0].reason, HasSubstr("3 of 3 chunks stay for others"));
  EXPECT_EQ(reply.items[1].outcome, HintOutcome::kAccepted);
  // s0 is older in the policy's order; s1 goes all the same.
  for (uint64_t i = 100; i < 120 && InHost(1); ++i) Save(i);
  EXPECT_FALSE(InHost(1));
  EXPECT_TRUE(InHost(0));
  EXPECT_EQ(Restore(1).token_count, kTokens) << "it is on disk";
}

TEST_F(HintPath, ADroppedSessionTakesItsHintsWithIt) {
  OpenWithSessions();
  Queue({0});
  kv().Hint({.items = {{.action = HintAction::kRetain, .target = {.session = "s0"}},
                       {.action = HintAction::kExpect,
                        .target = {.session = "s0"},
                        .expected_in = absl::Hours(1)}}});
  ASSERT_TRUE(Idle());
  const double chunks = Count("chunks");
  ASSERT_TRUE(kv().DropSession("s0").ok());
  EXPECT_EQ(Count("hinted_chunks"), 0);
  EXPECT_EQ(Count("chunks"), chunks - 3);
  EXPECT_EQ(kv().Status()->host.used_bytes, 0u) << "its copies are free";
}

TEST_F(HintPath, ARenamedSessionTakesItsHintsAlong) {
  OpenWithSessions();
  SetWindow(0);
  Queue({0});
  kv().Hint({.items = {{.action = HintAction::kRetain, .target = {.session = "s0"}},
                       {.action = HintAction::kExpect,
                        .target = {.session = "s0"},
                        .expected_in = absl::Hours(1)}}});
  const double chunks = Count("chunks");
  ASSERT_TRUE(kv().RenameSession("s0", "other").ok());
  EXPECT_EQ(Count("hinted_chunks"), 3);
  EXPECT_EQ(Count("retained_chunks"), 3);
  const KvContext context = ContextOf(0, kTokens);
  ASSERT_TRUE(RestoreAndCheck(kv(), pattern_, {.session = "other", .context = &context}).ok());
  EXPECT_EQ(Count("hinted_queue_requests"), 0) << "what was expected of it has come";
  EXPECT_EQ(Count("hinted_chunks"), 0);
  ASSERT_TRUE(kv().DropSession("other").ok());
  EXPECT_EQ(Count("retained_chunks"), 0);
  EXPECT_EQ(Count("chunks"), chunks - 3);
}

TEST_F(HintPath, OfASessionThatIsPartlyLostThePartBeforeTheGapIsMeant) {
  options_.data_dir.clear();
  options_.host_bytes = 2 * kMiB;
  Reopen();
  const KvContext context = ContextOf(1, 64 * 20);
  ASSERT_TRUE(SaveAll(kv(), pattern_, {.session = "s", .context = &context}).ok());
  for (uint64_t i = 0; i < 20; ++i) {
    const auto info = kv().StatSession("s");
    const uint64_t stored = info->restorable_tokens;
    const HintAnswer answer =
        kv().Hint({.items = {{.action = HintAction::kShare, .target = {.session = "s"}}}}).items[0];
    if (stored == context.size()) {
      EXPECT_EQ(answer.outcome, HintOutcome::kAccepted);
    } else if (stored == 0) {
      EXPECT_EQ(answer.outcome, HintOutcome::kMissing) << answer.reason;
    } else {
      EXPECT_EQ(answer.outcome, HintOutcome::kClipped);
      EXPECT_THAT(answer.reason, HasSubstr(std::to_string(stored) + " of 1280 tokens"));
    }
    Save(100 + i);
  }
  EXPECT_EQ(kv().StatSession("s")->restorable_tokens, 0u) << "all cases have been seen";
}

// As many chunks in all as hints may make the store keep: 4096 sessions of 1024 chunks.
TEST_F(HintPath, HintsKeepSoManyChunksAndNoMore) {
  const KvPattern tiny(TinyLayout());
  options_.data_dir.clear();
  Reopen();
  ASSERT_TRUE(kv().RegisterLayout(TinyLayout()).ok());
  const KvContext context = ContextOf(1, 16 * 1024);
  ASSERT_TRUE(SaveAll(kv(), tiny, {.session = Name(0), .context = &context}).ok());
  std::vector<uint64_t> sessions = {0};
  for (uint64_t i = 1; i <= 4096; ++i) {
    ASSERT_TRUE(kv().ForkSession({.source = Name(0), .target = Name(i)}).ok());
    sessions.push_back(i);
  }
  const auto answers = Queue(sessions);
  EXPECT_EQ(answers[4095].outcome, HintOutcome::kAccepted) << answers[4095].reason;
  EXPECT_EQ(answers[4096].outcome, HintOutcome::kRejected);
  EXPECT_THAT(answers[4096].reason, HasSubstr("4194304 chunks are expected already"));
  EXPECT_EQ(Count("hinted_queue_requests"), 4096);
  // What takes the place of its like may be told again.
  sessions.resize(2);
  const HintReply again =
      kv().Hint({.items = {{.action = HintAction::kPrefetch, .target = {.session = Name(0)}}}});
  EXPECT_EQ(again.items[0].outcome, HintOutcome::kRejected) << "a second expectation of it";
  EXPECT_EQ(Queue(sessions)[1].outcome, HintOutcome::kAccepted);
}

// Of names, too: each of these prompts begins with the stored chunk and ends in another token.
TEST_F(HintPath, HintsKeepSoManyNamesAndNoMore) {
  options_.data_dir.clear();
  Reopen();
  const KvContext context = ContextOf(1, 64);
  ASSERT_TRUE(SaveAll(kv(), pattern_, {.session = "s", .context = &context}).ok());
  for (const HintAction action : {HintAction::kPrefetch, HintAction::kRetain}) {
    SCOPED_TRACE(NameOf(action));
    uint32_t last = 0;
    for (uint64_t i = 0; i < 4; ++i) {
      std::vector<HintItem> items(kMaxHintItems, {.action = action,
                                                  .target = {.tokens = context.tokens(),
                                                             .layout = pattern_.fingerprint()}});
      for (HintItem& item : items) item.target.tokens.push_back(last++);
      EXPECT_EQ(kv().Hint({.items = items}).items.back().outcome, HintOutcome::kClipped);
    }
    HintItem item{.action = action,
                  .target = {.tokens = context.tokens(), .layout = pattern_.fingerprint()}};
    EXPECT_EQ(kv().Hint({.items = {item}}).items[0].outcome, HintOutcome::kRejected);
    item.target.tokens.push_back(0);
    EXPECT_EQ(kv().Hint({.items = {item}}).items[0].outcome, HintOutcome::kClipped)
        << "a name that is kept may be told again";
  }
}

// What one tenant hints, however much, leaves every other its share.
TEST_F(HintPath, ATenantsHintsLeaveRoomForAnothers) {
  options_.data_dir.clear();
  Reopen();
  const KvContext context = ContextOf(1, 64);
  ASSERT_TRUE(SaveAll(kv(), pattern_, {.session = "s", .context = &context}).ok());
  uint32_t last = 0;
  const auto some = [&](HintAction action, size_t count) {
    std::vector<HintItem> items(
        count, {.action = action,
                .target = {.tokens = context.tokens(), .layout = pattern_.fingerprint()}});
    for (HintItem& item : items) item.target.tokens.push_back(last++);
    return HintRequest{.items = std::move(items)};
  };
  for (const HintAction action : {HintAction::kPrefetch, HintAction::kRetain})
    for (uint64_t i = 0; i < 5; ++i) kv().Hint(some(action, kMaxHintItems));
  const auto other = opened_->store().ForTenant("other");
  ASSERT_TRUE(other.ok()) << other.status();
  ASSERT_TRUE((*other)->RegisterLayout(BlockLayout()).ok());
  ASSERT_TRUE(SaveAll(**other, pattern_, {.session = "s", .context = &context}).ok());
  for (const HintAction action : {HintAction::kPrefetch, HintAction::kRetain}) {
    SCOPED_TRACE(NameOf(action));
    EXPECT_EQ((*other)->Hint(some(action, 1)).items[0].outcome, HintOutcome::kClipped);
    const HintAnswer answer = kv().Hint(some(action, 1)).items[0];
    EXPECT_EQ(answer.outcome, HintOutcome::kRejected);
    EXPECT_THAT(answer.reason, HasSubstr("limit is 32768"));
  }
}

// Of chunks, too: half of 4 Mi as soon as there is another.
TEST_F(HintPath, ATenantsHintedChunksAreItsShare) {
  const KvPattern tiny(TinyLayout());
  options_.data_dir.clear();
  Reopen();
  ASSERT_TRUE(opened_->store().ForTenant("other").ok());
  ASSERT_TRUE(kv().RegisterLayout(TinyLayout()).ok());
  const KvContext context = ContextOf(1, 16 * 1024);
  ASSERT_TRUE(SaveAll(kv(), tiny, {.session = Name(0), .context = &context}).ok());
  std::vector<uint64_t> sessions = {0};
  for (uint64_t i = 1; i <= 2048; ++i) {
    ASSERT_TRUE(kv().ForkSession({.source = Name(0), .target = Name(i)}).ok());
    sessions.push_back(i);
  }
  const auto answers = Queue(sessions);
  EXPECT_EQ(answers[2047].outcome, HintOutcome::kAccepted) << answers[2047].reason;
  EXPECT_EQ(answers[2048].outcome, HintOutcome::kRejected);
  EXPECT_THAT(answers[2048].reason, HasSubstr("a tenant's limit is 2097152"));
}

TEST_F(HintPath, TimesAreBetweenNowAndThirtyDays) {
  options_.data_dir.clear();
  Reopen();
  Save(0);
  const double month_s = absl::ToDoubleSeconds(absl::Hours(24 * 30));
  const struct {
    absl::Duration expected_in;
    double due_in_s;
  } cases[] = {{absl::Hours(1), 3600},
               {-absl::Hours(1), 0},
               {-absl::InfiniteDuration(), 0},
               {absl::Hours(24 * 31), month_s},
               {absl::InfiniteDuration(), month_s}};
  for (const auto& one : cases) {
    const HintReply reply = kv().Hint({.items = {{.action = HintAction::kExpect,
                                                  .target = {.session = Name(0)},
                                                  .expected_in = one.expected_in}}});
    EXPECT_EQ(reply.items[0].outcome, HintOutcome::kAccepted) << reply.items[0].reason;
    const auto activity = kv().GetActivity({});
    ASSERT_EQ(activity->expected.size(), 1u);
    EXPECT_NEAR(activity->expected[0].due_in_s, one.due_in_s, 1) << one.expected_in;
  }
}

TEST_F(HintPath, OnlyTheTokensThatAreMeantAreBrought) {
  OpenWithSessions();
  const HintReply reply =
      kv().Hint({.items = {{.action = HintAction::kPrefetch,
                            .target = {.session = Name(1), .max_tokens = 64}}}});
  EXPECT_EQ(reply.items[0].outcome, HintOutcome::kAccepted) << reply.items[0].reason;
  EXPECT_EQ(Count("hinted_chunks"), 1);
  ASSERT_TRUE(Eventually([&] { return !Absent(1); }));
  ASSERT_TRUE(Idle());
  EXPECT_EQ(kv().StatSession(Name(1))->host_bytes, session_bytes_ / 3);
}

TEST_F(HintPath, AClosedStoreTakesNoHints) {
  OpenWithSessions();
  ASSERT_TRUE(opened_->Close().ok());
  const HintReply reply =
      kv().Hint({.queue = std::vector<WaitingRequest>{{.target = {.session = Name(0)}}},
                 .items = {{.action = HintAction::kShare, .target = {.session = Name(0)}}}});
  EXPECT_EQ(reply.queue[0].outcome, HintOutcome::kRejected) << reply.queue[0].reason;
  EXPECT_EQ(reply.items[0].outcome, HintOutcome::kRejected) << reply.items[0].reason;
}

TEST_F(HintPath, WhatNobodyFulfilsIsForgotten) {
  OpenWithSessions();
  SetWindow(1);
  kv().Hint({.items = {{.action = HintAction::kExpect,
                        .target = {.session = "s1"},
                        .expected_in = absl::Seconds(100)},
                       {.action = HintAction::kExpect,
                        .target = {.session = "s3"},
                        .expected_in = absl::Seconds(90)}}});
  ASSERT_TRUE(Idle());
  EXPECT_EQ(Count("hinted_chunks"), 6);
  clock_.AdvanceNs(699 * int64_t{1'000'000'000});
  EXPECT_TRUE(Eventually([&] { return Count("hinted_chunks") < 6; })) << "s3's grace is over";
  EXPECT_EQ(Count("hinted_chunks"), 3) << "s1's is not";
  Queue({2});
  EXPECT_EQ(Count("hinted_chunks"), 6);
  clock_.AdvanceNs(2 * int64_t{1'000'000'000});
  EXPECT_TRUE(Eventually([&] { return Count("hinted_chunks") == 3; }));
}

}  // namespace
}  // namespace turnkeep::testing
