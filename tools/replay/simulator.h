// Replays a trace on a virtual clock: the cache decides what is restored, the serving model
// says when and how long.
//
// Serving model. `queue = none`: every request is served when it arrives, alone. `queue =
// gpu`: one server with continuous batching: requests wait in order of arrival; the first
// is prefilled as soon as one of `batch` places is free, one prefill after another, and
// decoding of the others pauses meanwhile (CachedAttention, arXiv 2403.19708, section 4.1).
// A restore is loaded layer by layer beside the computation: prefill of the new tokens and
// load overlap but for one layer (section 3.2.1). What would take longer than prefilling
// everything is cut short or declined. Under either rule a prefill is a pass of its own over
// the weights, so that it never takes less than reading them (Model::prefill_floor).
//
// With a read buffer (section 3.2.1), the link loads the next waiting job's KV while the server is
// busy with those before it: as soon as it has loaded these, and as much as the buffer holds.
//
// A turn of which the source recorded how long it was served ends after that time, and who learns
// from turns is told then how it ended; else both are told when it begins. With
// cache.prefetch_bytes, placement prefetches what its policy predicts or was told to expect.
//
// TTFT is what serving takes from its start to the first token; waiting is given apart.
// "Without" is the same request with its whole prompt prefilled.
//
// Not thread-safe; deterministic: the same trace and options give the same result.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <absl/status/statusor.h>

#include "cache.h"
#include "metrics.h"
#include "model_presets.h"
#include "trace.h"

namespace turnkeep::replay {

enum class QueueRule : uint8_t { kNone, kGpu };

// A store that serves the requests in place of the virtual tiers (real_store.h).
class RequestStore {
 public:
  virtual ~RequestStore() = default;
  virtual absl::StatusOr<Found> Restore(uint32_t request) = 0;
  virtual absl::Status Save(uint32_t request) = 0;
};

struct SimulatorOptions {
  CacheOptions cache;
  RequestStore* store = nullptr;  // not owned; then `cache` is not used
  Model model;
  uint64_t block_bytes = 0;        // of a slot; ignored with Trace::whole_sessions
  bool reserve_window = false;     // Trace::whole_sessions: a session has room for its window
  double host_bytes_per_s = 26e9;  // host -> GPU; CachedAttention's PCIe Gen4 x16
  double disk_bytes_per_s = 5e9;
  QueueRule queue = QueueRule::kNone;
  uint32_t batch = 24;
  uint64_t read_buffer_bytes = 0;  // of GPU memory, for one job that waits
  uint64_t lookahead = 0;          // requests of the future that the policy is told
  uint64_t warmup = 0;             // requests that are served but not counted
  bool decline = true;
  bool stop_reasons = true;  // told to the policy, when the turn ends
  std::function<void(uint64_t done, uint64_t total)> progress;
};

absl::StatusOr<Metrics> Simulate(const Trace& trace, const SimulatorOptions& options);

}  // namespace turnkeep::replay
