#include "gpu_tier/read_buffer.h"

#include <algorithm>

#include "core/check.h"

namespace turnkeep {

uint64_t ReadBufferBytes(const ReadBufferInput& input) {
  const double longer_s = input.load_s_per_token * static_cast<double>(input.history_tokens) -
                          input.prefill_s_per_token * static_cast<double>(input.new_tokens);
  const double bytes = input.link_bytes_per_s * longer_s;
  if (!(bytes > 0)) return 0;  // also for what is no number
  if (bytes >= static_cast<double>(input.budget_bytes)) return input.budget_bytes;
  return static_cast<uint64_t>(bytes);
}

double PredictStallSeconds(const StallInput& input) {
  TK_CHECK(input.layer_bytes.size() == input.layer_compute_s.size());
  double stall_s = 0;
  double compute_end_s = 0;
  double loaded_s = 0;
  uint64_t preloaded = input.preloaded_bytes;
  for (size_t layer = 0; layer < input.layer_bytes.size(); ++layer) {
    const uint64_t there = std::min(preloaded, input.layer_bytes[layer]);
    preloaded -= there;
    const uint64_t left = input.layer_bytes[layer] - there;
    if (left > 0) loaded_s += static_cast<double>(left) / input.link_bytes_per_s;
    // A layer that was wholly in the buffer is there from the start.
    if (left > 0 && loaded_s > compute_end_s) {
      stall_s += loaded_s - compute_end_s;
      compute_end_s = loaded_s;
    }
    compute_end_s += input.layer_compute_s[layer];
  }
  return stall_s;
}

}  // namespace turnkeep
