#include "attention_bench.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "attention_bench_case.h"
#include "bench_support.h"
#include "core/status.h"
#include "gpu_tier/attention_costs.h"
#include "kernels/attention_cpu.h"

namespace turnkeep::bench {

namespace {

using turnkeep::testing::AttentionCase;

// Four times the caches of the machines at hand.
constexpr uint64_t kRotatedBytes = uint64_t{128} << 20;
constexpr double kBudgetUs = 100'000;

struct Contender {
  std::unique_ptr<AttentionPlanner> planner;
  std::vector<double> us;
  std::vector<double> planning_us;
  std::vector<double> replan_us;
  std::vector<double> step_us;
  double error = 0;
};

// Copies of a case's KV, one after another.
class RotatedKv {
 public:
  RotatedKv(const AttentionCase& c, uint64_t pool_bytes) : kv_(c.kv()), pool_bytes_(pool_bytes) {
    count_ = std::max<uint64_t>(2, kRotatedBytes / std::max<uint64_t>(2 * pool_bytes, 1));
    bytes_.resize(2 * pool_bytes * count_);
    for (uint64_t i = 0; i < count_; ++i) {
      std::copy_n(kv_.keys, pool_bytes, &bytes_[2 * i * pool_bytes]);
      std::copy_n(kv_.values, pool_bytes, &bytes_[(2 * i + 1) * pool_bytes]);
    }
  }
  PagedKv Next() {
    next_ = (next_ + 1) % count_;
    PagedKv kv = kv_;
    kv.keys = &bytes_[2 * next_ * pool_bytes_];
    kv.values = kv.keys + pool_bytes_;
    return kv;
  }

 private:
  const PagedKv kv_;
  const uint64_t pool_bytes_;
  uint64_t count_ = 0;
  uint64_t next_ = 0;
  std::vector<std::byte> bytes_;
};

// What a planner does when one sequence leaves and joins again, and when all take a decode step.
void MeasureChanges(const PrefixForest& batch, Contender& contender) {
  constexpr int kTimes = 32;
  PrefixForest forest = batch;
  AttentionPlanner& planner = *contender.planner;
  const auto plan_us = [&] {
    const Stopwatch watch;
    planner.Plan(forest);
    return watch.Micros();
  };
  planner.Forget();
  planner.Plan(forest);
  for (int i = 0; i < kTimes; ++i) {
    // A sequence in the middle, whose rows' successors are renumbered.
    const auto s = static_cast<ForestSequence>(forest.sequences().size() / 2);
    const PrefixForest::Sequence sequence = forest.sequences()[s];
    const PrefixForest::Node leaf = forest.nodes()[sequence.leaf];
    if (leaf.parent == kNoForestNode || !leaf.children.empty() || leaf.sequences.size() != 1) break;
    forest.RemoveSequence(s);
    if (!forest.nodes()[leaf.parent].in_use) break;
    contender.replan_us.push_back(plan_us());
    const auto again = forest.AddNode(leaf.parent, leaf.pages, leaf.token_count);
    if (!again.ok() || !forest.AddSequence(*again, sequence.query_tokens).ok()) break;
    contender.replan_us.push_back(plan_us());
  }
  for (int i = 0; i < kTimes; ++i) {
    for (const PrefixForest::Sequence& sequence : forest.sequences()) {
      const std::vector<uint32_t> page = {0};
      if (sequence.query_tokens == 0 || !forest.nodes()[sequence.leaf].children.empty()) continue;
      const bool full = forest.nodes()[sequence.leaf].token_count % forest.page_tokens() == 0;
      if (!forest.Extend(sequence.leaf, 1, std::span(page).first(full ? 1 : 0)).ok()) return;
    }
    contender.step_us.push_back(plan_us());
  }
}

// One call of each; false if a plan is not valid.
struct Round {
  const AttentionBenchOptions& options;
  AttentionCase& c;
  RotatedKv& kv;
  const AttentionTensors tensors;
  CpuAttention& attention;

