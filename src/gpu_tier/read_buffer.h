// How large the read buffer of a restore should be, and what stall is left: CachedAttention §3.2.
//
// Pure functions.
#pragma once

#include <cstdint>
#include <span>

namespace turnkeep {

struct ReadBufferInput {
  double link_bytes_per_s = 0;     // B, host to device
  double load_s_per_token = 0;     // T_load
  double prefill_s_per_token = 0;  // T_pref
  uint64_t history_tokens = 0;     // L_hist, restored
  uint64_t new_tokens = 0;         // L_new, computed
  uint64_t budget_bytes = 0;
};
// S_buf = B * (T_load * L_hist - T_pref * L_new): what the link carries in the time by which
// loading is longer than computing. 0 where it is not, never above the budget.
uint64_t ReadBufferBytes(const ReadBufferInput& input);

struct StallInput {
  std::span<const uint64_t> layer_bytes;
  std::span<const double> layer_compute_s;  // as many
  double link_bytes_per_s = 0;
  uint64_t preloaded_bytes = 0;  // in the read buffer when the first layer could start
};
// Seconds that layers wait for their KV when loading goes on without a pause, layer i computes
// after layer i - 1, and nothing else delays either.
double PredictStallSeconds(const StallInput& input);

}  // namespace turnkeep
