// KvStoreSuite: hints are advice; each is answered, none is an error, and none changes a byte.
#include <cmath>
#include <limits>
#include <vector>

#include <gmock/gmock.h>

#include "core/hint.h"
#include "store/kv_store_suite.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

HintItem Item(HintAction action, const std::string& session) {
  return {.action = action, .target = {.session = session}};
}

HintAnswer One(KvStore& kv, const HintItem& item) {
  const HintReply reply = kv.Hint({.items = {item}});
  EXPECT_EQ(reply.items.size(), 1u);
  return reply.items.empty() ? HintAnswer{} : reply.items[0];
}

std::string Outcome(KvStore& kv, const HintItem& item) {
  return std::string(NameOf(One(kv, item).outcome));
}

TEST_P(KvStoreSuite, EveryHintIsAnsweredByItself) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 100);
  Save(pattern, "s", context);
  HintItem stopped = Item(HintAction::kExpect, "s");
  stopped.stop = StopReason::kToolUse;
  HintItem kept = Item(HintAction::kRetain, "s");
  kept.ttl = absl::Hours(1);
  const HintReply reply = kv().Hint(
      {.queue = std::vector<WaitingRequest>{{.target = {.session = "nobody"}},
                                            {.target = {.session = "s"}},
                                            {.target = {.session = "s"}, .priority = -1}},
       .items = {stopped, Item(HintAction::kExpect, "s"), Item(HintAction::kPin, "s"), kept,
                 Item(HintAction::kShare, "s"), Item(HintAction::kPrefetch, "nobody"),
                 Item(HintAction::kUnpin, "s"), Item(HintAction::kDropSoon, "s")}});
  ASSERT_EQ(reply.queue.size(), 3u);
  EXPECT_EQ(reply.queue[0].outcome, HintOutcome::kMissing);
  EXPECT_THAT(reply.queue[0].reason, HasSubstr("nobody"));
  EXPECT_EQ(reply.queue[1].outcome, HintOutcome::kAccepted);
  EXPECT_THAT(reply.queue[2].reason, HasSubstr("already"));
  ASSERT_EQ(reply.items.size(), 8u);
  EXPECT_EQ(reply.items[0].outcome, HintOutcome::kAccepted);
  EXPECT_THAT(reply.items[0].reason, HasSubstr("policy lru does not learn"));
  EXPECT_EQ(reply.items[1].outcome, HintOutcome::kRejected) << "it says nothing";
  EXPECT_EQ(reply.items[2].outcome, HintOutcome::kAccepted);
  EXPECT_EQ(reply.items[3].outcome, HintOutcome::kAccepted);
  EXPECT_THAT(reply.items[4].reason, HasSubstr("100 tokens are stored"));
  EXPECT_EQ(reply.items[5].outcome, HintOutcome::kMissing);
  EXPECT_EQ(reply.items[6].outcome, HintOutcome::kAccepted);
  EXPECT_EQ(reply.items[7].outcome, HintOutcome::kClipped) << "the queue expects it";
  EXPECT_EQ(Restore(pattern, "s", context), context.size());
}

TEST_P(KvStoreSuite, APinHintPinsAndHasNoEnd) {
  const KvPattern pattern = Register(TinyLayout());
  Save(pattern, "s", ContextOf(1, 40));
  EXPECT_EQ(Outcome(kv(), Item(HintAction::kPin, "s")), "accepted");
  EXPECT_TRUE(kv().StatSession("s")->pinned);
  EXPECT_EQ(Outcome(kv(), Item(HintAction::kUnpin, "s")), "accepted");
  EXPECT_FALSE(kv().StatSession("s")->pinned);
  HintItem lease = Item(HintAction::kPin, "s");
  lease.ttl = absl::Seconds(5);
  EXPECT_EQ(Outcome(kv(), lease), "rejected");
  EXPECT_EQ(Outcome(kv(), Item(HintAction::kPin, "")), "rejected");
  EXPECT_EQ(Outcome(kv(), Item(HintAction::kUnpin, "nobody")), "missing");
}

