// Each eviction policy's order, and what all of them promise.
#include "store/policy.h"

#include <deque>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "policy_drain.h"
#include "store/next_use_policy.h"

namespace turnkeep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kSecond = 1'000'000'000;

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

TEST(Policy, AnUnknownNameGetsTheListOfNames) {
  EXPECT_THAT(MessageOf(MakePolicy("best").status()), HasSubstr("'best'"));
  EXPECT_THAT(MessageOf(MakePolicy("best").status()), HasSubstr("look_ahead, next_use"));
}

}  // namespace
}  // namespace turnkeep
