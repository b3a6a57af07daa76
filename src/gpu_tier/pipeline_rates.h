// What an engine learns from its restores and passes (how long a token takes to load and to
// compute), and what follows for the next job by CachedAttention §3.2: the read buffer that would
// hide the difference, and the stall that is left without a head start. Both are predictions to be
// reported beside what was measured.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>

#include "gpu_tier/read_buffer.h"

namespace turnkeep {

class PipelineRates {
 public:
  // A restore copied `bytes` of `tokens` tokens in `seconds` (LayerRestoreReport::load_s).
  void Loaded(uint64_t tokens, uint64_t bytes, double seconds);
  // A pass computed `tokens` tokens in `seconds`, its waits left out.
  void Computed(uint64_t tokens, double seconds);

  struct Job {
    uint64_t history_tokens = 0;  // to be loaded
    uint64_t new_tokens = 0;      // to be computed
    uint32_t layers = 0;
    uint64_t budget_bytes = 0;  // of the read buffer
  };
  struct Prediction {
    uint64_t buffer_bytes = 0;  // S_buf
    double stall_s = 0;         // with nothing loaded when the job starts
  };
  // Unset until both a load and a pass were seen.
  std::optional<Prediction> Predict(const Job& job) const;

 private:
  // Halves the weight of what was before: later turns are more like the next one.
  static double Mix(double before, double now) { return before == 0 ? now : (before + now) / 2; }

  double load_s_per_token_ = 0;
  double bytes_per_token_ = 0;
  double prefill_s_per_token_ = 0;
};

}  // namespace turnkeep
