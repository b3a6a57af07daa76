// What an eviction policy costs: memory a chunk, and time a decision.
//
// Not thread-safe; deterministic but for the times.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

namespace turnkeep::bench {

struct PolicyBenchOptions {
  uint64_t chunks = 1'000'000;
  uint64_t decisions = 200'000;
};

struct PolicyRow {
  std::string policy;
  double bytes_per_chunk = 0;  // heap that the policy holds, with all chunks in the tier
  // CPU time from the call to the chunk's leaving, of batches of a hundred.
  double decision_ns = 0;  // mean
  double decision_ns_p50 = 0;
  double decision_ns_p99 = 0;
  // The same through Placement, as the store does it: the event that asks for room, its eviction
  // and the log's entry. The heap is that of placement, both tiers' policies and hints' order.
  double placement_bytes_per_chunk = 0;
  double placement_ns = 0;
  double placement_ns_p50 = 0;
  double placement_ns_p99 = 0;
};

// A tier of `chunks` chunks in use: turns of a hundred chunks each touch old ones, and as many new
// ones come for as many victims. All policies in turn.
absl::StatusOr<std::vector<PolicyRow>> MeasurePolicies(const PolicyBenchOptions& options);

}  // namespace turnkeep::bench