TEST_P(KvStoreSuite, APinOverTheCapIsRejectedWithTheNumbers) {
  Open({.host_bytes = 64 * kMiB});
  const KvPattern pattern = Register(BlockLayout());
  // Sessions of over 1.5 MiB, until half of the tier is pinned.
  HintAnswer answer;
  int pinned = 0;
  for (; pinned < 40 && answer.outcome == HintOutcome::kAccepted; ++pinned) {
    const std::string name = "s" + std::to_string(pinned);
    Save(pattern, name, ContextOf(static_cast<uint64_t>(pinned), 64 * 24));
    answer = One(kv(), Item(HintAction::kPin, name));
  }
  EXPECT_EQ(answer.outcome, HintOutcome::kRejected);
  EXPECT_THAT(answer.reason, HasSubstr("max_pinned_share"));
  EXPECT_THAT(answer.reason, HasSubstr(std::to_string(64 * kMiB)));
  EXPECT_GT(pinned, 2);
}

TEST_P(KvStoreSuite, APrefixIsHintedByTokensOrHashes) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 64 * 3);
  Save(pattern, "s", context);
  HintItem item{.action = HintAction::kShare,
                .target = {.tokens = context.tokens(), .layout = pattern.fingerprint()}};
  EXPECT_EQ(Outcome(kv(), item), "accepted");
  std::vector<uint32_t>& tokens = item.target.tokens;
  tokens.resize(64 * 4, 7);
  EXPECT_EQ(Outcome(kv(), item), "clipped") << "three of four chunks are stored";
  item.target.max_tokens = 64 * 2;
  EXPECT_EQ(Outcome(kv(), item), "accepted") << "of the two that are meant both are";
  item.target.max_tokens = 100;
  EXPECT_EQ(Outcome(kv(), item), "accepted") << "they end inside the second";
  item.target.max_tokens = 64 * 2;
  tokens.assign(64, 7);
  EXPECT_EQ(Outcome(kv(), item), "missing");
  tokens.clear();
  const HintAnswer nothing = One(kv(), item);
  EXPECT_EQ(nothing.outcome, HintOutcome::kRejected);
  EXPECT_THAT(nothing.reason, HasSubstr("neither a session nor tokens"));
  item.target.block_hashes = {"one", "two"};
  item.target.hashed_token_count = 128;
  EXPECT_EQ(Outcome(kv(), item), "missing");
  item.target.layout = Fingerprint{};
  EXPECT_EQ(Outcome(kv(), item), "rejected") << "a layout that nobody registered";
}

// Hashes are looked up by the chunk's number.
TEST_P(KvStoreSuite, AHintedPrefixThatIsNoPromptIsRejected) {
  const KvPattern pattern = Register(TinyLayout("hashed"), /*hashed=*/true);
  const KvContext context = ContextOf(1, 16 * 2);
  Save(pattern, "s", context);
  HintItem item{.action = HintAction::kShare,
                .target = {.block_hashes = context.BlockHashes(16),
                           .hashed_token_count = 16 * 2,
                           .layout = pattern.fingerprint()}};
  EXPECT_EQ(Outcome(kv(), item), "accepted");
  const auto rejected = [&](const char* why) {
    const HintAnswer answer = One(kv(), item);
    EXPECT_EQ(answer.outcome, HintOutcome::kRejected) << why;
    EXPECT_THAT(answer.reason, HasSubstr(why));
  };
  for (const uint64_t count : {uint64_t{16 * 4}, uint64_t{1} << 24}) {
    item.target.hashed_token_count = count;
    rejected("block_hashes, there are 2");
  }
  item.target.hashed_token_count = (uint64_t{1} << 24) + 1;
  rejected("outside 1..16777216");
  item.target.hashed_token_count = 16 * 2;
  item.target.tokens = context.tokens();
  rejected("both tokens (32) and block_hashes (2)");
  item.target.tokens.clear();
  item.target.block_hashes[1] = BlockHash(kMaxBlockHashBytes + 1, 'h');
  rejected("block_hashes[1] has 65 bytes");
}

