#include "attention_bench.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "bench_support.h"
#include "core/status.h"
#include "gpu_tier/attention_costs.h"
#include "gpu_tier/testing/attention_case.h"
#include "kernels/attention_cpu.h"

namespace turnkeep::bench {

namespace {

using turnkeep::testing::AttentionCase;
using turnkeep::testing::ForestMaker;

struct Contender {
  std::unique_ptr<AttentionPlanner> planner;
  std::vector<double> us;
  std::vector<double> planning_us;
  double error = 0;
};

AttentionCase MakeCase(const AttentionShape& shape, const AttentionCaseSpec& spec, uint64_t seed) {
  ForestMaker maker(shape.page_tokens);
  std::vector<ForestNode> nodes;
  for (const AttentionNode& node : spec.nodes) {
    nodes.push_back(maker.Node(
        node.parent < 0 ? kNoForestNode : nodes[static_cast<size_t>(node.parent)], node.tokens));
    for (uint32_t i = 0; i < node.sequences; ++i) maker.Sequence(nodes.back());
  }
  return AttentionCase(shape, maker.forest(), maker.page_count(), seed);
}

// Multiply-adds of scores and values, two operations each.
double OperationsOf(const PrefixForest& forest, const AttentionShape& shape) {
  double tokens = 0;
  for (const auto& sequence : forest.sequences())
    if (sequence.query_tokens > 0) tokens += forest.PathTokens(sequence.leaf);
  return 4.0 * tokens * shape.query_heads * shape.head_dim;
}

absl::StatusOr<std::vector<AttentionRow>> MeasureShape(const AttentionBenchOptions& options,
                                                       const AttentionCaseSpec& spec,
                                                       const AttentionBenchResult& ceilings,
                                                       ThreadPool& pool) {
  const AttentionShape shape{.query_heads = spec.query_heads,
                             .kv_heads = spec.kv_heads,
                             .head_dim = spec.head_dim,
                             .page_tokens = options.page_tokens,
                             .dtype = options.dtype,
                             .scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim))};
  AttentionCase c = MakeCase(shape, spec, options.seed);
  const AttentionPlannerOptions planner_options{.shape = shape,
                                                .target_tasks = 8 * pool.thread_count(),
                                                .costs = MeasureCpuCosts(shape, pool)};
  CpuAttention attention(&pool);
  std::vector<std::string> names = options.planners;
  if (std::find(names.begin(), names.end(), "per_sequence") == names.end())
    names.insert(names.begin(), "per_sequence");
  std::vector<Contender> contenders;
  for (const std::string& name : names) {
    contenders.emplace_back();
    TK_ASSIGN_OR_RETURN(contenders.back().planner, MakeAttentionPlanner(name, planner_options));
  }
  const AttentionTensors tensors = c.Tensors();
  for (uint32_t round = 0; round <= options.rounds; ++round) {
    for (Contender& contender : contenders) {
      contender.planner->Forget();
      const Stopwatch planning;
      const AttentionPlan& plan = contender.planner->Plan(c.forest());
      const double planning_us = planning.Micros();
      const Stopwatch watch;
      attention.Run(shape, c.kv(), plan, tensors);
      const double us = watch.Micros();
      if (round == 0) {  // warms up, and is checked
        TK_RETURN_IF_ERROR(ValidateAttentionPlan(plan, shape, c.page_count()));
        std::string where;
        contender.error = c.WorstError(&where, options.checked_rows);
        continue;
      }
      contender.us.push_back(us);
      contender.planning_us.push_back(planning_us);
    }
  }
  const uint64_t bytes =
      c.forest().UniqueTokens() * shape.kv_heads * shape.head_dim * 2 * DTypeBytes(shape.dtype);
  const double floor_us =
      1e6 * std::max(static_cast<double>(bytes) / ceilings.read_bytes_per_s,
                     OperationsOf(c.forest(), shape) / ceilings.operations_per_s);
  std::vector<AttentionRow> rows;
  const auto per_sequence =
      std::find_if(contenders.begin(), contenders.end(),
                   [](const Contender& c) { return c.planner->name() == "per_sequence"; });
  const double yardstick = Median(per_sequence->us) + Median(per_sequence->planning_us);
  for (const Contender& contender : contenders) {
    const std::string name(contender.planner->name());
    if (std::find(options.planners.begin(), options.planners.end(), name) == options.planners.end())
      continue;
    rows.push_back({.shape = spec.shape,
                    .planner = name,
                    .us = Median(contender.us),
                    .planning_us = Median(contender.planning_us),
                    .speedup = yardstick / (Median(contender.us) + Median(contender.planning_us)),
                    .bytes_unique = bytes,
                    .floor_us = floor_us,
                    .error = contender.error,
                    .traffic_bound = spec.traffic_bound});
  }
  return rows;
}

}  // namespace

absl::StatusOr<AttentionBenchResult> MeasureAttention(const AttentionBenchOptions& options,
                                                      const std::vector<AttentionCaseSpec>& cases) {
  ThreadPool pool(options.threads);
  AttentionBenchResult result;
  result.target = CpuAttention::Target();
  result.read_bytes_per_s = MeasureReadBytesPerS(pool);
  result.operations_per_s = MeasureMultiplyAddOpsPerS(pool);
  for (size_t i = 0; i < cases.size(); ++i) {
    options.progress("shapes", i, cases.size());
    TK_ASSIGN_OR_RETURN(const std::vector<AttentionRow> rows,
                        MeasureShape(options, cases[i], result, pool));
    result.rows.insert(result.rows.end(), rows.begin(), rows.end());
  }
  options.progress("shapes", cases.size(), cases.size());
  return result;
}

}  // namespace turnkeep::bench
