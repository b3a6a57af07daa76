// Each eviction policy's order, and what all of them promise.
#include "store/policy.h"

#include <random>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "store/next_use_policy.h"

namespace turnkeep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kSecond = 1'000'000'000;

// Takes everything out in eviction order.
std::vector<ChunkIndex> Drain(EvictionPolicy& policy) {
  std::vector<ChunkIndex> order;
  for (;;) {
    const ChunkIndex chunk = policy.FindVictim([](ChunkIndex) { return true; }, 1);
    if (chunk == kNoChunk) return order;
    policy.Remove(chunk);
    order.push_back(chunk);
  }
}

std::unique_ptr<EvictionPolicy> Filled(std::string_view name, uint32_t count) {
  auto policy = *MakePolicy(name);
  for (ChunkIndex c = 0; c < count; ++c) policy->Insert(c, 1'000'000, (c + 1) * kSecond);
  return policy;
}

class EveryPolicy : public ::testing::TestWithParam<std::string_view> {};

TEST_P(EveryPolicy, ShowsEveryMemberOnceInItsOrderAndKeepsWhatIsRefused) {
  auto policy = Filled(GetParam(), 100);
  std::vector<ChunkIndex> shown;
  EXPECT_EQ(policy->FindVictim(
                [&](ChunkIndex c) {
                  shown.push_back(c);
                  return false;
                },
                100),
            kNoChunk);
  EXPECT_EQ(std::set<ChunkIndex>(shown.begin(), shown.end()).size(), 100u);
  EXPECT_EQ(shown.size(), 100u);
  // The limit counts what is shown.
  int count = 0;
  policy->FindVictim([&](ChunkIndex) { return ++count < 0; }, 7);
  EXPECT_EQ(count, 7);
  const ChunkIndex odd = policy->FindVictim([](ChunkIndex c) { return c % 2 == 1; }, 1000);
  EXPECT_EQ(odd % 2, 1u);
  EXPECT_EQ(Drain(*policy).size(), 100u);
}

// Random calls: what is shown are members, and the same calls give the same answers.
TEST_P(EveryPolicy, RandomCallsKeepItsMembersAndRepeat) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::vector<ChunkIndex> answers[2];
    for (auto& answer : answers) {
      std::mt19937_64 random(seed);
      auto policy = *MakePolicy(GetParam());
      std::set<ChunkIndex> members;
      int64_t now = kSecond;
      for (int step = 0; step < 20'000; ++step) {
        now += static_cast<int64_t>(random() % kSecond);
        const auto chunk = static_cast<ChunkIndex>(random() % 500);
        switch (random() % 8) {
          case 0:
          case 1:
          case 2:
            if (members.insert(chunk).second) policy->Insert(chunk, 4096 << (chunk % 4), now);
            break;
          case 3:
          case 4:
            policy->Touch(chunk, now);
            break;
          case 5:
            if (members.erase(chunk) == 1) {
              policy->Remove(chunk);
            } else {
              policy->Forget(chunk);
            }
            break;
          case 6:
            policy->Expect(
                chunk, random() % 3 == 0 ? kNoExpectedUse : static_cast<int64_t>(random() % 1000));
            policy->NoteTurn(
                chunk,
                {.stop = static_cast<StopReason>(random() % kStopReasons),
                 .number = static_cast<uint32_t>(random() % 12),
                 .is_use = random() % 2 == 0,
                 .next = random() % 2 == 0 ? kNoChunk : static_cast<ChunkIndex>(random() % 5000)},
                now);
            break;
          default: {
            const ChunkIndex victim =
                policy->FindVictim([&](ChunkIndex c) { return c % 3 != 0; }, 50);
            answer.push_back(victim);
            if (victim == kNoChunk) break;
            ASSERT_EQ(members.erase(victim), 1u) << "step " << step;
            policy->Remove(victim);
          }
        }
      }
      const std::vector<ChunkIndex> rest = Drain(*policy);
      EXPECT_EQ(std::set<ChunkIndex>(rest.begin(), rest.end()), members);
      answer.insert(answer.end(), rest.begin(), rest.end());
    }
    EXPECT_EQ(answers[0], answers[1]);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, EveryPolicy, ::testing::ValuesIn(PolicyNames()),
                         [](const auto& info) { return std::string(info.param); });

