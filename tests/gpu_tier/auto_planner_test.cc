// What auto chooses under given costs: per_sequence's own plan where sharing gains nothing, and
// shared units where it does.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/thread_pool.h"
#include "gpu_tier/attention_cost_model.h"
#include "gpu_tier/attention_costs.h"
#include "gpu_tier/attention_planner.h"
#include "gpu_tier/testing/attention_case.h"

namespace turnkeep::testing {
namespace {

constexpr uint32_t kPage = 16;

AttentionShape ShapeOf(uint32_t query_heads, uint32_t kv_heads) {
  return {.query_heads = query_heads,
          .kv_heads = kv_heads,
          .head_dim = 128,
          .page_tokens = kPage,
          .dtype = DType::kFloat16,
          .scale = 0.1f};
}

// A token costs 10 ns to read and 2 ns a row: sharing gains up to six times.
AttentionCosts Costs() {
  AttentionCosts costs;
  costs.entries = {{1, 112, 676, 12}, {8, 126, 1348, 26}, {64, 238, 6724, 138}};
  costs.partial = 20;
  costs.planning = 100;
  return costs;
}

AttentionPlannerOptions OptionsOf(const AttentionShape& shape) {
  return {.shape = shape, .target_tasks = 16, .costs = Costs()};
}

AttentionPlan PlanOf(std::string_view name, const AttentionPlannerOptions& options,
                     const PrefixForest& forest) {
  return (*MakeAttentionPlanner(name, options))->Plan(forest);
}

bool Same(const AttentionPlan& a, const AttentionPlan& b) {
  const auto units = [](const AttentionPlan::Unit& x, const AttentionPlan::Unit& y) {
    return x.first_segment == y.first_segment && x.segment_count == y.segment_count &&
           x.token_count == y.token_count && x.first_query == y.first_query &&
           x.query_count == y.query_count && x.first_mask == y.first_mask;
  };
  return a.pages == b.pages && a.queries == b.queries && a.limits == b.limits &&
         a.partials == b.partials && a.merge_list == b.merge_list &&
         std::equal(a.units.begin(), a.units.end(), b.units.begin(), b.units.end(), units);
}

// `sequences` with `own` tokens each below a node of `shared`.
void AddTree(ForestMaker& maker, uint32_t shared, uint32_t own, uint32_t sequences) {
  const ForestNode root = maker.Node(kNoForestNode, shared);
  for (uint32_t i = 0; i < sequences; ++i) maker.Sequence(maker.Node(root, own));
}

TEST(AutoPlanner, IsPerSequenceWhereSharingGainsNothing) {
  struct Case {
    const char* what;
    uint32_t shared, own, sequences;
  };
  for (const auto& [what, shared, own, sequences] :
       {Case{"nothing shared", 0, 1000, 8}, Case{"a page shared", 16, 1000, 8},
        Case{"one sequence", 1000, 100, 1}, Case{"a call shorter than planning", 20, 1, 4}}) {
    SCOPED_TRACE(what);
    const AttentionPlannerOptions options = OptionsOf(ShapeOf(1, 1));
    ForestMaker maker(kPage);
    AddTree(maker, shared, own, sequences);
    EXPECT_TRUE(Same(PlanOf("auto", options, maker.forest()),
                     PlanOf("per_sequence", options, maker.forest())));
  }
}

TEST(AutoPlanner, ReadsASharedNodeOnce) {
  const AttentionPlannerOptions options = OptionsOf(ShapeOf(4, 4));
  ForestMaker maker(kPage);
  AddTree(maker, 4000, 100, 16);
  EXPECT_EQ(PlanOf("auto", options, maker.forest()).TokensRead(), maker.forest().UniqueTokens());
}

TEST(AutoPlanner, MixesBothWaysInOneBatch) {
  const AttentionPlannerOptions options = OptionsOf(ShapeOf(4, 4));
  ForestMaker maker(kPage);
  AddTree(maker, 4000, 100, 16);
  AddTree(maker, 2, 100, 2);  // less than a unit of its own costs
  EXPECT_EQ(PlanOf("auto", options, maker.forest()).TokensRead(), 4000 + 16 * 100 + 2 * 102u);
}

// With one KV head the shared node is most of the work: as one unit it would leave the other
// threads without any.
TEST(AutoPlanner, SplitsAUnitThatIsMostOfTheWork) {
  const AttentionPlannerOptions options = OptionsOf(ShapeOf(4, 1));
  ForestMaker maker(kPage);
  AddTree(maker, 4000, 10, 40);
  const AttentionPlan plan = PlanOf("auto", options, maker.forest());
  EXPECT_EQ(plan.TokensRead(), maker.forest().UniqueTokens());
  uint32_t largest = 0;
  for (const AttentionPlan::Unit& unit : plan.units) largest = std::max(largest, unit.token_count);
  EXPECT_LE(largest, 4000u / 6);
  EXPECT_TRUE(ValidateAttentionPlan(plan, options.shape, maker.page_count()).ok());
}

// A part loads its queries and leaves results of its own: where that costs as much as the tokens
// do, there are no more parts than threads need.
TEST(AutoPlanner, SplitsNoFurtherThanThePartsAreWorth) {
  AttentionPlannerOptions options = OptionsOf(ShapeOf(4, 1));
  options.costs.entries = {{1, 112, 676, 12}, {64, 50'000, 56'000, 138}};
  ForestMaker maker(kPage);
  AddTree(maker, 4000, 10, 40);
  const AttentionPlan plan = PlanOf("auto", options, maker.forest());
  const auto parts = std::count_if(plan.units.begin(), plan.units.end(),
                                   [](const auto& unit) { return unit.query_count == 40; });
  EXPECT_GE(parts, 2);
  EXPECT_LE(parts, 4);
}

TEST(TaskSchedule, GivesTasksToTheThreadThatIsFreeFirst) {
  TaskSchedule schedule(2);
  schedule.Add(10, 5);
  EXPECT_DOUBLE_EQ(schedule.End(), 30 + 1);  // and a tenth of the longest
  schedule.Add(6, 1);
  EXPECT_DOUBLE_EQ(schedule.End(), 30 + 1);
  schedule.Add(6, 1);
  EXPECT_DOUBLE_EQ(schedule.End(), 32 + 1);
  EXPECT_DOUBLE_EQ(schedule.Balanced(), 31);
  // Where tasks are many and small, nobody waits long.
  schedule.Add(1, 1000);
  EXPECT_DOUBLE_EQ(schedule.End(), 531 + 1);
  schedule.Clear();
  EXPECT_DOUBLE_EQ(schedule.End(), 0);
}

// Draft tokens: nodes of one token in blocks with masks, where masks cost little.
TEST(AutoPlanner, TakesFlattenedBlocksOfSmallNodesWhereMasksCostLittle) {
  AttentionPlannerOptions options = OptionsOf(ShapeOf(32, 32));
  options.costs.masked = 0.01;
  ForestMaker maker(kPage);
  ForestNode node = maker.Node(kNoForestNode, 64);
  for (int i = 0; i < 64; ++i) {
    node = maker.Node(node, 1);
    maker.Sequence(node);
  }
  EXPECT_FALSE(PlanOf("auto", options, maker.forest()).masks.empty());
  // With an eighth of the heads, looking at 65 nodes costs more than a hundredth of the call.
  EXPECT_TRUE(PlanOf("auto", OptionsOf(ShapeOf(4, 4)), maker.forest()).masks.empty());
  options.costs.masked = 1000;
  EXPECT_TRUE(PlanOf("auto", options, maker.forest()).masks.empty());
}

TEST(AttentionCostModel, GivesTheEntriesAndWhatLiesBetween) {
  const AttentionCostModel model(OptionsOf(ShapeOf(2, 2)));
  EXPECT_DOUBLE_EQ(model.Unit(1, 1), 112);
  EXPECT_DOUBLE_EQ(model.Unit(48, 1), 676);
  EXPECT_DOUBLE_EQ(model.Unit(148, 1), 676 + 100 * 12);
  EXPECT_DOUBLE_EQ(model.Token(8), 26);
  EXPECT_DOUBLE_EQ(model.Token(5), 26);  // counted in steps of eight
  EXPECT_DOUBLE_EQ(model.Token(40), 26 + (138 - 26) * 32 / 56.0);
  EXPECT_DOUBLE_EQ(model.Token(128), 2 * 138);
  EXPECT_NEAR(model.Token(5120), 80 * 138, 1e-6);
  EXPECT_DOUBLE_EQ(model.Partials(3), 60);
  // A group of four query heads is four rows a query.
  EXPECT_DOUBLE_EQ(AttentionCostModel(OptionsOf(ShapeOf(4, 1))).Token(2), 26);
}

TEST(MeasuredCosts, HaveAnEntryForEveryKindOfUnit) {
  ThreadPool pool(2);
  for (const uint32_t group : {1u, 4u, 64u}) {
    const AttentionCosts costs = MeasureCpuCosts(ShapeOf(group, 1), pool);
    ASSERT_GE(costs.entries.size(), 3u);
    EXPECT_EQ(costs.entries.front().rows, 1u);
    for (size_t i = 0; i < costs.entries.size(); ++i) {
      const AttentionCosts::Entry& entry = costs.entries[i];
      if (i > 0) {
        EXPECT_GT(entry.rows, costs.entries[i - 1].rows);
      }
      EXPECT_GT(entry.one, 0);
      EXPECT_GE(entry.tile, entry.one);
      EXPECT_GT(entry.token, 0);
    }
    // One kernel runs all of more than a step's rows: what one entry's measurement caught of other
    // work must not show.
    const auto first = std::find_if(costs.entries.begin(), costs.entries.end(),
                                    [](const auto& entry) { return entry.rows > 8; });
    ASSERT_GE(costs.entries.end() - first, 3);
    const AttentionCosts::Entry& last = costs.entries.back();
    for (auto entry = first; entry != costs.entries.end(); ++entry) {
      const double part =
          static_cast<double>(entry->rows - first->rows) / (last.rows - first->rows);
      EXPECT_NEAR(entry->token, first->token + part * (last.token - first->token),
                  1e-6 * last.token);
    }
    EXPECT_GT(costs.partial, 0);
    EXPECT_GT(costs.masked, 0);
    EXPECT_GT(costs.planning, 0);
  }
}

}  // namespace
}  // namespace turnkeep::testing