TEST_P(KvStoreSuite, WhatIsRetainedUnderAnotherNameIsNotDropped) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 64 * 2);
  Save(pattern, "s", context);
  HintItem prefix{.action = HintAction::kRetain,
                  .target = {.tokens = context.tokens(), .layout = pattern.fingerprint()}};
  EXPECT_EQ(Outcome(kv(), prefix), "accepted");
  const HintAnswer kept = One(kv(), Item(HintAction::kDropSoon, "s"));
  EXPECT_EQ(kept.outcome, HintOutcome::kClipped);
  EXPECT_THAT(kept.reason, HasSubstr("2 of 2 chunks stay for others"));
  prefix.priority = 0;
  EXPECT_EQ(Outcome(kv(), prefix), "accepted");
  EXPECT_EQ(Outcome(kv(), Item(HintAction::kRetain, "s")), "accepted");
  EXPECT_EQ(Outcome(kv(), Item(HintAction::kDropSoon, "s")), "accepted") << "its own ends with it";
}

TEST_P(KvStoreSuite, AQueueIsItsTenantsAlone) {
  const auto other = store().Tenant("other");
  if (other == nullptr) GTEST_SKIP() << "there is one tenant";
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 64 * 2);
  Save(pattern, "s", context);
  ASSERT_TRUE(other->RegisterLayout(pattern.layout()).ok());
  ASSERT_TRUE(SaveAll(*other, pattern, {.session = "s", .context = &context}).ok());
  const HintRequest queue{.queue = std::vector<WaitingRequest>{{.target = {.session = "s"}}}};
  const HintRequest none{.queue = std::vector<WaitingRequest>{}};
  const auto expected = [](KvStore& kv) { return kv.GetActivity({})->expected_count; };
  kv().Hint(queue);
  other->Hint(queue);
  EXPECT_EQ(expected(kv()), 1u);
  EXPECT_EQ(expected(*other), 1u);
  ASSERT_TRUE(RestoreAndCheck(*other, pattern, {.session = "s", .context = &context}).ok());
  EXPECT_EQ(expected(kv()), 1u) << "the other tenant's has come";
  EXPECT_EQ(expected(*other), 0u);
  other->Hint(none);
  EXPECT_EQ(expected(kv()), 1u) << "the other tenant's queue is empty";
  other->Hint(queue);
  kv().Hint(none);
  EXPECT_EQ(expected(kv()), 0u);
  EXPECT_EQ(expected(*other), 1u);
}

TEST_P(KvStoreSuite, RetainIsBoundedAndClipped) {
  const KvPattern pattern = Register(TinyLayout());
  Save(pattern, "s", ContextOf(1, 40));
  HintItem item = Item(HintAction::kRetain, "s");
  EXPECT_EQ(Outcome(kv(), item), "accepted");
  item.priority = 9;
  EXPECT_EQ(Outcome(kv(), item), "clipped");
  item.priority = -1;
  EXPECT_EQ(Outcome(kv(), item), "rejected");
  item.priority = 0;
  EXPECT_EQ(Outcome(kv(), item), "accepted") << "it ends";
  item.priority = 1;
  item.ttl = absl::ZeroDuration();
  EXPECT_EQ(Outcome(kv(), item), "rejected");
  ASSERT_TRUE(kv().SetSessionTtl("s", absl::Minutes(1)).ok());
  for (const absl::Duration ttl : {absl::Hours(1), absl::InfiniteDuration()}) {
    item.ttl = ttl;
    const HintAnswer answer = One(kv(), item);
    EXPECT_EQ(answer.outcome, HintOutcome::kClipped) << ttl;
    EXPECT_THAT(answer.reason, HasSubstr("the session itself ends at"));
  }
}

