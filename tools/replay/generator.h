// Conversations with ShareGPT's published statistics (CachedAttention, arXiv 2403.19708,
// sections 2.3 and 4.1): mean 5.75 turns a session, 73% of the sessions with more than one,
// 47% longer than 2K tokens and 30% longer than 4K; sessions arrive as a Poisson process.
//
// Turns: one with probability 0.27, else two or more, geometric. Tokens of a turn (prompt
// and answer): lognormal, sigma 1.0, times a lognormal factor of the session, sigma 0.9,
// around a median of 346: fitted to the two length figures. 32% of a turn is the prompt, as
// in the means of 161 and 338 tokens that are published for the data set's first turns
// (PagedAttention, arXiv 2309.06180, section 6.1). The paper does not state the think time;
// it is an option here.
//
// Every session is one block (Trace::whole_sessions). A context that would outgrow the
// window loses its oldest tokens down to half the window (ratio 0.5, section 4.3.4); what
// is left of its KV stays valid with decoupled positions; without, the session goes on as a
// new block and the invalid one stays until it is evicted.
//
// Thread-safe; deterministic: all drawn from the seed with this file's own distributions.
#pragma once

#include <cstdint>
#include <string>

#include "trace.h"

namespace turnkeep::replay {

struct ThinkTime {
  enum class Kind : uint8_t { kExponential, kFixed, kLognormal };
  Kind kind = Kind::kExponential;
  double mean_s = 60;  // kLognormal: the median
  double sigma = 0;    // kLognormal: of the logarithm
};

struct GeneratorOptions {
  uint32_t sessions = 9000;
  double sessions_per_s = 1.0;
  ThinkTime think;
  uint32_t window_tokens = 4096;
  bool keep_on_overflow = true;
  uint64_t seed = 1;
};

Trace GenerateConversations(const GeneratorOptions& options);

}  // namespace turnkeep::replay
