// Who is expected to use a chunk: the soonest counts, and a name stands for one expectation.
#include "store/expectations.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace turnkeep {
namespace {

using Source = Expectations::Source;

class ExpectationsTest : public testing::Test {
 protected:
  void SetUp() override {
    expectations_.on_first = [this](ChunkIndex c) { EXPECT_TRUE(kept_.insert(c).second); };
    expectations_.on_last = [this](ChunkIndex c) { EXPECT_EQ(kept_.erase(c), 1u); };
  }
  void Set(const std::string& what, int64_t next_use, std::vector<ChunkIndex> chunks) {
    expectations_.Set({0, Source::kQueue, what}, {next_use, {}, next_use + 100}, chunks, Tell());
  }
  Expectations::Changed Tell() {
    return [this](ChunkIndex chunk, int64_t next_use) {
      EXPECT_TRUE(kept_.contains(chunk)) << "told of a chunk that is not kept";
      soonest_[chunk] = next_use;
    };
  }

  Expectations expectations_;
  std::map<ChunkIndex, int64_t> soonest_;
  std::set<ChunkIndex> kept_;
};

TEST_F(ExpectationsTest, TheSoonestOfManyUsersCounts) {
  Set("a", 30, {1, 2});
  Set("b", 10, {2, 3});
  Set("c", 20, {2});
  EXPECT_EQ(soonest_, (std::map<ChunkIndex, int64_t>{{1, 30}, {2, 10}, {3, 10}}));
  expectations_.Erase({0, Source::kQueue, "b"}, Tell());
  EXPECT_EQ(soonest_[2], 20);
  EXPECT_EQ(soonest_[3], kNoExpectedUse);
  EXPECT_EQ(kept_, (std::set<ChunkIndex>{1, 2}));
}

// What is let go first is what would be prefetched last.
TEST_F(ExpectationsTest, ChunksAreLetGoFromTheLastToTheFirst) {
  Set("a", 30, {1, 2, 3});
  std::vector<ChunkIndex> order;
  expectations_.Erase({0, Source::kQueue, "a"},
                      [&](ChunkIndex chunk, int64_t) { order.push_back(chunk); });
  EXPECT_EQ(order, (std::vector<ChunkIndex>{3, 2, 1}));
}

TEST_F(ExpectationsTest, ASecondOneOfTheNameReplacesTheFirst) {
  Set("a", 30, {1, 2});
  Set("a", 50, {2, 3});
  EXPECT_EQ(soonest_[1], kNoExpectedUse);
  EXPECT_EQ(soonest_[2], 50);
  EXPECT_EQ(soonest_[3], 50);
  EXPECT_EQ(expectations_.size(), 1u);
  EXPECT_EQ(expectations_.queue_count(), 1u);
}

TEST_F(ExpectationsTest, ARenamedOneReplacesWhatTheNameStoodFor) {
  Set("a", 30, {1, 2});
  Set("b", 10, {2, 3});
  soonest_.clear();
  expectations_.Rename({0, Source::kQueue, "a"}, {0, Source::kQueue, "b"}, Tell());
  expectations_.Rename({0, Source::kQueue, "nobody"}, {0, Source::kQueue, "b"}, Tell());
  EXPECT_EQ(soonest_, (std::map<ChunkIndex, int64_t>{{2, 30}, {3, kNoExpectedUse}}));
  EXPECT_EQ(kept_, (std::set<ChunkIndex>{1, 2}));
  EXPECT_EQ(expectations_.Find({0, Source::kQueue, "a"}), nullptr);
  EXPECT_EQ(expectations_.size(), 1u);
  EXPECT_EQ(expectations_.queue_count(), 1u);
  EXPECT_EQ(expectations_.UsageOf(0).links, 2u);
}

TEST_F(ExpectationsTest, WhatIsToldAgainUnchangedTellsNobody) {
  Set("a", 30, {1, 2});
  soonest_.clear();
  Set("a", 30, {1, 2});
  EXPECT_TRUE(soonest_.empty());
  EXPECT_EQ(expectations_.UsageOf(0).links, 2u);
}

TEST_F(ExpectationsTest, AQueueIsATenantsAndNotItsHints) {
  Set("a", 1, {1});
  Set("b", 2, {2});
  const std::vector<ChunkIndex> three = {3}, four = {4};
  expectations_.Set({1, Source::kQueue, "c"}, {3, {}, 100}, three, Tell());
  expectations_.Set({0, Source::kHint, "d"}, {4, {}, 100}, four, Tell());
  const auto queue = expectations_.QueueOf(0);
  ASSERT_EQ(queue.size(), 2u);
  EXPECT_EQ(queue[0].what, "a");
  EXPECT_EQ(queue[1].what, "b");
  EXPECT_EQ(expectations_.queue_count(), 3u);
  EXPECT_EQ(expectations_.UsageOf(0).links, 3u);
  EXPECT_EQ(expectations_.UsageOf(0).names, 3u);
  EXPECT_EQ(expectations_.UsageOf(1).links, 1u);
  expectations_.Erase({1, Source::kQueue, "c"}, Tell());
  EXPECT_EQ(expectations_.UsageOf(1).names, 0u);
}

// Nor does it go on in the next tenant's where its own has no hints behind it.
TEST_F(ExpectationsTest, AQueueEndsWithItsTenant) {
  Set("a", 1, {1});
  const std::vector<ChunkIndex> two = {2};
  expectations_.Set({1, Source::kQueue, "b"}, {2, {}, 100}, two, Tell());
  ASSERT_EQ(expectations_.QueueOf(0).size(), 1u);
  EXPECT_EQ(expectations_.QueueOf(0)[0].what, "a");
  ASSERT_EQ(expectations_.QueueOf(1).size(), 1u);
  EXPECT_EQ(expectations_.QueueOf(1)[0].what, "b");
  EXPECT_TRUE(expectations_.QueueOf(2).empty());
}

TEST_F(ExpectationsTest, WhatHasExpiredIsForgotten) {
  Set("a", 1, {1});
  Set("b", 50, {1});
  expectations_.Advance(101, Tell());
  EXPECT_EQ(soonest_[1], 50);
  expectations_.Advance(150, Tell());
  EXPECT_TRUE(kept_.empty());
}

// Of times 10, 20, 60, 100 and 200 the median is 60; when that has passed, 100 of what is left.
TEST_F(ExpectationsTest, ADistributionMovesOnAsTimePasses) {
  const std::vector<ChunkIndex> chunks = {1};
  expectations_.Set({0, Source::kHint, "a"}, {60, {10, 20, 60, 100, 200}, 900}, chunks, Tell());
  expectations_.Advance(59, Tell());
  EXPECT_EQ(soonest_[1], 60);
  expectations_.Advance(60, Tell());
  EXPECT_EQ(soonest_[1], 100);
  expectations_.Advance(150, Tell());
  EXPECT_EQ(soonest_[1], 200);
  expectations_.Advance(500, Tell());
  EXPECT_EQ(soonest_[1], 200) << "due since the last time";
  expectations_.Advance(900, Tell());
  EXPECT_TRUE(kept_.empty());
}

}  // namespace
}  // namespace turnkeep