TEST(Policy, LruAndFifoDifferInWhatAUseDoes) {
  auto lru = Filled("lru", 4);
  lru->Touch(0, 9 * kSecond);
  EXPECT_THAT(Drain(*lru), ElementsAre(1, 2, 3, 0));
  auto fifo = Filled("fifo", 4);
  fifo->Touch(0, 9 * kSecond);
  EXPECT_THAT(Drain(*fifo), ElementsAre(0, 1, 2, 3));
}

TEST(Policy, S3FifoLetsAScanThroughAndKeepsWhatIsUsedAgain) {
  auto policy = *MakePolicy("s3_fifo");
  // Ten that are used three times each, then a scan of ninety.
  for (ChunkIndex c = 0; c < 10; ++c) {
    policy->Insert(c, 1, 1);
    policy->Touch(c, 2);
    policy->Touch(c, 3);
  }
  const auto evict = [&] {
    const ChunkIndex victim = policy->FindVictim([](ChunkIndex) { return true; }, 10);
    policy->Remove(victim);
    return victim;
  };
  for (ChunkIndex c = 10; c < 100; ++c) {
    policy->Insert(c, 1, c);
    if (c >= 30) {
      EXPECT_GE(evict(), 10u);
    }
  }
  // One that comes back soon after it left goes to the main queue: newcomers leave before it.
  const ChunkIndex left = evict();
  policy->Insert(left, 1, 200);
  for (ChunkIndex c = 200; c < 204; ++c) policy->Insert(c, 1, c);
  const std::vector<ChunkIndex> rest = Drain(*policy);
  const auto place = [&](ChunkIndex c) {
    return std::find(rest.begin(), rest.end(), c) - rest.begin();
  };
  EXPECT_GT(place(left), place(203));
}

TEST(Policy, GdsfPrefersWhatIsSmallAndUsedAndAges) {
  auto policy = *MakePolicy("gdsf");
  policy->Insert(0, 4'000'000, kSecond);  // large
  policy->Insert(1, 1'000'000, kSecond);
  policy->Insert(2, 1'000'000, kSecond);
  policy->Touch(2, 2 * kSecond);
  EXPECT_THAT(Drain(*policy), ElementsAre(0, 1, 2));
  // What was used often long ago goes before newcomers once the clock has passed it.
  policy->Insert(9, 1'000'000, kSecond);
  policy->Touch(9, kSecond);
  policy->Touch(9, kSecond);
  std::vector<ChunkIndex> order;
  for (ChunkIndex c = 10; c < 20; ++c) {
    policy->Insert(c, 1'000'000, kSecond);
    const ChunkIndex victim = policy->FindVictim([](ChunkIndex) { return true; }, 1);
    policy->Remove(victim);
    order.push_back(victim);
    if (victim == 9) break;
  }
  EXPECT_EQ(order.back(), 9u);
}

// CachedAttention, section 3.3.2: items outside the window first, then the tail of the queue.
TEST(Policy, LookAheadTakesWhatIsOutsideTheWindowAndThenTheTailOfTheQueue) {
  auto policy = Filled("look_ahead", 6);
  policy->Expect(1, 0);  // the head of the queue
  policy->Expect(4, 1);
  policy->Expect(0, 2);
  policy->Touch(2, 20 * kSecond);
  EXPECT_THAT(Drain(*policy), ElementsAre(3, 5, 2, 0, 4, 1));
  // An expectation given before the chunk is there counts, and one taken back does not.
  policy->Expect(7, 5);
  policy->Insert(7, 1, kSecond);
  policy->Insert(8, 1, kSecond);
  policy->Expect(9, 1);
  policy->Insert(9, 1, kSecond);
  policy->Expect(9, kNoExpectedUse);
  EXPECT_THAT(Drain(*policy), ElementsAre(8, 9, 7));
}

// One use a second for a minute of the frequent, none of the rest: the policy learns to keep them.
TEST(Policy, NextUseLearnsWhoComesBack) {
  NextUsePolicy policy;
  int64_t now = kSecond;
  for (ChunkIndex c = 0; c < 4000; ++c) policy.Insert(c, 1, now);
  for (int round = 0; round < 200; ++round) {
    now += kSecond;
    for (ChunkIndex c = 0; c < 400; ++c) policy.Touch(c, now);
  }
  EXPECT_GT(policy.UseProbability({}, 1, 0.5, 2), 0.9);
  EXPECT_LT(policy.UseProbability({}, 0, 100, 50), 0.05);
  for (const ChunkIndex c : Drain(policy)) {
    EXPECT_GE(c, 400u);
    if (c >= 3600) break;
  }
}

