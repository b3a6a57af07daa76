#include "attention_bench.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "attention_bench_case.h"
#include "bench_support.h"
#include "core/check.h"
#include "core/status.h"
#include "gpu_tier/attention_costs.h"
#include "kernels/attention_cpu.h"

namespace turnkeep::bench {

namespace {

using turnkeep::testing::AttentionCase;

// Four times the caches of the machines at hand.
constexpr uint64_t kRotatedBytes = uint64_t{128} << 20;
constexpr double kBudgetUs = 100'000;
// The ceilings are measured anew, for 10 ms, when calls have taken so long since.
constexpr double kSampledUs = 10'000;
constexpr double kSecondLookUs = 1'000'000;

struct Contender {
  std::unique_ptr<AttentionPlanner> planner;
  std::vector<double> us;
  std::vector<size_t> sample;  // of the ceilings, the last one before the call
  std::vector<double> planning_us;
  std::vector<double> replan_us;
  std::vector<double> step_us;
  double error = 0;
};

// Memory on pages of 2 MiB where the system gives them, as an engine's KV pool is: a KV head's page
// of 16 tokens is 4 KiB, so that every one would be another entry of the TLB.
class HugeMemory {
 public:
  explicit HugeMemory(uint64_t bytes)
      : data_(static_cast<std::byte*>(
            std::aligned_alloc(kPage, (bytes + kPage - 1) & ~(kPage - 1)))) {
    TK_CHECK(data_ != nullptr);
    madvise(data_.get(), bytes, MADV_HUGEPAGE);
    std::memset(data_.get(), 1, bytes);
  }
  std::byte* data() { return data_.get(); }

 private:
  static constexpr uint64_t kPage = uint64_t{2} << 20;
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
};

// Copies of a case's KV, one after another.
class RotatedKv {
 public:
  RotatedKv(const AttentionCase& c, uint64_t pool_bytes)
      : kv_(c.kv()),
        pool_bytes_(pool_bytes),
        count_(std::max<uint64_t>(2, kRotatedBytes / std::max<uint64_t>(2 * pool_bytes, 1))),
        memory_(2 * pool_bytes * count_) {
    for (uint64_t i = 0; i < count_; ++i) {
      std::copy_n(kv_.keys, pool_bytes, memory_.data() + 2 * i * pool_bytes);
      std::copy_n(kv_.values, pool_bytes, memory_.data() + (2 * i + 1) * pool_bytes);
    }
  }
  PagedKv Next() {
    next_ = (next_ + 1) % count_;
    PagedKv kv = kv_;
    kv.keys = memory_.data() + 2 * next_ * pool_bytes_;
    kv.values = kv.keys + pool_bytes_;
    return kv;
  }

 private:
  const PagedKv kv_;
  const uint64_t pool_bytes_;
  const uint64_t count_;
  uint64_t next_ = 0;
  HugeMemory memory_;
};

// The machine's rates beside a shape's rounds. Other tenants of a shared machine change them
// twofold within seconds, so that a call has the samples just before and just after it.
class Ceilings {
 public:
  explicit Ceilings(ThreadPool& pool) : pool_(pool), memory_(kRotatedBytes) {}
  void Begin() {
    read_bytes_per_s_.clear();
    operations_per_s_.clear();
  }
  // Its number.
  size_t Sample() {
    const std::span<const uint64_t> words(reinterpret_cast<const uint64_t*>(memory_.data()),
                                          kRotatedBytes / sizeof(uint64_t));
    read_bytes_per_s_.push_back(ReadBytesPerS(pool_, words));
    operations_per_s_.push_back(MultiplyAddOpsPerS(pool_));
    return read_bytes_per_s_.size() - 1;
  }
  double read_bytes_per_s() const { return Median(read_bytes_per_s_); }
  double operations_per_s() const { return Median(operations_per_s_); }
  // Of a call between a sample and the next one.
  double FloorUs(size_t sample, uint64_t bytes, double operations) const {
    const auto between = [sample](const std::vector<double>& rates) {
      return (rates[sample] + rates[std::min(sample + 1, rates.size() - 1)]) / 2;
    };
    return 1e6 * std::max(static_cast<double>(bytes) / between(read_bytes_per_s_),
                          operations / between(operations_per_s_));
  }

