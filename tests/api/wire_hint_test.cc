// Hints as messages: what goes in comes out, and what no hint can be is refused.
#include <gtest/gtest.h>

#include "api/wire_messages.h"
#include "core/status.h"

namespace turnkeep {
namespace {

HintRequest EveryField() {
  Fingerprint layout;
  layout.bytes[5] = 7;
  HintRequest request;
  request.queue.emplace();
  request.queue->push_back({.target = {.session = "alice"}, .waited = absl::Seconds(3)});
  request.queue->push_back(
      {.target = {.tokens = {1, 2, 0xFFFFFFFFu}, .layout = layout}, .priority = -4});
  request.items.push_back({.action = HintAction::kExpect,
                           .target = {.session = "bob", .max_tokens = 77},
                           .expected_in = absl::Milliseconds(1500),
                           .stop = StopReason::kEndTurn});
  request.items.push_back({.action = HintAction::kRetain,
                           .target = {.block_hashes = {"one", std::string("\0x", 2)},
                                      .hashed_token_count = 40,
                                      .layout = layout},
                           .expected_times = {absl::ZeroDuration(), absl::InfiniteDuration()},
                           .ttl = absl::Hours(2),
                           .priority = 3});
  request.items.push_back({.action = HintAction::kDropSoon, .target = {.session = "carol"}});
  request.speeds.push_back({.layout = layout,
                            .prefill_tokens_per_s = 12345.5,
                            .prefill_half_speed_tokens = 30518.25,
                            .copy_bytes_per_s = 2e10});
  return request;
}

void ExpectSame(const HintTarget& a, const HintTarget& b) {
  EXPECT_EQ(a.session, b.session);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.block_hashes, b.block_hashes);
  EXPECT_EQ(a.hashed_token_count, b.hashed_token_count);
  EXPECT_EQ(a.layout, b.layout);
  EXPECT_EQ(a.max_tokens, b.max_tokens);
}

absl::StatusOr<HintRequest> ThereAndBack(const HintRequest& request) {
  wire::HintRequest message;
  wire::ToWire(request, &message);
  const std::string bytes = message.SerializeAsString();
  TK_ASSIGN_OR_RETURN(const auto parsed,
                      wire::Parse<wire::HintRequest>(std::as_bytes(std::span(bytes))));
  return wire::FromWire(parsed);
}

TEST(WireHint, EveryFieldComesBack) {
  const HintRequest sent = EveryField();
  const auto came = ThereAndBack(sent);
  ASSERT_TRUE(came.ok()) << came.status();
  ASSERT_TRUE(came->queue.has_value());
  ASSERT_EQ(came->queue->size(), sent.queue->size());
  for (size_t i = 0; i < sent.queue->size(); ++i) {
    ExpectSame((*came->queue)[i].target, (*sent.queue)[i].target);
    EXPECT_EQ((*came->queue)[i].waited, (*sent.queue)[i].waited);
    EXPECT_EQ((*came->queue)[i].priority, (*sent.queue)[i].priority);
  }
  ASSERT_EQ(came->items.size(), sent.items.size());
  for (size_t i = 0; i < sent.items.size(); ++i) {
    ExpectSame(came->items[i].target, sent.items[i].target);
    EXPECT_EQ(came->items[i].action, sent.items[i].action);
    EXPECT_EQ(came->items[i].expected_in, sent.items[i].expected_in);
    EXPECT_EQ(came->items[i].expected_times, sent.items[i].expected_times);
    EXPECT_EQ(came->items[i].stop, sent.items[i].stop);
    EXPECT_EQ(came->items[i].ttl, sent.items[i].ttl);
    EXPECT_EQ(came->items[i].priority, sent.items[i].priority);
  }
}

TEST(WireHint, SpeedsComeBack) {
  const auto came = ThereAndBack(EveryField());
  ASSERT_EQ(came->speeds.size(), 1u);
  EXPECT_EQ(came->speeds[0].layout.bytes[5], 7);
  EXPECT_EQ(came->speeds[0].prefill_tokens_per_s, 12345.5);
  EXPECT_EQ(came->speeds[0].prefill_half_speed_tokens, 30518.25);
  EXPECT_EQ(came->speeds[0].copy_bytes_per_s, 2e10);
}

// Field 4 came later: who does not know it says nothing of attention, and skips it.
TEST(WireHint, ASpeedOfAnOlderPeerIsLinear) {
  const std::string bytes = [] {
    HintRequest request = EveryField();
    request.speeds[0].prefill_half_speed_tokens = 0;
    wire::HintRequest message;
    wire::ToWire(request, &message);
    return message.speeds(0).SerializeAsString();
  }();
  wire::HintRequest message;
  ASSERT_TRUE(message.add_speeds()->ParseFromString(bytes));
  // Layout (34 bytes with its tag), and two doubles of nine.
  EXPECT_EQ(bytes.size(), 34u + 2 * 9) << "nothing that an older peer does not write";
  const auto came = wire::FromWire(message);
  ASSERT_TRUE(came.ok()) << came.status();
  EXPECT_EQ(came->speeds[0].prefill_tokens_per_s, 12345.5);
  EXPECT_EQ(came->speeds[0].prefill_half_speed_tokens, 0);
}

TEST(WireActivity, EveryFieldComesBack) {
  const Activity sent{.expected = {{.target = "alice",
                                    .queued = true,
                                    .due_in_s = -1.5,
                                    .host_bytes = 1,
                                    .disk_bytes = 2,
                                    .prefetching_bytes = 3}},
                      .expected_count = 4,
                      .fetch_window_bytes = 5,
                      .prefetch_in_flight_bytes = 6,
                      .prefetch_unused_bytes = 7,
                      .prefetch_waiting_chunks = 8,
                      .eviction_window_bytes = 9,
                      .events = {{.number = 10,
                                  .unix_s = 11,
                                  .what = "prefetch",
                                  .chunk = "beef",
                                  .slot_bytes = 12,
                                  .why = "expected next"}},
                      .last_event = 13};
  wire::Activity message;
  wire::ToWire(sent, &message);
  const Activity came = wire::FromWire(message);
  ASSERT_EQ(came.expected.size(), 1u);
  EXPECT_EQ(came.expected[0].target, "alice");
  EXPECT_TRUE(came.expected[0].queued);
  EXPECT_EQ(came.expected[0].due_in_s, -1.5);
  EXPECT_EQ(came.expected[0].prefetching_bytes, 3u);
  EXPECT_EQ(came.expected[0].disk_bytes, 2u);
  EXPECT_EQ(came.expected[0].host_bytes, 1u);
  EXPECT_EQ(came.expected_count, 4u);
  EXPECT_EQ(came.fetch_window_bytes, 5u);
  EXPECT_EQ(came.prefetch_in_flight_bytes, 6u);
  EXPECT_EQ(came.prefetch_unused_bytes, 7u);
  EXPECT_EQ(came.prefetch_waiting_chunks, 8u);
  EXPECT_EQ(came.eviction_window_bytes, 9u);
  ASSERT_EQ(came.events.size(), 1u);
  EXPECT_EQ(came.events[0].number, 10u);
  EXPECT_EQ(came.events[0].unix_s, 11);
  EXPECT_EQ(came.events[0].what, "prefetch");
  EXPECT_EQ(came.events[0].chunk, "beef");
  EXPECT_EQ(came.events[0].slot_bytes, 12u);
  EXPECT_EQ(came.events[0].why, "expected next");
  EXPECT_EQ(came.last_event, 13u);
}

TEST(WireHint, AnUnsetQueueIsNotAnEmptyOne) {
  EXPECT_FALSE(ThereAndBack({})->queue.has_value());
  EXPECT_TRUE(ThereAndBack({.queue = std::vector<WaitingRequest>{}})->queue.has_value());
}

TEST(WireHint, UnknownNumbersAreRefusedByName) {
  wire::HintRequest message;
  wire::ToWire(EveryField(), &message);
  message.mutable_items(0)->set_action(kHintActions);
  EXPECT_EQ(wire::FromWire(message).status().code(), absl::StatusCode::kInvalidArgument);
  message.mutable_items(0)->set_action(0);
  message.mutable_items(1)->set_stop(kStopReasons);
  EXPECT_EQ(wire::FromWire(message).status().code(), absl::StatusCode::kInvalidArgument);
  message.mutable_items(1)->set_stop(0);
  message.mutable_queue(1)->mutable_target()->set_tokens("abc");
  EXPECT_EQ(wire::FromWire(message).status().code(), absl::StatusCode::kInvalidArgument);
}

// Two bytes of a frame are an item: without the limit a frame of 72 MiB would become gigabytes.
TEST(WireHint, MoreItemsThanOneHintMayHaveAreNotTakenApart) {
  wire::HintRequest message;
  message.set_replaces_queue(true);
  for (size_t i = 0; i < kMaxHintItems - 1; ++i)
    message.add_queue()->mutable_target()->set_session("s");
  message.add_items()->mutable_target()->set_session("s");
  EXPECT_TRUE(wire::FromWire(message).ok());
  message.add_speeds();
  const auto refused = wire::FromWire(message);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(refused.status().message().find("16385 items"), std::string::npos);
}

TEST(WireHint, OfTooManyExpectedTimesOneTooManyComesThrough) {
  wire::HintRequest message;
  wire::HintItem* item = message.add_items();
  item->mutable_target()->set_session("s");
  for (int i = 0; i < 100'000; ++i) item->add_expected_times_us(i);
  const auto came = wire::FromWire(message);
  ASSERT_TRUE(came.ok()) << came.status();
  EXPECT_EQ(came->items[0].expected_times.size(), kMaxExpectedTimes + 1) << "the store refuses it";
}

TEST(WireHint, AnswersComeBackAndStrangeOutcomesAreRejections) {
  wire::HintReply message;
  wire::ToWire(HintReply{.queue = {{.outcome = HintOutcome::kClipped, .reason = "half"}},
                         .items = {{.outcome = HintOutcome::kMissing, .reason = "none"}}},
               &message);
  message.mutable_items()->Add()->set_outcome(99);
  const HintReply came = wire::FromWire(message);
  ASSERT_EQ(came.queue.size(), 1u);
  EXPECT_EQ(came.queue[0].outcome, HintOutcome::kClipped);
  EXPECT_EQ(came.queue[0].reason, "half");
  ASSERT_EQ(came.items.size(), 2u);
  EXPECT_EQ(came.items[0].outcome, HintOutcome::kMissing);
  EXPECT_EQ(came.items[1].outcome, HintOutcome::kRejected);
}

}  // namespace
}  // namespace turnkeep