// After tool_use the next turn comes in seconds, after end_turn in minutes if at all.
TEST(Policy, NextUseLearnsFromStopReasons) {
  NextUsePolicy policy;
  std::mt19937_64 random(1);
  int64_t now = kSecond;
  std::vector<std::pair<int64_t, ChunkIndex>> due;
  ChunkIndex next = 0;
  for (int step = 0; step < 60'000; ++step) {
    now += kSecond / 10;
    const ChunkIndex chunk = next++;
    const bool tool = chunk % 2 == 0;
    policy.Insert(chunk, 1, now);
    policy.NoteTurn(chunk, {.stop = tool ? StopReason::kToolUse : StopReason::kEndTurn}, now);
    if (tool) due.emplace_back(now + 5 * kSecond, chunk);
    while (!due.empty() && due.front().first <= now) {
      policy.Touch(due.front().second, now);
      policy.NoteTurn(due.front().second, {.stop = StopReason::kEndTurn}, now);
      due.erase(due.begin());
    }
  }
  EXPECT_GT(policy.UseProbability({StopReason::kToolUse}, 0, 1, 10), 0.8);
  EXPECT_LT(policy.UseProbability({StopReason::kEndTurn}, 0, 1, 10), 0.1);
}

// The age counts from the end of the turn, whose length says nothing of the time to the next use.
TEST(Policy, NextUseCountsFromTheEndOfTheTurn) {
  NextUsePolicy policy;
  int64_t now = kSecond;
  for (ChunkIndex c = 0; c < 1000; ++c) policy.Insert(c, 1, now);
  for (int turn = 0; turn < 100; ++turn) {
    now += 2 * kSecond;
    for (ChunkIndex c = 0; c < 1000; ++c) {
      policy.NoteTurn(c, {.is_use = true, .running = true}, now);
    }
    now += 60 * kSecond;
    for (ChunkIndex c = 0; c < 1000; ++c) policy.NoteTurn(c, {.stop = StopReason::kToolUse}, now);
  }
  EXPECT_GT(policy.UseProbability({StopReason::kToolUse}, 2, 0.1, 4), 0.9);
}

// A restore and, ten seconds later, the save of one turn are one use of it.
TEST(Policy, NextUseCountsASaveAfterItsRestoreAsOneTurn) {
  NextUsePolicy policy;
  const TurnInfo restore = {.is_use = true, .running = true};
  const TurnInfo save = {.is_use = true, .running = true, .goes_on = true};
  int64_t now = kSecond;
  for (ChunkIndex c = 0; c < 1000; ++c) {
    policy.Insert(c, 1, now);
    policy.NoteTurn(c, {}, now);
  }
  const auto tell = [&](const TurnInfo& turn) {
    for (ChunkIndex c = 0; c < 1000; ++c) policy.NoteTurn(c, turn, now);
  };
  for (int turn = 0; turn < 100; ++turn) {
    now += 120 * kSecond;
    tell(restore);
    now += 10 * kSecond;
    for (ChunkIndex c = 0; c < 1000; ++c) policy.Touch(c, now);  // what it brought to host memory
    tell(save);
    now += 10 * kSecond;
    tell({});
  }
  EXPECT_LT(policy.UseProbability({}, 140, 0.1, 60), 0.05);
  EXPECT_GT(policy.UseProbability({}, 140, 100, 60), 0.9);
}

// Nobody told that the turn ended before the next began: how long it waited is not known.
TEST(Policy, NextUseLearnsNothingFromATurnWhoseEndIsNotTold) {
  NextUsePolicy policy;
  int64_t now = kSecond;
  policy.Insert(5000, 1, now);
  policy.NoteTurn(5000, {.stop = StopReason::kEndTurn}, now);  // ends are told in general
  for (ChunkIndex c = 0; c < 1000; ++c) policy.Insert(c, 1, now);
  const double before = policy.UseProbability({}, 5, 1, 10);
  for (int turn = 0; turn < 100; ++turn) {
    now += 5 * kSecond;
    for (ChunkIndex c = 0; c < 1000; ++c) {
      policy.NoteTurn(c, {.is_use = true, .running = true}, now);
    }
  }
  EXPECT_NEAR(policy.UseProbability({}, 5, 1, 10), before, 0.05);
}

