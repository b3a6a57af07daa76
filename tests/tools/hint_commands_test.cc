// turnkeep hint, and what top shows of hints, against a store in memory.
#include <fstream>

#include <gmock/gmock.h>

#include "command_fixture.h"

namespace turnkeep::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class HintCommands : public CommandFixture {};

TEST_F(HintCommands, HintTellsWhatItsFlagsSay) {
  store_.hint_answer = {.outcome = HintOutcome::kDeferred, .reason = "no room"};
  Ran ran = Run({"hint", "expect", "alice", "bob", "--in", "9s", "--stop", "tool_use"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("deferred"));
  EXPECT_THAT(ran.out, HasSubstr("no room"));
  const HintRequest& told = store_.last_hint;
  EXPECT_FALSE(told.queue.has_value());
  ASSERT_EQ(told.items.size(), 2u);
  EXPECT_EQ(told.items[1].target.session, "bob");
  EXPECT_EQ(told.items[1].action, HintAction::kExpect);
  EXPECT_EQ(told.items[1].expected_in, absl::Seconds(9));
  EXPECT_EQ(told.items[1].stop, StopReason::kToolUse);

  ran = Run({"hint", "--queue", "alice", "--queue", "bob", "--json"});
  ASSERT_TRUE(store_.last_hint.queue.has_value());
  EXPECT_EQ((*store_.last_hint.queue)[1].target.session, "bob");
  EXPECT_EQ(ran.json()["answers"][0]["outcome"], "deferred");
  EXPECT_EQ(ran.json()["answers"][1]["target"], "bob");

  const std::string tokens = ::testing::TempDir() + "/hint_tokens.json";
  std::ofstream(tokens) << "[5, 6, 7]";
  EXPECT_EQ(Run({"hint", "retain", "--tokens", tokens, "--layout", layout_.Hex(), "--priority", "2",
                 "--max-tokens", "2"})
                .code,
            0);
  EXPECT_THAT(store_.last_hint.items.at(0).target.tokens, ElementsAre(5u, 6u, 7u));
  EXPECT_EQ(store_.last_hint.items[0].target.layout, layout_);
  EXPECT_EQ(store_.last_hint.items[0].target.max_tokens, 2u);
  EXPECT_EQ(store_.last_hint.items[0].priority, 2);
}

TEST_F(HintCommands, HintTellsTheEnginesSpeed) {
  const Ran ran =
      Run({"hint", "--layout", layout_.Hex(), "--prefill-speed", "1500.5", "--copy-speed", "2e9"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("engine"));
  ASSERT_EQ(store_.last_hint.speeds.size(), 1u);
  EXPECT_EQ(store_.last_hint.speeds[0].layout, layout_);
  EXPECT_EQ(store_.last_hint.speeds[0].prefill_tokens_per_s, 1500.5);
  EXPECT_EQ(store_.last_hint.speeds[0].copy_bytes_per_s, 2e9);
  EXPECT_EQ(store_.last_hint.speeds[0].prefill_half_speed_tokens, 0);
  EXPECT_EQ(Run({"hint", "--layout", layout_.Hex(), "--prefill-speed", "1500.5",
                 "--prefill-half-speed-tokens", "30000"})
                .code,
            0);
  EXPECT_EQ(store_.last_hint.speeds.at(0).prefill_half_speed_tokens, 30000);
  EXPECT_EQ(Run({"hint", "--layout", layout_.Hex(), "--prefill-half-speed-tokens", "30000"}).code,
            2)
      << "of no speed";
}

TEST_F(HintCommands, TopShowsTheQueueTheWindowsAndEachDecisionOnce) {
  store_.activity = {.expected = {{.target = "alice", .queued = true, .disk_bytes = 4096},
                                  {.target = "bob", .due_in_s = 30, .host_bytes = 8192}},
                     .expected_count = 7,
                     .fetch_window_bytes = 1 << 20,
                     .events = {{.number = 3,
                                 .what = "evicted from host",
                                 .chunk = "c0ffee",
                                 .slot_bytes = 4096,
                                 .why = "policy lru: the first to go of 9 chunks"}},
                     .last_event = 3};
  on_sleep_ = [this] {
    store_.activity.events.push_back({.number = 4, .what = "prefetch", .chunk = "beef"});
    store_.activity.last_event = 4;
  };
  const Ran ran = Run({"top", "--count", "2"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  for (const char* text : {"7 expected", "alice", "bob", "30", "window of 1.0 MiB", "c0ffee",
                           "policy lru: the first to go of 9 chunks", "beef"}) {
    EXPECT_THAT(ran.out, HasSubstr(text));
  }
  EXPECT_EQ(ran.out.find("c0ffee"), ran.out.rfind("c0ffee")) << "shown once";
  const Ran json = Run({"top", "--once", "--json"});
  EXPECT_EQ(json.json()["activity"]["expected"][0]["target"], "alice");
  EXPECT_EQ(json.json()["activity"]["events"].size(), 2u);
}

TEST_F(HintCommands, HintReadsAFile) {
  const std::string path = ::testing::TempDir() + "/hints.json";
  std::ofstream(path) << R"({"queue": ["alice", {"session": "bob", "waited": "3s", "priority": -1}],
    "items": [{"action": "expect", "session": "carol", "in": ["5s", "1m"]},
              {"action": "prefetch", "hashes": ["a", "b"], "token_count": 32, "layout": ")"
                      << layout_.Hex() << R"("},
              {"action": "drop_soon", "tokens": [1, 2], "layout": ")"
                      << layout_.Hex() << R"("}]})";
  const Ran ran = Run({"hint", "--file", path});
  EXPECT_EQ(ran.code, 0) << ran.err;
  const HintRequest& told = store_.last_hint;
  ASSERT_EQ(told.queue->size(), 2u);
  EXPECT_EQ((*told.queue)[1].waited, absl::Seconds(3));
  EXPECT_EQ((*told.queue)[1].priority, -1);
  ASSERT_EQ(told.items.size(), 3u);
  EXPECT_THAT(told.items[0].expected_times, ElementsAre(absl::Seconds(5), absl::Minutes(1)));
  EXPECT_THAT(told.items[1].target.block_hashes, ElementsAre("a", "b"));
  EXPECT_EQ(told.items[1].target.hashed_token_count, 32u);
  EXPECT_EQ(told.items[2].action, HintAction::kDropSoon);
  EXPECT_THAT(told.items[2].target.tokens, ElementsAre(1u, 2u));
  for (const char* bad : {"[]", "{\"queue\": 3}", "{\"items\": [{\"action\": \"pin\"}]}",
                          "{\"queue\": [{\"session\": \"a\", \"priority\": 1e99}]}"}) {
    std::ofstream(path) << bad;
    EXPECT_EQ(Run({"hint", "--file", path}).code, 2) << bad;
  }
}

}  // namespace
}  // namespace turnkeep::testing
