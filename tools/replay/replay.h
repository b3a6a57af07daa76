// One replay from options to result: reads the trace, sets the tiers up, simulates, and
// gives the optimum at the same capacities.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>

#include <absl/status/statusor.h>

#include "metrics.h"
#include "options.h"
#include "real_store.h"
#include "trace.h"

namespace turnkeep::replay {

// $ of the whole replay.
struct Cost {
  double gpu_with = 0;
  double dram = 0;
  double disk = 0;
  double gpu_without = 0;
  double with() const { return gpu_with + dram + disk; }
};

struct Result {
  Options options;
  Metrics metrics;
  uint64_t distinct_blocks = 0;
  uint64_t references = 0;
  uint64_t bad_lines = 0;
  uint64_t chunk_tokens = 0;
  uint64_t host_bytes = 0;
  uint64_t disk_bytes = 0;
  uint64_t block_bytes = 0;
  bool has_optimum = false;
  uint64_t optimal_hit_blocks = 0;
  Cost cost;
  double wall_s = 0;  // of the simulation alone
};

// A run against a daemon, and the virtual run with the daemon's capacities, policy and slots.
struct RealResult {
  Result real;
  Result expected;
  RealCounts counts;
};

absl::StatusOr<Trace> LoadTrace(const Options& options);
// `trace` is what LoadTrace gave for the same options.
absl::StatusOr<Result> Replay(const Trace& trace, const Options& options,
                              const std::function<void(uint64_t done, uint64_t total)>& progress);
// Serves the trace from `store`, one request after another. Tiers and policy are the store's, so
// that the options' are not used; watermarks are not told by it and must be given. What it saved
// is dropped again, also after an error.
absl::StatusOr<RealResult> ReplayReal(
    const Trace& trace, const Options& options, KvStore* store,
    const std::function<void(uint64_t done, uint64_t total)>& progress);

}  // namespace turnkeep::replay
