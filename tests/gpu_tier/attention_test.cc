// Every planner's plan, run by the CPU executor, against plain loops in double precision.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "gpu_tier/attention_planner.h"
#include "gpu_tier/testing/attention_case.h"
#include "kernels/attention_cpu.h"
#include "kernels/element.h"

namespace turnkeep::testing {
namespace {

// float32 sums of up to a few thousand terms against double.
constexpr double kTolerance = 3e-5;

AttentionShape ShapeOf(uint32_t query_heads, uint32_t kv_heads, uint32_t head_dim,
                       uint32_t page_tokens, DType dtype) {
  return {.query_heads = query_heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .page_tokens = page_tokens,
          .dtype = dtype,
          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
}

AttentionPlannerOptions Options(const AttentionShape& shape) {
  return {.shape = shape, .min_split_tokens = 48, .block_tokens = 40};
}

void ExpectRight(AttentionCase& c, const AttentionPlan& plan, CpuAttention& attention) {
  const absl::Status valid = ValidateAttentionPlan(plan, c.shape(), c.page_count());
  ASSERT_TRUE(valid.ok()) << valid;
  ASSERT_EQ(plan.row_count, c.forest().row_count());
  attention.Run(c.shape(), c.kv(), plan, c.Tensors());
  std::string where;
  EXPECT_LE(c.WorstError(&where), kTolerance) << where;
}

class EveryPlanner : public ::testing::TestWithParam<std::string_view> {
 protected:
  ThreadPool pool_{2};
  CpuAttention attention_{&pool_};
};

TEST_P(EveryPlanner, EqualsTheOracleOnRandomTrees) {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  constexpr uint32_t kDims[] = {8, 24, 64, 128, 256};
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const uint32_t kv_heads = 1 + static_cast<uint32_t>(random() % 3);
    const uint32_t group = seed % 10 == 0 ? 64 : 1u << (random() % 4);
    const AttentionShape shape =
        ShapeOf(kv_heads * group, kv_heads, kDims[random() % 5],
                1 + static_cast<uint32_t>(random() % 33), kTypes[random() % 3]);
    ForestMaker maker(shape.page_tokens);
    const auto trees = 1 + random() % 3;
    for (size_t i = 0; i < trees; ++i)
      GrowRandomTree(random, maker, kNoForestNode,
                     {.depth = 3, .max_tokens = seed % 2 == 0 ? 5u : 90u, .max_queries = 5});
    AttentionCase c(shape, maker.forest(), maker.page_count(), seed);
    const auto planner = MakeAttentionPlanner(GetParam(), Options(shape));
    ASSERT_TRUE(planner.ok()) << planner.status();
    ExpectRight(c, (*planner)->Plan(c.forest()), attention_);
    if (HasFailure()) return;
  }
}

// Sequences join, leave and grow; decode steps do not plan anew while there is room in the pages.
TEST_P(EveryPlanner, FollowsABatchThatChanges) {
  const AttentionShape shape = ShapeOf(4, 2, 64, 4, DType::kFloat16);
  ForestMaker maker(shape.page_tokens);
  const ForestNode system = maker.Node(kNoForestNode, 30);
  std::vector<ForestNode> leaves;
  for (int i = 0; i < 6; ++i) {
    leaves.push_back(maker.Node(i % 2 == 0 ? system : kNoForestNode, 10 + 3 * i));
    maker.Sequence(leaves.back());
  }
  maker.MorePages(0, 4000);  // for later
  AttentionCase c(shape, maker.forest(), maker.page_count(), 7);
  uint32_t next_page = maker.page_count() - 1000;
  const auto planner = *MakeAttentionPlanner(GetParam(), Options(shape));
  ExpectRight(c, planner->Plan(c.forest()), attention_);
  const auto decode = [&](int steps) {
    for (int step = 0; step < steps; ++step) {
      for (const ForestNode leaf : leaves) {
        const auto& node = c.forest().nodes()[leaf];
        std::vector<uint32_t> pages;
        if (node.token_count % 4 == 0) pages.push_back(next_page++);
        ASSERT_TRUE(c.forest().Extend(leaf, 1, pages).ok());
      }
      ExpectRight(c, planner->Plan(c.forest()), attention_);
    }
  };
  decode(12);
  if (GetParam() != "flatten_tree") {
    EXPECT_EQ(planner->plan_count(), 1u);
    EXPECT_EQ(planner->patch_count(), 12u);
  }
  decode(30);  // past the spare pages
  EXPECT_LT(planner->plan_count(), GetParam() == "flatten_tree" ? 99u : 5u);
  c.forest().RemoveSequence(2);
  std::erase(leaves, leaves[2]);
  c.DrawQueries();
  ExpectRight(c, planner->Plan(c.forest()), attention_);
  const std::vector<uint32_t> pages = {next_page++, next_page++, next_page++};
  leaves.push_back(*c.forest().AddNode(system, pages, 9));
  ASSERT_TRUE(c.forest().AddSequence(leaves.back()).ok());
  c.DrawQueries();
  ExpectRight(c, planner->Plan(c.forest()), attention_);
  decode(3);
}

TEST_P(EveryPlanner, GivesTheSameBitsForEveryThreadCount) {
  const AttentionShape shape = ShapeOf(8, 8, 128, 16, DType::kBFloat16);
  ForestMaker maker(shape.page_tokens);
  const ForestNode system = maker.Node(kNoForestNode, 700);
  for (int i = 0; i < 9; ++i) maker.Sequence(maker.Node(system, 50 + i));
  AttentionCase c(shape, maker.forest(), maker.page_count(), 3);
  const auto planner = *MakeAttentionPlanner(GetParam(), Options(shape));
  const AttentionPlan& plan = planner->Plan(c.forest());
  attention_.Run(shape, c.kv(), plan, c.Tensors());
  const std::vector<float> output = c.output();
  const std::vector<float> lse = c.lse();
  ThreadPool one(1);
  CpuAttention alone(&one);
  alone.Run(shape, c.kv(), plan, c.Tensors());
  EXPECT_TRUE(std::equal(output.begin(), output.end(), c.output().begin()));
  EXPECT_TRUE(std::equal(lse.begin(), lse.end(), c.lse().begin()));
}

// Shared Attention, section 3: a layer's weights applied to the values of the layers after it.
TEST_P(EveryPlanner, WeightsOfOneLayerServeTheValuesOfOthers) {
  for (const uint32_t group : {1u, 2u, 8u}) {
    for (const uint32_t query_tokens : {1u, 5u}) {
      SCOPED_TRACE("group " + std::to_string(group) + " queries " + std::to_string(query_tokens));
      const AttentionShape shape = ShapeOf(2 * group, 2, 64, 8, DType::kFloat32);
      ForestMaker maker(shape.page_tokens);
      const ForestNode system = maker.Node(kNoForestNode, 100);
      for (int i = 0; i < 4; ++i) maker.Sequence(maker.Node(system, 20 + 7 * i), query_tokens);
      AttentionCase c(shape, maker.forest(), maker.page_count(), 5);
      const auto planner = *MakeAttentionPlanner(GetParam(), Options(shape));
      const AttentionPlan& plan = planner->Plan(c.forest());
      AttentionScores scores;
      AttentionTensors tensors = c.Tensors();
      attention_.Run(shape, c.kv(), plan, tensors, &scores);
      // The keys stand in for another layer's values.
      PagedKv next = c.kv();
      next.values = next.keys;
      std::vector<float> output(c.output().size(), NAN);
      tensors.output = output.data();
      attention_.ApplyWeights(shape, next, plan, scores, tensors);
      std::vector<double> expected(output.size());
      std::vector<double> lse(c.lse().size());
      ReferenceAttention(shape, next, tensors.queries, c.Visible(), expected.data(), lse.data());
      for (size_t i = 0; i < output.size(); ++i)
        ASSERT_NEAR(output[i], expected[i], kTolerance * (1 + std::abs(expected[i]))) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Planners, EveryPlanner, ::testing::ValuesIn(AttentionPlannerNames()),
                         [](const auto& info) { return std::string(info.param); });

// ---- plans by hand ---------------------------------------------------------------

struct Tiny {
  AttentionShape shape = ShapeOf(2, 1, 8, 4, DType::kFloat32);
  AttentionPlan plan;
  Tiny() {
    plan.row_count = 2;
    plan.pages = {0, 1};
    plan.segments = {{.first_page = 0, .offset = 0, .token_count = 6}};
    plan.units = {{.first_segment = 0, .segment_count = 1, .token_count = 6, .query_count = 2}};
    plan.queries = {0, 1};
    plan.limits = {6, 6};
    plan.partials = {AttentionPlan::kDirect, AttentionPlan::kDirect};
    plan.merge_begin = {0, 0, 0};
  }
};

TEST(AttentionPlan, RowsThatSeeNothingHaveZeroAndMinusInfinity) {
  Tiny tiny;
  ThreadPool pool(1);
  CpuAttention attention(&pool);
  ForestMaker maker(4);
  maker.Sequence(maker.Node(kNoForestNode, 6), 2);
  for (const bool masked : {false, true}) {
    for (const uint32_t group : {1u, 2u, 8u}) {
      tiny.shape.query_heads = group;
      tiny.plan.limits = {masked ? 6u : 0u, 6};
      tiny.plan.masks = {0, 0x3F};
      tiny.plan.units[0].first_mask = masked ? 0 : AttentionPlan::kNoMask;
      ASSERT_TRUE(ValidateAttentionPlan(tiny.plan, tiny.shape, 2).ok());
      AttentionCase c(tiny.shape, maker.forest(), 2, 1);
      attention.Run(tiny.shape, c.kv(), tiny.plan, c.Tensors());
      for (uint32_t i = 0; i < group * 8; ++i) EXPECT_EQ(c.output()[i], 0.0f);
      for (uint32_t h = 0; h < group; ++h) EXPECT_EQ(c.lse()[h], -INFINITY);
      EXPECT_TRUE(std::isfinite(c.lse()[group]));
      EXPECT_NE(c.output()[group * 8], 0.0f);
    }
  }
}

TEST(AttentionPlan, PartsThatSeeNothingChangeNothing) {
  // The same tokens in one unit, and with an empty and a fully hidden part beside it.
  Tiny whole;
  Tiny parts;
  parts.plan.units.push_back({.first_segment = 0,
                              .segment_count = 1,
                              .token_count = 6,
                              .first_query = 2,
                              .query_count = 2});
  parts.plan.units.push_back({.first_segment = 1, .first_query = 4, .query_count = 2});
  parts.plan.queries = {0, 1, 0, 1, 0, 1};
  parts.plan.limits = {6, 6, 0, 0, 0, 0};
  parts.plan.partials = {0, 1, 2, 3, 4, 5};
  parts.plan.partial_count = 6;
  parts.plan.merge_begin = {0, 3, 6};
  parts.plan.merge_list = {0, 2, 4, 1, 3, 5};
  ASSERT_TRUE(ValidateAttentionPlan(parts.plan, parts.shape, 2).ok());
  ForestMaker maker(4);
  maker.Sequence(maker.Node(kNoForestNode, 6), 2);
  AttentionCase c(whole.shape, maker.forest(), 2, 1);
  ThreadPool pool(1);
  CpuAttention attention(&pool);
  attention.Run(whole.shape, c.kv(), whole.plan, c.Tensors());
  const std::vector<float> output = c.output();
  attention.Run(parts.shape, c.kv(), parts.plan, c.Tensors());
  for (size_t i = 0; i < output.size(); ++i) EXPECT_EQ(c.output()[i], output[i]) << i;
}

TEST(AttentionPlan, WhatIsWrongIsNamed) {
  using ::testing::HasSubstr;
  struct Case {
    const char* message;
    void (*change)(AttentionPlan&);
  };
  const Case cases[] = {
      {"merge_begin", [](AttentionPlan& p) { p.merge_begin.pop_back(); }},
      {"differ in size", [](AttentionPlan& p) { p.limits.pop_back(); }},
      {"segments or queries", [](AttentionPlan& p) { p.units[0].segment_count = 2; }},
      {"page 9 of 2", [](AttentionPlan& p) { p.pages[1] = 9; }},
      {"past the 2 pages", [](AttentionPlan& p) { p.segments[0].offset = 7; }},
      {"token_count 5", [](AttentionPlan& p) { p.units[0].token_count = 5; }},
      {"masks", [](AttentionPlan& p) { p.units[0].first_mask = 0; }},
      {"row 7 of 2", [](AttentionPlan& p) { p.queries[0] = 7; }},
      {"partial 3", [](AttentionPlan& p) { p.partials[0] = 3; }},
      {"row 0 has 2", [](AttentionPlan& p) { p.queries[1] = 0; }}};
  for (const Case& c : cases) {
    Tiny tiny;
    c.change(tiny.plan);
    const absl::Status status = ValidateAttentionPlan(tiny.plan, tiny.shape, 2);
    EXPECT_THAT(MessageOf(status), HasSubstr(c.message));
  }
  AttentionShape shape = Tiny().shape;
  shape.head_dim = 12;
  EXPECT_THAT(MessageOf(ValidateAttentionShape(shape)), HasSubstr("head_dim 12"));
  EXPECT_THAT(MessageOf(MakeAttentionPlanner("best", {.shape = Tiny().shape}).status()),
              HasSubstr("flatten_tree"));
}

}  // namespace
}  // namespace turnkeep::testing