TEST_P(KvStoreSuite, ExpectedTimesAreADistribution) {
  const KvPattern pattern = Register(TinyLayout());
  Save(pattern, "s", ContextOf(1, 40));
  HintItem item = Item(HintAction::kExpect, "s");
  item.expected_times = {absl::Seconds(40), absl::Seconds(5), absl::InfiniteDuration()};
  EXPECT_EQ(Outcome(kv(), item), "accepted");
  item.expected_times.assign(kMaxExpectedTimes + 1, absl::Seconds(1));
  EXPECT_EQ(Outcome(kv(), item), "rejected");
}

TEST_P(KvStoreSuite, WithoutADiskTierADemotionIsRejected) {
  if (Status().disk.capacity_bytes > 0) GTEST_SKIP() << "there is a disk tier";
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 100);
  Save(pattern, "s", context);
  EXPECT_EQ(Outcome(kv(), Item(HintAction::kDemote, "s")), "rejected");
  EXPECT_EQ(Outcome(kv(), Item(HintAction::kDropSoon, "s")), "accepted");
  EXPECT_EQ(Restore(pattern, "s", context), context.size()) << "until the room is needed";
}

TEST_P(KvStoreSuite, ADemotedSessionGoesToDiskAndAPrefetchBringsItBack) {
  Open({.host_bytes = 64 * kMiB, .disk_bytes = 256 * kMiB});
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 64 * 4);
  Save(pattern, "s", context);
  EXPECT_EQ(Outcome(kv(), Item(HintAction::kDemote, "s")), "accepted");
  ASSERT_TRUE(
      Eventually([&](const StoreStatus&) { return kv().StatSession("s")->host_bytes == 0; }));
  EXPECT_EQ(kv().StatSession("s")->restorable_tokens, context.size());
  const HintAnswer answer = One(kv(), Item(HintAction::kPrefetch, "s"));
  EXPECT_EQ(answer.outcome, HintOutcome::kAccepted) << answer.reason;
  EXPECT_THAT(answer.reason, HasSubstr("on their way from disk"));
  const uint64_t bytes = kv().StatSession("s")->disk_bytes;
  ASSERT_TRUE(
      Eventually([&](const StoreStatus&) { return kv().StatSession("s")->host_bytes == bytes; }));
  EXPECT_EQ(Restore(pattern, "s", context), context.size());
}

TEST_P(KvStoreSuite, ActivityShowsTheQueueOfTheTenantInItsOrder) {
  const KvPattern pattern = Register(BlockLayout());
  for (const char* name : {"a", "b"}) Save(pattern, name, ContextOf(1, 64 * 2));
  kv().Hint({.queue = std::vector<WaitingRequest>{{.target = {.session = "b"}},
                                                  {.target = {.session = "a"}}},
             .items = {{.action = HintAction::kExpect,
                        .target = {.session = "a"},
                        .expected_in = absl::Hours(1)}}});
  const auto activity = kv().GetActivity({});
  ASSERT_TRUE(activity.ok()) << activity.status();
  EXPECT_EQ(activity->expected_count, 3u);
  ASSERT_EQ(activity->expected.size(), 3u);
  EXPECT_EQ(activity->expected[0].target, "b");
  EXPECT_TRUE(activity->expected[0].queued);
  EXPECT_GT(activity->expected[0].host_bytes, 0u);
  EXPECT_EQ(activity->expected[1].target, "a");
  EXPECT_FALSE(activity->expected[2].queued);
  EXPECT_NEAR(activity->expected[2].due_in_s, 3600, 600);
  EXPECT_GT(activity->fetch_window_bytes, 0u);
  EXPECT_EQ(kv().GetActivity({.limit = 1})->expected.size(), 1u);
  if (const auto other = store().Tenant("other"); other != nullptr) {
    EXPECT_EQ(other->GetActivity({})->expected_count, 0u) << "another tenant's";
  }
}

