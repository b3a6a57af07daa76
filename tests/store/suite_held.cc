// KvStoreSuite: restores by an engine that has some of the chunks.
#include <utility>
#include <vector>

#include <gmock/gmock.h>

#include "core/limits.h"
#include "store/kv_store_suite.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

// Of the chunks behind a session.
std::vector<ChunkId> ChunksOf(KvStore& kv, const std::string& session, const KvPattern& pattern) {
  const auto ticket = kv.BeginRestore({.session = session, .layout = pattern.fingerprint()});
  EXPECT_TRUE(ticket.ok()) << ticket.status();
  std::vector<ChunkId> ids;
  for (size_t i = 0; i < (*ticket)->spans().size(); ++i) ids.push_back((*ticket)->chunk(i));
  return ids;
}

RestoreOutcome RestoreHolding(KvStore& kv, const KvPattern& pattern, const KvContext& context,
                              std::vector<ChunkId> held, bool by_page = false) {
  const auto restored = RestoreAndCheck(
      kv, pattern,
      {.session = "s", .context = &context, .by_page = by_page, .held_chunks = std::move(held)});
  EXPECT_TRUE(restored.ok()) << restored.status();
  return restored.ok() ? *restored : RestoreOutcome{};
}

// That nothing of them can be read is checked by CheckTicket.
TEST_P(KvStoreSuite, ChunksThatTheEngineHasCountAndAreNotGiven) {
  const KvPattern pattern = Register(TinyLayout());
  const uint64_t chunk = TinyLayout().chunk_tokens;
  const KvContext context = ContextOf(1, 3 * chunk + 5);
  Save(pattern, "s", context);
  const std::vector<ChunkId> ids = ChunksOf(kv(), "s", pattern);
  ASSERT_EQ(ids.size(), 4u);
  for (const bool by_page : {false, true}) {
    const auto leading = RestoreHolding(kv(), pattern, context, {ids[0], ids[1]}, by_page);
    EXPECT_EQ(leading.token_count, context.size());
    EXPECT_EQ(leading.held_tokens, 2 * chunk);
    const auto between = RestoreHolding(kv(), pattern, context, {ids[1], ids[3]}, by_page);
    EXPECT_EQ(between.token_count, context.size());
    EXPECT_EQ(between.held_tokens, chunk + 5);
    const auto all = RestoreHolding(kv(), pattern, context, ids, by_page);
    EXPECT_EQ(all.token_count, context.size());
    EXPECT_EQ(all.held_tokens, context.size());
  }
}

TEST_P(KvStoreSuite, ChunksOfOtherContextsThatTheEngineHasMeanNothing) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 100);
  Save(pattern, "s", context);
  Save(pattern, "other", ContextOf(2, TinyLayout().chunk_tokens));
  std::vector<ChunkId> held = ChunksOf(kv(), "other", pattern);
  held.push_back(ChunkId{});
  const RestoreOutcome outcome = RestoreHolding(kv(), pattern, context, held);
  EXPECT_EQ(outcome.token_count, context.size());
  EXPECT_EQ(outcome.held_tokens, 0u);
}

TEST_P(KvStoreSuite, ARequestWithTooManyHeldChunksIsRefused) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 100);
  Save(pattern, "s", context);
  const std::vector<ChunkId> many(kMaxHeldChunks + 1);
  const auto ticket =
      kv().BeginRestore({.session = "s", .layout = pattern.fingerprint(), .held_chunks = many});
  ASSERT_TRUE(absl::IsInvalidArgument(ticket.status())) << ticket.status();
  EXPECT_THAT(std::string(ticket.status().message()), HasSubstr("held_chunks has 65537"));
  EXPECT_EQ(Restore(pattern, "s", context), context.size());
}

}  // namespace
}  // namespace turnkeep::testing
