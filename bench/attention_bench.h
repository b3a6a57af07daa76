// What `turnkeep bench attention` measures: planners of src/gpu_tier on sets of shapes, each row
// with its floor from ceilings measured in the same run, and its error against the oracle.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "gpu_tier/attention_planner.h"

namespace turnkeep::bench {

struct AttentionNode {
  int parent = -1;  // an earlier node
  uint32_t tokens = 0;
  uint32_t sequences = 0;     // that end here
  uint32_t query_tokens = 1;  // of each of them
};
struct AttentionCaseSpec {
  std::string shape;  // its name
  uint32_t query_heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 128;
  DType dtype = DType::kFloat16;
  std::vector<AttentionNode> nodes;
  double traffic_bound = 0;  // relay set: b(s+c) / (s+bc)
};

// "chunkattention", "relay", "pat", "deft", "random". Sized for the CPU unless `full`: what differs
// from the papers' is in `note`.
struct AttentionShapeSet {
  std::vector<AttentionCaseSpec> cases;
  std::string note;
};
struct AttentionShapeOptions {
  std::string set;
  std::string trees;   // a folder with deft_*.json.gz, used where it has them
  std::string filter;  // only shapes whose names contain it
  uint64_t seed = 1;
  bool full = false;  // heads and trees of the papers
};
absl::StatusOr<AttentionShapeSet> MakeAttentionShapes(const AttentionShapeOptions& options);
std::vector<std::string> AttentionShapeSetNames();

struct AttentionRow {
  std::string shape;
  std::string planner;
  double us = 0;           // median of an executor call
  double planning_us = 0;  // median of planning from nothing
  double replan_us = 0;    // median of planning after a sequence left, and after it joined again
  double step_us = 0;      // median of following a decode step; 0: not measured
  double speedup = 0;      // over per_sequence in the same round, planning from nothing included
  double speedup_low = 0;  // the median's 95% interval, and how many rounds it is of
  double speedup_high = 0;
  uint32_t rounds = 0;
  uint64_t bytes_unique = 0;
  double floor_us = 0;  // median
  // Of the floor, floor ÷ call, by the rates that were measured just before and after the call;
  // median and its 95% interval.
  double share = 0;
  double share_low = 0;
  double share_high = 0;
  double error = 0;  // worst relative error against the oracle on the rows checked
  double traffic_bound = 0;
  // The speed-up of a plan that reached the floor: what the machine allows over the per_sequence of
  // the same rounds. 0: not measured.
  double machine_bound = 0;
};
struct AttentionBenchOptions {
  std::vector<std::string> planners;
  uint32_t page_tokens = 16;
  uint32_t threads = 2;
  uint32_t rounds = 7;
  uint32_t most_rounds = 105;  // while a shape's calls take less than 100 ms
  // The second look: per_sequence and auto alone take so many rounds more, while their calls take
  // less than a second, as long as the interval of auto's speed-up reaches below `limit` and above
  // it, or lies below: a quarter of them at least, so that a passing disturbance does not decide.
  uint32_t second_look_rounds = 1500;
  double limit = 0.98;
  uint32_t checked_rows = 2;  // of each shape, against the oracle
  uint64_t seed = 1;
  std::function<void(const std::string& what, uint64_t done, uint64_t total)> progress =
      [](const std::string&, uint64_t, uint64_t) {};
};
struct AttentionBenchResult {
  std::string device = "cpu";
  std::string target;    // instruction set, or the CUDA device
  std::string left_out;  // which of the shapes were not measured, and why; empty: none
  // Medians over the shapes of the medians among a shape's own rounds.
  double read_bytes_per_s = 0;
  double operations_per_s = 0;
  std::vector<AttentionRow> rows;
};
// Median of ratios and the 95% interval of that median, by order statistics; all 0 for none.
struct RatioInterval {
  double median = 0;
  double low = 0;
  double high = 0;
};
RatioInterval IntervalOf(std::vector<double> ratios);

// Of the rows of auto: how many are slower than `limit` times per_sequence for certain (the whole
// interval is below), and how many may be.
struct AutoVerdict {
  uint32_t shapes = 0;
  uint32_t slower = 0;
  uint32_t undecided = 0;
};
AutoVerdict JudgeAuto(const std::vector<AttentionRow>& rows, double limit);

// per_sequence runs always, as the yardstick, and is reported if asked for. Every call of a round
// takes the next of several copies of the KV, 128 MiB or more of them together: an engine's other
// layers have passed through the caches between two calls of one layer.
absl::StatusOr<AttentionBenchResult> MeasureAttention(const AttentionBenchOptions& options,
                                                      const std::vector<AttentionCaseSpec>& cases);

}  // namespace turnkeep::bench