TEST_P(KvStoreSuite, ExplainNamesTheDecisionThatEvictedAChunk) {
  if (Status().disk.capacity_bytes > 0) GTEST_SKIP() << "nothing is lost to a disk tier";
  Open({.host_bytes = 64 * kMiB});
  const KvPattern pattern = Register(BlockLayout());
  Save(pattern, "old", ContextOf(1, 64 * 8));
  for (uint64_t i = 0; kv().StatSession("old")->restorable_tokens > 0 && i < 200; ++i) {
    Save(pattern, "s" + std::to_string(i), ContextOf(2 + i, 64 * 40));
  }
  const auto explanation = kv().Explain({.session = "old"});
  ASSERT_TRUE(explanation.ok()) << explanation.status();
  ASSERT_FALSE(explanation->parts.empty());
  const ExplainPart& missing = explanation->parts.front();
  EXPECT_EQ(missing.tier, Tier::kNone);
  for (const char* text : {"policy lru: the first to go of ", "unused for ", "nobody expected it",
                           "without a disk tier", "UTC"}) {
    EXPECT_THAT(missing.reason, HasSubstr(text));
  }
  const auto activity = kv().GetActivity({.limit = 1000});
  ASSERT_TRUE(activity.ok());
  ASSERT_FALSE(activity->events.empty());
  EXPECT_EQ(activity->events[0].what, "lost from host");
  EXPECT_EQ(kv().GetActivity({.after = activity->last_event})->events.size(), 0u);
}

TEST_P(KvStoreSuite, AnEnginesSpeedIsTakenForALayoutThatIsKnown) {
  const KvPattern pattern = Register(TinyLayout());
  Save(pattern, "s", ContextOf(1, 40));
  EngineSpeed speed{.layout = pattern.fingerprint(), .prefill_tokens_per_s = 1};
  EngineSpeed unknown{.prefill_tokens_per_s = 1};
  HintRequest request = {.speeds = {speed, unknown}};
  const double infinity = std::numeric_limits<double>::infinity();
  for (double EngineSpeed::*field :
       {&EngineSpeed::prefill_half_speed_tokens, &EngineSpeed::prefill_tokens_per_s,
        &EngineSpeed::copy_bytes_per_s}) {
    for (const double no_rate : {-1.0, infinity, -infinity, std::nan("")}) {
      request.speeds.push_back(speed);
      request.speeds.back().*field = no_rate;
    }
  }
  const HintReply reply = kv().Hint(request);
  ASSERT_EQ(reply.speeds.size(), 14u);
  EXPECT_EQ(reply.speeds[0].outcome, HintOutcome::kAccepted) << reply.speeds[0].reason;
  for (size_t i = 1; i < reply.speeds.size(); ++i) {
    EXPECT_EQ(reply.speeds[i].outcome, HintOutcome::kRejected) << i;
  }
  EXPECT_THAT(reply.speeds[2].reason, HasSubstr("half of it at -1 tokens"));
  const auto explanation = kv().Explain({.session = "s"});
  EXPECT_DOUBLE_EQ(explanation->recompute_us, 40e6);
  EXPECT_EQ(explanation->declined_tokens, 0u) << "an engine so slow takes all";
  speed.prefill_half_speed_tokens = 20;  // 40² / 40 more
  kv().Hint({.speeds = {speed}});
  EXPECT_DOUBLE_EQ(kv().Explain({.session = "s"})->recompute_us, 80e6);
}

TEST_P(KvStoreSuite, ALongHintIsRejectedWhole) {
  const std::vector<HintItem> items(kMaxHintItems + 1, Item(HintAction::kShare, "s"));
  const HintReply reply = kv().Hint({.items = items});
  ASSERT_EQ(reply.items.size(), items.size());
  EXPECT_EQ(reply.items.back().outcome, HintOutcome::kRejected);
  EXPECT_THAT(reply.items.back().reason, HasSubstr(std::to_string(kMaxHintItems)));
}

TEST_P(KvStoreSuite, AnEmptyHintIsAnsweredByNothing) {
  const HintReply reply = kv().Hint({.queue = std::vector<WaitingRequest>{}});
  EXPECT_TRUE(reply.queue.empty());
  EXPECT_TRUE(reply.items.empty());
}

}  // namespace
}  // namespace turnkeep::testing
