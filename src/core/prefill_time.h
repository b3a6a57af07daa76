// How long an engine prefills.
//
// Thread-safe: pure function.
#pragma once

namespace turnkeep {

// Seconds for the tokens at [from, to) of a context, behind those before. A token at position c
// takes 1 + c ÷ `half_speed_tokens` times as long as the first, which is one of
// `tokens_per_s`; with half_speed_tokens 0 attention costs nothing.
inline double PrefillSeconds(double from, double to, double tokens_per_s,
                             double half_speed_tokens) {
  const double tokens = to - from;
  const double attended =
      half_speed_tokens > 0 ? tokens * (from + to) / (2 * half_speed_tokens) : 0;
  return (tokens + attended) / tokens_per_s;
}

}  // namespace turnkeep
