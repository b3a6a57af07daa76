// Which pooled chunks a prompt may use without asking the store: those of its own tokens, and never
// those that remember other tokens.
#include <gtest/gtest.h>

#include <numeric>

#include "gpu_tier/host_device.h"
#include "gpu_tier/pooled_contexts.h"

namespace turnkeep {
namespace {

ChunkId Id(uint8_t number) {
  ChunkId id;
  id.bytes.fill(number);
  return id;
}

// Chunks `first`, `first` + 1, … of 16 tokens, one after another.
ContextSpans Chunks(uint8_t first, uint32_t tokens) {
  ContextSpans spans;
  for (uint32_t begin = 0; begin < tokens; begin += 16) {
    const uint32_t count = std::min(16u, tokens - begin);
    spans.push_back({.token_begin = begin,
                     .token_count = count,
                     .chunk_token_count = count,
                     .stored_position = begin,
                     .chunk = Id(first++)});
  }
  return spans;
}

std::vector<uint32_t> Count(uint32_t first, uint32_t count) {
  std::vector<uint32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

class PooledContextsTest : public ::testing::Test {
 protected:
  void Pool(uint8_t first, int count) {
    for (int i = 0; i < count; ++i) {
      auto pin = pool_->Insert({.id = Id(static_cast<uint8_t>(first + i)), .bytes = 16}, *stream_);
      ASSERT_TRUE(pin.ok() && pin->FilledOn(*stream_).ok()) << pin.status();
    }
  }
  // Tokens found, and whether that is all there is.
  std::pair<uint64_t, bool> Find(const std::string& session, const std::vector<uint32_t>& tokens) {
    const auto found = contexts_.Find(*pool_, {.session = session, .tokens = tokens});
    if (!found) return {0, false};
    EXPECT_EQ(TokensOf(found->spans), found->token_count);
    return {found->token_count, found->complete};
  }
  using Answer = std::pair<uint64_t, bool>;

  HostDevice device_;
  std::unique_ptr<DeviceStream> stream_ = device_.NewStream().value();
  std::unique_ptr<PagePool> pool_ =
      PagePool::Make(device_, {.budget_bytes = 256 * 12, .slot_bytes = 256}).value();
  PooledContexts contexts_;
};

TEST_F(PooledContextsTest, ASessionThatGoesOnIsCompleteAndOthersShareItsBeginning) {
  Pool(1, 3);
  contexts_.Remember({.session = "a", .tokens = Count(0, 40), .spans = Chunks(1, 40)});
  EXPECT_EQ(Find("a", Count(0, 60)), (Answer{40, true}));
  EXPECT_EQ(Find("a", Count(0, 30)), (Answer{30, true}));
  auto departs = Count(0, 60);
  departs[20] = 999;
  EXPECT_EQ(Find("a", departs), (Answer{20, false}));
  EXPECT_EQ(Find("b", Count(0, 60)), (Answer{40, false}));
  EXPECT_EQ(Find("a", Count(7, 60)), (Answer{0, false}));
}

TEST_F(PooledContextsTest, WhatThePoolHasLostEndsIt) {
  Pool(1, 3);
  contexts_.Remember({.session = "a", .tokens = Count(0, 48), .spans = Chunks(1, 48)});
  ASSERT_TRUE(pool_->Drop(Id(2)).ok());
  EXPECT_EQ(Find("a", Count(0, 60)), (Answer{16, false}));
  ASSERT_TRUE(pool_->Drop(Id(1)).ok());
  EXPECT_EQ(Find("a", Count(0, 60)), (Answer{0, false}));
}

TEST_F(PooledContextsTest, LeadingChunksAreHeldUpToTheFirstThatIsNotThere) {
  Pool(1, 12);
  ASSERT_TRUE(pool_->Drop(Id(3)).ok());
  const HeldInPool held = HoldLeading(*pool_, Chunks(1, 80));
  EXPECT_EQ(held.chunks, (std::vector<ChunkId>{Id(1), Id(2)}));
  EXPECT_EQ(pool_->Drop(Id(2)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(pool_->Drop(Id(4)).ok());
}

TEST_F(PooledContextsTest, OfAnotherLayoutThereIsNothing) {
  Pool(1, 3);
  contexts_.Remember({.session = "a", .tokens = Count(0, 48), .spans = Chunks(1, 48)});
  Fingerprint other;
  other.bytes.fill(1);
  const auto tokens = Count(0, 48);
  EXPECT_FALSE(contexts_.Find(*pool_, {.session = "a", .layout = other, .tokens = tokens}));
}

// The same tokens, computed without what was dropped, have other KV.
TEST_F(PooledContextsTest, ATruncatedContextIsItsOwnSessionsAlone) {
  Pool(1, 3);
  contexts_.Remember(
      {.session = "a", .generation = 1, .tokens = Count(0, 48), .spans = Chunks(1, 48)});
  contexts_.Truncate("a", 2, 0, 20);
  EXPECT_EQ(Find("b", Count(20, 28)), (Answer{0, false}));
  EXPECT_EQ(Find("a", Count(20, 28)), (Answer{28, false}));
  const auto tokens = Count(20, 28);
  const auto found = contexts_.Find(*pool_, {.session = "a", .tokens = tokens});
  EXPECT_FALSE(found->plain);
  EXPECT_EQ(found->generation, 2u);
  contexts_.Doubt("a");
  EXPECT_EQ(Find("a", Count(20, 28)), (Answer{0, false}));
}

TEST_F(PooledContextsTest, OneInDoubtStillLendsItsChunks) {
  Pool(1, 3);
  contexts_.Remember({.session = "a", .tokens = Count(0, 48), .spans = Chunks(1, 48)});
  contexts_.Doubt("a");
  EXPECT_EQ(Find("a", Count(0, 60)), (Answer{48, false}));
  contexts_.Forget("a");
  EXPECT_EQ(Find("a", Count(0, 60)), (Answer{0, false}));
}

TEST_F(PooledContextsTest, TheOldestIsForgottenBeyondTheLimits) {
  Pool(1, 3);
  const auto one = [](int i) {
    return PooledContexts::Context{
        .session = std::to_string(i), .tokens = Count(0, 16), .spans = Chunks(1, 16)};
  };
  for (int i = 0; i < static_cast<int>(PooledContexts::kMaxContexts); ++i)
    contexts_.Remember(one(i));
  EXPECT_EQ(Find("0", Count(0, 20)), (Answer{16, true}));  // used: now the newest
  contexts_.Remember(one(-1));
  EXPECT_EQ(Find("1", Count(0, 20)), (Answer{16, false}));
  EXPECT_EQ(Find("0", Count(0, 20)), (Answer{16, true}));
}

TEST(ContextSpans, WithoutTokensCutsInsideChunksAndKeepsWhereTheyWere) {
  const ContextSpans cut = WithoutTokens(Chunks(1, 48), 10, 36);
  ASSERT_EQ(cut.size(), 2u);
  EXPECT_EQ(cut[0].token_count, 10u);
  EXPECT_EQ(cut[0].first_in_chunk, 0u);
  EXPECT_EQ(cut[1].token_begin, 10u);
  EXPECT_EQ(cut[1].token_count, 12u);
  EXPECT_EQ(cut[1].first_in_chunk, 4u);
  EXPECT_EQ(cut[1].stored_position, 36u);
  EXPECT_EQ(cut[1].chunk, Id(3));
  EXPECT_FALSE(IsPlain(cut));
  EXPECT_TRUE(IsPlain(WithoutTokens(Chunks(1, 48), 20, 48)));
  // Both ends inside one chunk: it shows twice.
  const ContextSpans inside = WithoutTokens(Chunks(1, 16), 4, 6);
  ASSERT_EQ(inside.size(), 2u);
  EXPECT_EQ(inside[1].first_in_chunk, 6u);
  EXPECT_EQ(TokensOf(inside), 14u);
}

TEST(ContextSpans, OfASaveFollowWhatWasKnown) {
  const std::vector<ChunkToSave> saved = {{.token_begin = 32, .token_count = 16, .chunk = Id(9)},
                                          {.token_begin = 48, .token_count = 5, .chunk = Id(10)}};
  const ContextSpans spans = SpansOfSave(Chunks(1, 40), 32, saved, 0);
  ASSERT_EQ(spans.size(), 4u);
  EXPECT_EQ(TokensOf(spans), 53u);
  EXPECT_EQ(spans[1].chunk, Id(2));
  EXPECT_EQ(spans[2].chunk, Id(9));
  EXPECT_TRUE(IsPlain(spans));
  EXPECT_FALSE(IsPlain(SpansOfSave({}, 0, saved, 3)));
  // The store knows more than was seen of it.
  EXPECT_TRUE(SpansOfSave(Chunks(1, 20), 32, saved, 0).empty());
}

}  // namespace
}  // namespace turnkeep
