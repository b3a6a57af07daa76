// The CUDA attention kernels' own sources, executed on the CPU (tests/testing/simt), against the
// oracle in double precision: every planner, dtype, head_dim and kind of unit, and the layers that
// share weights. What is left for a GPU is speed, races and CUDA's own conversions.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/status.h"
#include "gpu_tier/attention_planner.h"
#include "gpu_tier/testing/attention_case.h"
#include "kernels/attention_cuda.h"

namespace turnkeep::testing {
namespace {

constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};

// Weights are rounded to the storage type before they meet the values on tensor cores.
double ToleranceOf(DType dtype) {
  return dtype == DType::kFloat16 ? 2e-3 : dtype == DType::kBFloat16 ? 1.2e-2 : 1e-5;
}

AttentionShape ShapeOf(uint32_t kv_heads, uint32_t group, uint32_t dim, uint32_t page, DType type) {
  return {.query_heads = kv_heads * group,
          .kv_heads = kv_heads,
          .head_dim = dim,
          .page_tokens = page,
          .dtype = type,
          .scale = 1.0f / std::sqrt(static_cast<float>(dim))};
}

class SimtAttention : public ::testing::TestWithParam<std::string_view> {
 protected:
  // A layer, then one that has its weights and other values.
  void ExpectRight(AttentionCase& c, const AttentionPlan& plan) {
    const AttentionShape& shape = c.shape();
    const absl::Status valid = ValidateAttentionPlan(plan, shape, c.page_count());
    ASSERT_TRUE(valid.ok()) << valid;
    ASSERT_EQ(attention_.Upload(shape, plan, nullptr), absl::OkStatus());
    AttentionTensors tensors = c.Tensors();
    ASSERT_EQ(attention_.Run(c.kv(), tensors, nullptr, &scores_), absl::OkStatus());
    std::string where;
    ASSERT_LE(c.WorstError(&where), ToleranceOf(shape.dtype)) << where;
    const std::vector<float> kept = c.output();
    const std::vector<float> lse = c.lse();
    tensors = c.Tensors();
    ASSERT_EQ(attention_.Run(c.kv(), tensors, nullptr), absl::OkStatus());
    ASSERT_EQ(c.output(), kept) << "keeping scores changes the output";

    PagedKv next = c.kv();
    next.values = next.keys;  // the keys stand in for another layer's values
    std::vector<float> output(kept.size(), NAN);
    tensors.output = output.data();
    ASSERT_EQ(attention_.ApplyWeights(next, scores_, tensors, nullptr), absl::OkStatus());
    std::vector<double> expected(output.size());
    std::vector<double> expected_lse(lse.size());
    ReferenceAttention(shape, next, tensors.queries, c.Visible(), expected.data(),
                       expected_lse.data());
    for (size_t i = 0; i < output.size(); ++i) {
      ASSERT_NEAR(output[i], expected[i], ToleranceOf(shape.dtype) * (1 + std::abs(expected[i])))
          << "weights applied, element " << i;
    }
    ASSERT_EQ(c.lse(), lse) << "applying weights writes log-sum-exps";
  }

  CudaAttention attention_;
  CudaAttentionScores scores_;
};

TEST_P(SimtAttention, EqualsTheOracleOnRandomTrees) {
  constexpr uint32_t kDims[] = {64, 128, 256};
  constexpr uint32_t kPages[] = {16, 5, 32};
  constexpr uint32_t kGroups[] = {1, 2, 4, 8, 3, 17};
  const auto names = AttentionPlannerNames();
  const auto planner_index =
      static_cast<uint64_t>(std::find(names.begin(), names.end(), GetParam()) - names.begin());
  // Other shapes for every planner.
  for (uint64_t seed = 5 * planner_index + 1; seed <= 5 * planner_index + 5; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const AttentionShape shape = ShapeOf(1 + random() % 2, kGroups[seed % 6], kDims[seed / 2 % 3],
                                         kPages[random() % 3], kDTypes[seed / 3 % 3]);
    ForestMaker maker(shape.page_tokens);
    GrowRandomTree(random, maker, kNoForestNode, {.depth = 2, .max_tokens = 59, .max_queries = 4});
    maker.Sequence(maker.Node(kNoForestNode, 33));
    AttentionCase c(shape, maker.forest(), maker.page_count(), seed);
    AttentionPlannerOptions options;
    options.shape = shape;
    const auto planner = MakeAttentionPlanner(GetParam(), options);
    ASSERT_TRUE(planner.ok()) << planner.status();
    ExpectRight(c, (*planner)->Plan(c.forest()));
    if (HasFatalFailure()) return;
  }
}

TEST_P(SimtAttention, EqualsTheOracleOnASharedPrefixOfManyRows) {
  for (const DType dtype : kDTypes) {
    const AttentionShape shape = ShapeOf(1, 8, 64, 16, dtype);
    ForestMaker maker(shape.page_tokens);
    const ForestNode system = maker.Node(kNoForestNode, 150);
    for (int i = 0; i < 12; ++i) maker.Sequence(maker.Node(system, 1 + 3 * i));
    AttentionCase c(shape, maker.forest(), maker.page_count(), 11);
    AttentionPlannerOptions options;
    options.shape = shape;
    const auto planner = *MakeAttentionPlanner(GetParam(), options);
    ExpectRight(c, planner->Plan(c.forest()));
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Planners, SimtAttention, ::testing::ValuesIn(AttentionPlannerNames()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace turnkeep::testing
