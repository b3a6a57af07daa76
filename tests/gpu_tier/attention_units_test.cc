// Units of every number of rows, by hand, against plain loops in double precision: each kernel of
// the CPU executor with every dtype, group, kind of visibility, and tokens that are no whole tile.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "gpu_tier/testing/attention_case.h"
#include "kernels/attention_cpu.h"

namespace turnkeep::testing {
namespace {

constexpr double kTolerance = 3e-5;

enum class Sees { kAll, kUpToALimit, kWhatAMaskSays };

struct UnitCase {
  uint32_t queries = 1;
  uint32_t group = 1;
  uint32_t head_dim = 8;
  uint32_t tokens = 1;
  DType dtype = DType::kFloat32;
  Sees sees = Sees::kAll;

  std::string Name() const {
    return std::to_string(queries) + " queries of " + std::to_string(group) + " heads, head_dim " +
           std::to_string(head_dim) + ", " + std::to_string(tokens) + " tokens, " +
           std::string(NameOf(dtype)) + ", sees " + std::to_string(static_cast<int>(sees));
  }
};

// One unit for all queries. Limits and masks leave the second query nothing.
AttentionPlan PlanOf(const UnitCase& unit, uint32_t page_tokens, std::mt19937_64& random) {
  AttentionPlan plan;
  plan.row_count = unit.queries;
  plan.segments = {{.first_page = 0, .offset = 2, .token_count = unit.tokens}};
  for (uint32_t p = 0; p <= (unit.tokens + 2) / page_tokens; ++p) plan.pages.push_back(p);
  plan.units = {{.segment_count = 1, .token_count = unit.tokens, .query_count = unit.queries}};
  for (uint32_t q = 0; q < unit.queries; ++q) {
    plan.queries.push_back(unit.queries - 1 - q);
    const auto some = static_cast<uint32_t>(random() % (unit.tokens + 1));
    plan.limits.push_back(unit.sees != Sees::kUpToALimit ? unit.tokens : q == 1 ? 0 : some);
    plan.partials.push_back(AttentionPlan::kDirect);
    if (unit.sees != Sees::kWhatAMaskSays) continue;
    plan.units[0].first_mask = 0;
    for (uint32_t t = 0; t < unit.tokens; t += 64)
      plan.masks.push_back(
          q == 1 ? 0 : random() & (~uint64_t{0} >> (64 - std::min(64u, unit.tokens - t))));
  }
  plan.merge_begin.assign(unit.queries + 1, 0);
  return plan;
}

std::vector<std::vector<KvToken>> Visible(const AttentionPlan& plan, uint32_t page_tokens) {
  const AttentionPlan::Unit& unit = plan.units[0];
  std::vector<std::vector<KvToken>> visible(plan.row_count);
  for (uint32_t q = 0; q < unit.query_count; ++q) {
    for (uint32_t t = 0; t < plan.limits[q]; ++t) {
      const uint64_t words = AttentionPlan::MaskWords(unit.token_count);
      if (!plan.masks.empty() && (plan.masks[q * words + t / 64] >> (t % 64) & 1) == 0) continue;
      const uint32_t at = plan.segments[0].offset + t;
      visible[plan.queries[q]].push_back({plan.pages[at / page_tokens], at % page_tokens});
    }
  }
  return visible;
}

void ExpectNear(const std::vector<double>& should, const float* is, const char* what) {
  for (size_t i = 0; i < should.size(); ++i) {
    if (static_cast<double>(is[i]) == should[i]) continue;  // infinities
    ASSERT_NEAR(is[i], should[i], kTolerance * (1 + std::abs(should[i]))) << what << ' ' << i;
  }
}

class AttentionUnits : public ::testing::TestWithParam<uint32_t> {
 protected:
  // Runs the unit, and gives its weights to the keys as if they were another layer's values.
  void Check(const UnitCase& unit) {
    constexpr uint32_t kPageTokens = 5;
    SCOPED_TRACE(unit.Name());
    std::mt19937_64 random(unit.tokens * 1000 + unit.queries);
    const AttentionShape shape{.query_heads = 2 * unit.group,
                               .kv_heads = 2,
                               .head_dim = unit.head_dim,
                               .page_tokens = kPageTokens,
                               .dtype = unit.dtype,
                               .scale = 1.0f / std::sqrt(static_cast<float>(unit.head_dim))};
    const AttentionPlan plan = PlanOf(unit, kPageTokens, random);
    ForestMaker maker(kPageTokens);
    maker.Sequence(maker.Node(kNoForestNode, unit.tokens + unit.queries + 2), unit.queries);
    AttentionCase c(shape, maker.forest(), maker.page_count(), 1);
    const absl::Status valid = ValidateAttentionPlan(plan, shape, c.page_count());
    ASSERT_TRUE(valid.ok()) << valid;
    AttentionTensors tensors = c.Tensors();
    AttentionScores scores;
    attention_.Run(shape, c.kv(), plan, tensors, &scores);
    std::vector<double> output(c.output().size()), lse(c.lse().size()), unused(lse.size());
    const auto visible = Visible(plan, kPageTokens);
    ReferenceAttention(shape, c.kv(), tensors.queries, visible, output.data(), lse.data());
    ExpectNear(output, c.output().data(), "output");
    ExpectNear(lse, c.lse().data(), "lse");
    PagedKv next = c.kv();
    next.values = next.keys;
    std::vector<float> applied(output.size(), NAN);
    tensors.output = applied.data();
    attention_.ApplyWeights(shape, next, plan, scores, tensors);
    ReferenceAttention(shape, next, tensors.queries, visible, output.data(), unused.data());
    ExpectNear(output, applied.data(), "applied");
  }

  ThreadPool pool_{1};
  CpuAttention attention_{&pool_};
};

TEST_P(AttentionUnits, EqualTheOracle) {
  for (const uint32_t group : {1u, 2u, 4u, 5u, 7u, 8u}) {
    if (GetParam() % group != 0) continue;
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const Sees sees : {Sees::kAll, Sees::kUpToALimit, Sees::kWhatAMaskSays}) {
        for (const uint32_t tokens : {1u, 2u, 47u, 49u, 100u}) {
          if (GetParam() > 9 && tokens < 49) continue;  // the oracle takes its time
          // Of 24, a vector of eight is left beside those taken by twos.
          for (const uint32_t head_dim : {8u, 24u, 128u}) {
            Check({GetParam() / group, group, head_dim, tokens, dtype, sees});
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, AttentionUnits,
                         ::testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 40),
                         [](const auto& info) { return std::to_string(info.param); });

}  // namespace
}  // namespace turnkeep::testing