// A turn uses `prompt`, as it is told: from the last chunk to the first.
void UsePrompt(NextUsePolicy& policy, const std::vector<ChunkIndex>& prompt, int64_t now) {
  TurnInfo turn = {.is_use = true};
  for (size_t i = prompt.size(); i-- > 0;) {
    policy.NoteTurn(prompt[i], turn, now);
    turn.next = prompt[i];
  }
}

// 300 conversations over chunks from 1000 on: each goes back from its fourth chunk to its second
// and another way from there, and on that for ten turns.
void TeachThatLeftChunksStayUnused(NextUsePolicy& policy, int64_t* now) {
  for (int turn = 0; turn < 12; ++turn) {
    for (ChunkIndex c = 1000; c < 4000; c += 10) {
      *now += kSecond / 10;
      UsePrompt(policy, {c, c + 1, c + (turn == 0 ? 2 : 4), c + (turn == 0 ? 3 : 5)}, *now);
    }
  }
}

TEST(Policy, NextUseLearnsThatWhatATurnWentBackFromIsNotUsedAgain) {
  NextUsePolicy policy;
  int64_t now = kSecond;
  TeachThatLeftChunksStayUnused(policy, &now);
  now += 60 * kSecond;
  UsePrompt(policy, {10, 11}, now);
  UsePrompt(policy, {20, 21, 22, 23}, now + 1);
  for (const ChunkIndex c : {23u, 22u, 21u, 20u, 11u, 10u}) policy.Insert(c, 1, now);
  now += 30 * kSecond;
  UsePrompt(policy, {20, 21, 24, 25}, now);
  const std::vector<ChunkIndex> order = Drain(policy);
  ASSERT_EQ(order.size(), 6u);
  EXPECT_THAT(std::vector(order.begin(), order.begin() + 2), ElementsAre(23, 22));
  const double left = policy.Worth(22);
  EXPECT_LT(2 * left, policy.Worth(11));
  // Used again after all it is left no more.
  UsePrompt(policy, {20, 21, 22, 23}, now + kSecond);
  EXPECT_LT(2 * left, policy.Worth(22));
}

TEST(Policy, NextUseDoesNotTakeASharedBeginningForOneThatIsLeft) {
  NextUsePolicy policy;
  int64_t now = kSecond;
  TeachThatLeftChunksStayUnused(policy, &now);
  for (ChunkIndex c = 100; c < 110; ++c) UsePrompt(policy, {0, c}, now += 60 * kSecond);
  UsePrompt(policy, {50}, now += kSecond);
  for (const ChunkIndex c : {200u, 201u}) UsePrompt(policy, {0, c}, now += kSecond);
  for (const ChunkIndex c : {50u, 200u}) policy.Insert(c, 1, now);
  EXPECT_THAT(Drain(policy), ElementsAre(50, 200));
}

