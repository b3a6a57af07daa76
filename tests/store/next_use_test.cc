// What next_use learns, and how it orders by that.
#include "store/next_use_policy.h"

#include <deque>
#include <random>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "policy_drain.h"

namespace turnkeep {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kSecond = 1'000'000'000;

// One use a second for a minute of the frequent, none of the rest: the policy learns to keep them.
TEST(NextUse, LearnsWhoComesBack) {
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
TEST(NextUse, LearnsFromStopReasons) {
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
    policy.FindVictim([](ChunkIndex) { return false; }, 1);
  }
  EXPECT_GT(policy.UseProbability({StopReason::kToolUse}, 0, 1, 10), 0.8);
  EXPECT_LT(policy.UseProbability({StopReason::kEndTurn}, 0, 1, 10), 0.1);
}

// Of a conversation's later turns most are followed, of first turns few, and of long answers to
// those none: what was never seen together is judged by its parts.
TEST(NextUse, JudgesATurnByAllThatIsKnownOfIt) {
  NextUsePolicy policy;
  int64_t now = kSecond;
  std::vector<std::pair<int64_t, ChunkIndex>> due;
  for (ChunkIndex c = 0; c < 20'000; ++c) {
    now += kSecond / 10;
    const bool late = c % 2 == 0;
    const bool brief = c % 4 < 2;
    if (late && !brief) continue;
    policy.NoteTurn(c, {.number = late ? 4u : 1u, .answer_tokens = brief ? 50u : 800u}, now);
    if (late || (brief && c % 8 == 1)) due.emplace_back(now + 5 * kSecond, c);
    for (; !due.empty() && due.front().first <= now; due.erase(due.begin())) {
      policy.NoteTurn(due.front().second, {.number = 9, .is_use = true}, now);
    }
    policy.FindVictim([](ChunkIndex) { return false; }, 1);
  }
  const auto soon = [&](uint32_t number, uint64_t answer) {
    return policy.UseProbability({.number = number, .answer_tokens = answer}, 0, 1, 10);
  };
  EXPECT_GT(soon(4, 50), 0.8);
  EXPECT_NEAR(soon(1, 50), 0.5, 0.2);
  EXPECT_LT(soon(1, 800), 0.1);
  EXPECT_LT(soon(4, 800), 0.6 * soon(4, 50));
}

// The second tenant's turns are followed after five seconds, the first's are not; of those from the
// seventh on one is like the others.
TEST(NextUse, LearnsOfEachTenant) {
  NextUsePolicy policy;
  int64_t now = kSecond;
  std::deque<std::pair<int64_t, ChunkIndex>> due;
  const auto followed = [](ChunkIndex c) { return c % 4 == 1 || c % 4 == 3; };
  const auto tenant_of = [](ChunkIndex c) { return c % 4 == 3 ? 6 + c % 5 : c % 4; };
  for (ChunkIndex c = 0; c < 20'000; ++c) {
    now += kSecond / 10;
    policy.NoteTurn(c, {.number = 2, .tenant = tenant_of(c)}, now);
    if (followed(c)) due.emplace_back(now + 5 * kSecond, c);
    for (; !due.empty() && due.front().first <= now; due.pop_front()) {
      const ChunkIndex back = due.front().second;
      policy.NoteTurn(back, {.number = 9, .tenant = tenant_of(back), .is_use = true}, now);
    }
    policy.FindVictim([](ChunkIndex) { return false; }, 1);
  }
  const auto soon = [&](uint32_t tenant) {
    return policy.UseProbability({.number = 2, .tenant = tenant}, 0, 1, 10);
  };
  EXPECT_LT(soon(0), 0.2);
  EXPECT_GT(soon(1), 0.8);
  EXPECT_LT(soon(2), 0.2);
  EXPECT_GT(soon(6), 0.8);
  EXPECT_GT(soon(1'000'000), 0.8);
}

// The age counts from the end of the turn, whose length says nothing of the time to the next use.
TEST(NextUse, CountsFromTheEndOfTheTurn) {
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
TEST(NextUse, CountsASaveAfterItsRestoreAsOneTurn) {
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
TEST(NextUse, LearnsNothingFromATurnWhoseEndIsNotTold) {
  NextUsePolicy policy;
  int64_t now = kSecond;
  policy.Insert(5000, 1, now);
  policy.NoteTurn(5000, {.stop = StopReason::kEndTurn}, now);  // ends are told in general
  for (ChunkIndex c = 0; c < 1000; ++c) policy.Insert(c, 1, now);
  double after_first = 0;  // which ends what was observed since they were inserted
  for (int turn = 0; turn < 100; ++turn) {
    now += 5 * kSecond;
    for (ChunkIndex c = 0; c < 1000; ++c) {
      policy.NoteTurn(c, {.is_use = true, .running = true}, now);
    }
    policy.FindVictim([](ChunkIndex) { return false; }, 1);  // what was seen counts from here
    if (turn == 0) after_first = policy.UseProbability({}, 5, 1, 10);
  }
  EXPECT_NEAR(policy.UseProbability({}, 5, 1, 10), after_first, 0.01);
}

// Turns take half a minute, and the next follows at once. Other turns like them, of whose answers
// nothing is told, are not followed: that says nothing of what a running turn uses, though its
// answer is not known either.
TEST(NextUse, KeepsWhatARunningTurnUses) {
  NextUsePolicy policy;
  constexpr ChunkIndex kSessions = 100, kIdle = 1000;
  int64_t now = kSecond;
  ChunkIndex idle = kIdle;
  for (int turn = 0; turn < 100; ++turn, now += kSecond) {
    for (ChunkIndex c = 0; c < kSessions; ++c) {
      policy.NoteTurn(c, {.number = 5, .is_use = true, .running = true}, now);
    }
    now += 30 * kSecond;
    for (ChunkIndex c = 0; c < kSessions; ++c) {
      policy.NoteTurn(c, {.number = 5, .answer_tokens = 500}, now);
      policy.NoteTurn(idle++, {.number = 5}, now);
    }
    policy.FindVictim([](ChunkIndex) { return false; }, 1);
  }
  policy.NoteTurn(0, {.number = 5, .is_use = true, .running = true}, now);
  policy.Insert(0, 1, now);
  policy.NoteTurn(kIdle, {.number = 5}, now + 5 * kSecond);
  policy.Insert(kIdle, 1, now + 5 * kSecond);
  policy.NoteTurn(kIdle + 1, {.number = 5}, now + 25 * kSecond);  // time goes on
  EXPECT_EQ(policy.FindVictim([](ChunkIndex) { return true; }, 2), kIdle);
}

// Chunks 0 to 99 are used every five seconds: they are worth a use in five seconds.
int64_t TeachFiveSeconds(NextUsePolicy& policy) {
  int64_t now = kSecond;
  for (int round = 0; round < 50; ++round, now += 5 * kSecond) {
    for (ChunkIndex c = 0; c < 100; ++c) policy.NoteTurn(c, {.is_use = true}, now);
    policy.FindVictim([](ChunkIndex) { return false; }, 1);
  }
  return now - 5 * kSecond;
}

TEST(NextUse, WeighsWhatIsToldAgainstWhatItLearned) {
  NextUsePolicy policy;
  const int64_t now = TeachFiveSeconds(policy);
  for (const ChunkIndex c : {0u, 1u, 200u, 201u, 202u, 203u}) policy.Insert(c, 1, now);
  policy.Expect(200, now + kSecond / 10);
  policy.Expect(201, now + 600 * kSecond);
  policy.Expect(202, 7);  // places in the queue
  policy.Expect(203, 8);
  EXPECT_GT(policy.Worth(200), policy.Worth(0));
  EXPECT_LT(policy.Worth(201), policy.Worth(0));
  EXPECT_THAT(Drain(policy), ElementsAre(201, 0, 1, 200, 203, 202));
}

TEST(NextUse, ForgetsWhatIsNoLongerExpected) {
  NextUsePolicy policy;
  const int64_t now = TeachFiveSeconds(policy);
  policy.Expect(300, now + 600 * kSecond);  // told before it comes
  for (const ChunkIndex c : {0u, 300u, 301u}) policy.Insert(c, 1, now);
  policy.Expect(301, now + 500 * kSecond);
  policy.Expect(300, 5);
  policy.Expect(301, kNoExpectedUse);
  EXPECT_LT(policy.Worth(301), policy.Worth(300));
  EXPECT_EQ(Drain(policy).back(), 300u);
  policy.Expect(300, kNoExpectedUse);
  EXPECT_EQ(policy.Worth(300), policy.Worth(301));
}

// Chunks are used every five minutes, which is told 20 seconds after the use before, and taken back
// five seconds later if `taken_back`.
void TeachToldUses(NextUsePolicy& policy, bool taken_back) {
  int64_t now = kSecond;
  ChunkIndex other = 5000;
  const auto expect = [&](int64_t next_use) {
    for (ChunkIndex c = 0; c < 100; ++c) policy.Expect(c, next_use);
  };
  for (int round = 0; round < 50; ++round, now += 300 * kSecond) {
    for (ChunkIndex c = 0; c < 100; ++c) policy.NoteTurn(c, {.is_use = true}, now);
    expect(kNoExpectedUse);
    policy.NoteTurn(other++, {.is_use = true}, now + 20 * kSecond);  // time goes on
    expect(now + 300 * kSecond);
    policy.NoteTurn(other++, {.is_use = true}, now + 25 * kSecond);
    if (taken_back) expect(kNoExpectedUse);
    policy.FindVictim([](ChunkIndex) { return false; }, 1);
  }
}

// Who is told of a use in time need not keep the chunk until the use itself, but only until then.
TEST(NextUse, LearnsWhenUsesAreTold) {
  for (const bool taken_back : {false, true}) {
    NextUsePolicy policy;
    TeachToldUses(policy, taken_back);
    EXPECT_GT(policy.UseProbability({}, 300, 15, 10), 0.8) << taken_back;
    EXPECT_LT(policy.UseProbability({}, 300, 200, 200), 0.4) << taken_back;
  }
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

TEST(NextUse, LearnsThatWhatATurnWentBackFromIsNotUsedAgain) {
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
  EXPECT_LT(left, policy.Worth(22));
}

// Twenty prompts of one chunk come back every five seconds, one of 10,000 came back once only.
TEST(NextUse, DoesNotCountALongPromptAsManyTurns) {
  NextUsePolicy policy;
  std::vector<ChunkIndex> longest;
  for (ChunkIndex c = 1000; c < 11'000; ++c) longest.push_back(c);
  int64_t now = kSecond;
  for (int round = 0; round < 50; ++round, now += 5 * kSecond) {
    for (ChunkIndex c = 0; c < 20; ++c) UsePrompt(policy, {c}, now);
    if (round == 40 || round == 41) UsePrompt(policy, longest, now);
  }
  EXPECT_GT(policy.UseProbability({}, 5, 1, 10), 0.8);
}

TEST(NextUse, DoesNotTakeASharedBeginningForOneThatIsLeft) {
  NextUsePolicy policy;
  int64_t now = kSecond;
  TeachThatLeftChunksStayUnused(policy, &now);
  for (ChunkIndex c = 100; c < 110; ++c) UsePrompt(policy, {0, c}, now += 60 * kSecond);
  UsePrompt(policy, {50}, now += kSecond);
  for (const ChunkIndex c : {200u, 201u}) UsePrompt(policy, {0, c}, now += kSecond);
  for (const ChunkIndex c : {50u, 200u}) policy.Insert(c, 1, now);
  EXPECT_THAT(Drain(policy), ElementsAre(50, 200));
}

// Of the tier below it shows who is likeliest to come back, of these the prefix first.
TEST(NextUse, ShowsTheNearestOfTheTierBelow) {
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

}  // namespace
}  // namespace turnkeep