  absl::Status Check(Contender& contender) const {
    const AttentionPlan& plan = contender.planner->Plan(c.forest());
    TK_RETURN_IF_ERROR(ValidateAttentionPlan(plan, c.shape(), c.page_count()));
    attention.Run(c.shape(), kv.Next(), plan, tensors);
    std::string where;
    contender.error = c.WorstError(&where, options.checked_rows);
    return absl::OkStatus();
  }
  double Time(Contender& contender) const {
    contender.planner->Forget();
    const PagedKv from = kv.Next();
    const Stopwatch planning;
    const AttentionPlan& plan = contender.planner->Plan(c.forest());
    contender.planning_us.push_back(planning.Micros());
    const Stopwatch watch;
    attention.Run(c.shape(), from, plan, tensors);
    contender.us.push_back(watch.Micros());
    return contender.planning_us.back() + contender.us.back();
  }
};

// Ratios within a round, which other work on the machine disturbs alike.
double SpeedupOver(const Contender& yardstick, const Contender& contender) {
  std::vector<double> ratios;
  for (size_t i = 0; i < contender.us.size(); ++i) {
    ratios.push_back((yardstick.us[i] + yardstick.planning_us[i]) /
                     (contender.us[i] + contender.planning_us[i]));
  }
  return Median(ratios);
}

absl::StatusOr<std::vector<AttentionRow>> MeasureShape(const AttentionBenchOptions& options,
                                                       const AttentionCaseSpec& spec,
                                                       const AttentionBenchResult& ceilings,
                                                       ThreadPool& pool) {
  const AttentionShape shape{.query_heads = spec.query_heads,
                             .kv_heads = spec.kv_heads,
                             .head_dim = spec.head_dim,
                             .page_tokens = options.page_tokens,
                             .dtype = spec.dtype,
                             .scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim))};
  AttentionCase c = MakeAttentionCase(shape, spec, options.seed);
  const uint64_t token_bytes = uint64_t{shape.kv_heads} * shape.head_dim * DTypeBytes(shape.dtype);
  RotatedKv kv(c, uint64_t{c.page_count()} * shape.page_tokens * token_bytes);
  const AttentionPlannerOptions planner_options{.shape = shape,
                                                .target_tasks = 8 * pool.thread_count(),
                                                .costs = MeasureCpuCosts(shape, pool)};
  CpuAttention attention(&pool);
  std::vector<std::string> names = options.planners;
  std::erase(names, "per_sequence");
  names.insert(names.begin(), "per_sequence");
  std::vector<Contender> contenders(names.size());
  const Round round{options, c, kv, c.Tensors(), attention};
  for (size_t i = 0; i < names.size(); ++i) {
    TK_ASSIGN_OR_RETURN(contenders[i].planner, MakeAttentionPlanner(names[i], planner_options));
    TK_RETURN_IF_ERROR(round.Check(contenders[i]));
  }
  double spent_us = 0;
  for (uint32_t r = 0; r < options.rounds || (r < options.most_rounds && spent_us < kBudgetUs); ++r)
    for (size_t i = 0; i < contenders.size(); ++i)
      spent_us += round.Time(contenders[(r + i) % contenders.size()]);
  for (Contender& contender : contenders) MeasureChanges(c.forest(), contender);
  const uint64_t bytes = c.forest().UniqueTokens() * token_bytes * 2;
  const double floor_us =
      1e6 * std::max(static_cast<double>(bytes) / ceilings.read_bytes_per_s,
                     AttentionOperations(c.forest(), shape) / ceilings.operations_per_s);
  std::vector<AttentionRow> rows;
  for (size_t i = 0; i < names.size(); ++i) {
    if (std::find(options.planners.begin(), options.planners.end(), names[i]) ==
        options.planners.end())
      continue;
    const Contender& contender = contenders[i];
    rows.push_back({.shape = spec.shape,
                    .planner = names[i],
                    .us = Median(contender.us),
                    .planning_us = Median(contender.planning_us),
                    .replan_us = Median(contender.replan_us),
                    .step_us = Median(contender.step_us),
                    .speedup = SpeedupOver(contenders[0], contender),
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