// Indices are used again: what is known is of a chunk, not of its index.
TEST(Policy, AForgottenIndexIsAChunkOfWhichNothingIsKnown) {
  auto s3_fifo = *MakePolicy("s3_fifo");
  const auto evict = [&] {
    const ChunkIndex victim = s3_fifo->FindVictim([](ChunkIndex) { return true; }, 10);
    s3_fifo->Remove(victim);
    return victim;
  };
  for (ChunkIndex c = 0; c < 8; ++c) {
    s3_fifo->Insert(c, 1, 1);
    if (c >= 4) continue;
    s3_fifo->Touch(c, 2);
    s3_fifo->Touch(c, 3);
  }
  ASSERT_EQ(evict(), 4u);
  ASSERT_EQ(evict(), 5u);
  s3_fifo->Forget(4);
  for (const ChunkIndex c : {4u, 5u}) s3_fifo->Insert(c, 1, 4);
  EXPECT_EQ(evict(), 6u);
  EXPECT_EQ(evict(), 7u);
  EXPECT_EQ(evict(), 4u) << "5 has come back, and stays";

  NextUsePolicy next_use;
  int64_t now = kSecond;
  for (ChunkIndex c = 0; c < 100; ++c) next_use.Insert(c, 1, now);
  for (int round = 0; round < 100; ++round) {
    now += 5 * kSecond;
    for (ChunkIndex c = 0; c < 50; ++c) {
      next_use.Touch(c, now);
      next_use.NoteTurn(c, {.stop = StopReason::kToolUse}, now);
    }
  }
  next_use.Remove(7);
  next_use.SetBelow(7, true);
  next_use.Forget(7);
  EXPECT_EQ(next_use.FindNearest([](ChunkIndex) { return true; }, 10, now), kNoChunk);
  now += 1000 * kSecond;
  for (const ChunkIndex c : {7u, 200u}) next_use.Insert(c, 1, now);
  const auto none = [](ChunkIndex) { return false; };
  EXPECT_EQ(next_use.FindVictim(none, 1), kNoChunk);  // values all classes
  EXPECT_GT(next_use.Worth(200), 0);
  EXPECT_EQ(next_use.Worth(7), next_use.Worth(200));
  next_use.Forget(100'000);  // never seen
}

// To who does not learn from turns the use that they tell of is one like any other.
TEST(Policy, ATurnThatBeginsIsAUseToEveryPolicy) {
  for (const char* name : {"lru", "look_ahead"}) {
    SCOPED_TRACE(name);
    const auto policy = *MakePolicy(name);
    for (ChunkIndex c = 1; c <= 3; ++c) policy->Insert(c, 1, kSecond);
    policy->NoteTurn(1, {.is_use = true, .running = true}, 2 * kSecond);
    policy->NoteTurn(2, {}, 3 * kSecond);
    EXPECT_THAT(Drain(*policy), ElementsAre(2, 3, 1));
  }
}

// Of the tier below it shows who is likeliest to come back, of these the prefix first.
TEST(Policy, NextUseShowsTheNearestOfTheTierBelow) {
  constexpr ChunkIndex kOften = 100, kAll = 1000;
  NextUsePolicy policy;
  const auto any = [](ChunkIndex) { return true; };
  int64_t now = kSecond;
  const auto use = [&](ChunkIndex c, StopReason stop) {
    policy.Touch(c, now);
    policy.NoteTurn(c, {.stop = stop}, now);
  };
  for (ChunkIndex c = 0; c < kAll; ++c) {
    policy.Insert(c, 1, now);
    use(c, StopReason::kEndTurn);
  }
  for (int round = 0; round < 200; ++round) {
    now += 5 * kSecond;
    for (ChunkIndex c = kOften; c-- > 0;) use(c, StopReason::kToolUse);
  }
  EXPECT_EQ(policy.FindNearest(any, 10, now), kNoChunk) << "nothing is below";
  for (const ChunkIndex c : {500u, 9u, 8u, 7u, 501u}) {
    policy.Remove(c);
    policy.SetBelow(c, true);
    policy.SetBelow(c, true);
  }
  EXPECT_EQ(policy.FindNearest(any, 10, now), 7u) << "the last to leave is the first of the prefix";
  EXPECT_EQ(policy.FindNearest([](ChunkIndex c) { return c != 7; }, 10, now), 8u);
  EXPECT_EQ(policy.FindNearest([](ChunkIndex c) { return c > 9; }, 2, now), kNoChunk);
  EXPECT_GT(policy.Worth(8), policy.Worth(500));
  EXPECT_EQ(policy.Worth(kAll + 5), 0);
  policy.SetBelow(7, false);
  EXPECT_EQ(policy.FindNearest(any, 10, now), 8u);
  // An hour later those who did not come are worth no more than any other; one that was used now
  // is.
  now += 3600 * kSecond;
  use(501, StopReason::kToolUse);
  EXPECT_EQ(policy.FindNearest(any, 10, now), 501u);
}

TEST(Policy, AnUnknownNameGetsTheListOfNames) {
  EXPECT_THAT(MessageOf(MakePolicy("best").status()), HasSubstr("'best'"));
  EXPECT_THAT(MessageOf(MakePolicy("best").status()), HasSubstr("look_ahead, next_use"));
}

}  // namespace
}  // namespace turnkeep
