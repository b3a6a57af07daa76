// The batch's forest: what it refuses, what it frees, and how block tables become one.
#include "gpu_tier/prefix_forest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "gpu_tier/attention_planner.h"

namespace turnkeep {
namespace {

using ::testing::HasSubstr;

TEST(PrefixForest, RefusesWhatDoesNotFit) {
  PrefixForest forest(4);
  const std::vector<uint32_t> pages = {1, 2};
  EXPECT_THAT(MessageOf(forest.AddNode(3, pages, 8).status()), HasSubstr("no parent 3"));
  EXPECT_THAT(MessageOf(forest.AddNode(kNoForestNode, pages, 9).status()),
              HasSubstr("9 tokens need 3 pages of 4"));
  const ForestNode node = *forest.AddNode(kNoForestNode, pages, 7);
  EXPECT_THAT(MessageOf(forest.AddSequence(node, 8).status()), HasSubstr("8 query tokens"));
  EXPECT_THAT(MessageOf(forest.AddSequence(node, 0).status()), HasSubstr("0 query tokens"));
  EXPECT_TRUE(forest.Extend(node, 1, {}).ok());
  EXPECT_THAT(MessageOf(forest.Extend(node, 1, {})), HasSubstr("9 tokens"));
  ASSERT_TRUE(forest.AddNode(node, pages, 1).ok());
  EXPECT_THAT(MessageOf(forest.Extend(node, 1, pages)), HasSubstr("has children"));
}

TEST(PrefixForest, NodesGoWithTheirLastSequence) {
  PrefixForest forest(4);
  const std::vector<uint32_t> pages = {1};
  const ForestNode root = *forest.AddNode(kNoForestNode, pages, 4);
  const ForestNode a = *forest.AddNode(root, pages, 3);
  const ForestNode b = *forest.AddNode(root, pages, 2);
  const ForestSequence first = *forest.AddSequence(a, 2);
  const ForestSequence second = *forest.AddSequence(b);
  EXPECT_EQ(forest.row_count(), 3u);
  EXPECT_EQ(forest.sequences()[second].first_row, 2u);
  EXPECT_EQ(forest.UniqueTokens(), 9u);
  forest.RemoveSequence(first);
  EXPECT_FALSE(forest.nodes()[a].in_use);
  EXPECT_EQ(forest.UniqueTokens(), 6u);
  EXPECT_EQ(forest.sequences()[second].first_row, 0u);
  forest.RemoveSequence(second);
  EXPECT_EQ(forest.UniqueTokens(), 0u);
  EXPECT_TRUE(forest.roots().empty());
  // Indexes are used again.
  const ForestNode again = *forest.AddNode(kNoForestNode, pages, 4);
  EXPECT_LT(again, 3u);
  EXPECT_LT(*forest.AddSequence(again), 2u);
}

TEST(PrefixForest, BlockTablesShareTheirWholePages) {
  const std::vector<std::vector<uint32_t>> tables = {
      {7, 8, 9, 1}, {7, 8, 2, 3, 4}, {5, 6}, {7, 8, 9, 11}, {7}, {7, 8, 9}};
  // The last token of a table is never shared, even if the page is: it is the query's.
  const std::vector<uint32_t> tokens = {14, 17, 8, 13, 3, 12};
  const std::vector<uint32_t> queries = {1, 3, 1, 1, 2, 1};
  const auto forest = ForestOfBlockTables(4, tables, tokens, queries);
  ASSERT_TRUE(forest.ok()) << forest.status();
  for (uint32_t i = 0; i < tables.size(); ++i) {
    SCOPED_TRACE(i);
    const auto& sequence = forest->sequences()[i];
    EXPECT_EQ(sequence.query_tokens, queries[i]);
    EXPECT_EQ(forest->PathTokens(sequence.leaf), tokens[i]);
    std::vector<uint32_t> pages;
    for (ForestNode n = sequence.leaf; n != kNoForestNode; n = forest->nodes()[n].parent)
      pages.insert(pages.begin(), forest->nodes()[n].pages.begin(), forest->nodes()[n].pages.end());
    EXPECT_EQ(pages, tables[i]);
  }
  // 7 8 once for four of them, 9 once for the two that go on behind it.
  EXPECT_EQ(forest->UniqueTokens(), (8 + 4 + 2 + 1) + (17 - 8) + (12 - 8) + 8 + 3u);
  EXPECT_THAT(MessageOf(ForestOfBlockTables(4, {{{1}}}, {{9}}, {{1}}).status()),
              HasSubstr("sequence 0 has 9 tokens in 1 pages of 4"));
}

// What a decode step costs: nothing but the patch while there is room.
TEST(PrefixForest, APlannerForgetsWhenTold) {
  PrefixForest forest(4);
  const std::vector<uint32_t> pages = {1, 2};
  const ForestNode node = *forest.AddNode(kNoForestNode, pages, 5);
  ASSERT_TRUE(forest.AddSequence(node).ok());
  const auto planner = *MakeAttentionPlanner(
      "two_phase",
      {.shape = {.query_heads = 1, .kv_heads = 1, .head_dim = 8, .page_tokens = 4, .scale = 1}});
  planner->Plan(forest);
  planner->Plan(forest);
  EXPECT_EQ(planner->plan_count(), 1u);
  EXPECT_EQ(planner->patch_count(), 0u);
  ASSERT_TRUE(forest.Extend(node, 1, {}).ok());
  EXPECT_EQ(planner->Plan(forest).units[0].token_count, 6u);
  EXPECT_EQ(planner->patch_count(), 1u);
  planner->Forget();
  planner->Plan(forest);
  EXPECT_EQ(planner->plan_count(), 2u);
}

}  // namespace
}  // namespace turnkeep