 private:
  ThreadPool& pool_;
  HugeMemory memory_;
  std::vector<double> read_bytes_per_s_;
  std::vector<double> operations_per_s_;
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
  double Time(Contender& contender, size_t sample) const {
    contender.sample.push_back(sample);
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

struct FloorShare {
  double floor_us = 0;
  RatioInterval share;
  double most = 0;  // the speed-up over this contender, planning included, of one on the floor
};
FloorShare ShareOfFloor(const Contender& contender, const Ceilings& ceilings, uint64_t bytes,
                        double operations) {
  std::vector<double> floors, shares, most;
  for (size_t i = 0; i < contender.us.size(); ++i) {
    floors.push_back(ceilings.FloorUs(contender.sample[i], bytes, operations));
    shares.push_back(floors.back() / contender.us[i]);
    most.push_back((contender.us[i] + contender.planning_us[i]) / floors.back());
  }
  return {Median(std::move(floors)), IntervalOf(std::move(shares)), Median(std::move(most))};
}

// Ratios within a round, which other work on the machine disturbs alike.
RatioInterval SpeedupOver(const Contender& yardstick, const Contender& contender) {
  std::vector<double> ratios;
  for (size_t i = 0; i < contender.us.size(); ++i) {
    ratios.push_back((yardstick.us[i] + yardstick.planning_us[i]) /
                     (contender.us[i] + contender.planning_us[i]));
  }
  return IntervalOf(std::move(ratios));
}

void TakeRounds(const AttentionBenchOptions& options, const Round& round,
                std::vector<Contender>& contenders, Ceilings& ceilings) {
  double spent_us = 0;
  double sampled_us = -kBudgetUs;
  size_t last = 0;
  const auto sample = [&] {
    if (spent_us - sampled_us < kSampledUs) return last;
    sampled_us = spent_us;
    return last = ceilings.Sample();
  };
  for (uint32_t r = 0; r < options.rounds || (r < options.most_rounds && spent_us < kBudgetUs);
       ++r) {
    for (size_t i = 0; i < contenders.size(); ++i)
      spent_us += round.Time(contenders[(r + i) % contenders.size()], sample());
  }
  for (Contender& contender : contenders) {
    if (contender.planner->name() != "auto") continue;
    Contender& yardstick = contenders[0];
    spent_us = sampled_us = 0;
    for (uint32_t r = 0; r < options.second_look_rounds && spent_us < kSecondLookUs; ++r) {
      if (r % 8 == 0) {
        const RatioInterval now = SpeedupOver(yardstick, contender);
        const bool early = r < options.second_look_rounds / 4 && spent_us < kSecondLookUs / 4;
        if (now.low >= options.limit || (now.high < options.limit && !early)) break;
      }
      // Whoever comes first finds the caches as the other left them.
      const size_t at = sample();
      spent_us += round.Time(r % 2 == 0 ? yardstick : contender, at);
      spent_us += round.Time(r % 2 == 0 ? contender : yardstick, at);
    }
  }
  ceilings.Sample();
}

absl::StatusOr<std::vector<AttentionRow>> MeasureShape(const AttentionBenchOptions& options,
                                                       const AttentionCaseSpec& spec,
                                                       Ceilings& ceilings, ThreadPool& pool) {
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
  ceilings.Begin();
  TakeRounds(options, round, contenders, ceilings);
  for (Contender& contender : contenders) MeasureChanges(c.forest(), contender);
  const uint64_t bytes = c.forest().UniqueTokens() * token_bytes * 2;
  const double operations = AttentionOperations(c.forest(), shape);
  const double most = ShareOfFloor(contenders[0], ceilings, bytes, operations).most;
  std::vector<AttentionRow> rows;
  for (size_t i = 0; i < names.size(); ++i) {
    if (std::find(options.planners.begin(), options.planners.end(), names[i]) ==
        options.planners.end())
      continue;
    const Contender& contender = contenders[i];
    const RatioInterval speedup = SpeedupOver(contenders[0], contender);
    const FloorShare floor = ShareOfFloor(contender, ceilings, bytes, operations);
    rows.push_back({.shape = spec.shape,
                    .planner = names[i],
                    .us = Median(contender.us),
                    .planning_us = Median(contender.planning_us),
                    .replan_us = Median(contender.replan_us),
                    .step_us = Median(contender.step_us),
                    .speedup = speedup.median,
                    .speedup_low = speedup.low,
                    .speedup_high = speedup.high,
                    .rounds = static_cast<uint32_t>(contender.us.size()),
                    .bytes_unique = bytes,
                    .floor_us = floor.floor_us,
                    .share = floor.share.median,
                    .share_low = floor.share.low,
                    .share_high = floor.share.high,
                    .error = contender.error,
                    .traffic_bound = spec.traffic_bound,
                    .machine_bound = most});
  }
  return rows;
}

}  // namespace

RatioInterval IntervalOf(std::vector<double> ratios) {
  if (ratios.empty()) return {};
  std::sort(ratios.begin(), ratios.end());
  // How many of n lie below the median is binomial: n / 2 give or take 1.96 times half its root.
  const auto n = static_cast<double>(ratios.size());
  const double half = 0.98 * std::sqrt(n);
  const auto at = [&](double rank) {
    return ratios[static_cast<size_t>(std::clamp(rank, 0.0, n - 1))];
  };
  return {Median(ratios), at(std::floor(n / 2 - half)), at(std::ceil(n / 2 + half))};
}

AutoVerdict JudgeAuto(const std::vector<AttentionRow>& rows, double limit) {
  AutoVerdict verdict;
  for (const AttentionRow& row : rows) {
    if (row.planner != "auto") continue;
    ++verdict.shapes;
    verdict.slower += row.speedup_high < limit ? 1 : 0;
    verdict.undecided += row.speedup_low < limit && row.speedup_high >= limit ? 1 : 0;
  }
  return verdict;
}

absl::StatusOr<AttentionBenchResult> MeasureAttention(const AttentionBenchOptions& options,
                                                      const std::vector<AttentionCaseSpec>& cases) {
  ThreadPool pool(options.threads);
  Ceilings ceilings(pool);
  AttentionBenchResult result;
  result.target = CpuAttention::Target();
  std::vector<double> read, operations;
  for (size_t i = 0; i < cases.size(); ++i) {
    options.progress("shapes", i, cases.size());
    TK_ASSIGN_OR_RETURN(const std::vector<AttentionRow> rows,
                        MeasureShape(options, cases[i], ceilings, pool));
    read.push_back(ceilings.read_bytes_per_s());
    operations.push_back(ceilings.operations_per_s());
    result.rows.insert(result.rows.end(), rows.begin(), rows.end());
  }
  result.read_bytes_per_s = Median(read);
  result.operations_per_s = Median(operations);
  options.progress("shapes", cases.size(), cases.size());
  return result;
}

}  // namespace turnkeep::bench
