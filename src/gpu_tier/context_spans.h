// The chunks that a context is made of, as an engine keeps them in mind: what a restore gave and
// what saves added to it. Plain functions over values; thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/ids.h"
#include "core/kv_types.h"

namespace turnkeep {

class RestoreTicket;

// A run of tokens of one chunk; the fields are those of RestoredSpan.
struct ContextSpan {
  uint64_t token_begin = 0;
  uint32_t token_count = 0;
  uint32_t first_in_chunk = 0;
  uint32_t chunk_token_count = 0;
  uint64_t stored_position = 0;
  ChunkId chunk;
};

// In order and without gaps from token 0 on.
using ContextSpans = std::vector<ContextSpan>;

ContextSpans SpansOf(const RestoreTicket& ticket);
uint64_t TokensOf(const ContextSpans& spans);
// Every token lies where it lay when it was computed, so nothing was ever taken out before it: its
// KV is that of just these tokens. A truncation moves what follows it down, and nothing moves it
// up again.
bool IsPlain(const ContextSpans& spans);
// The first `tokens` tokens.
ContextSpans LeadingSpans(ContextSpans spans, uint64_t tokens);
// What a save shows: the first `known` tokens of `before`, then `saved`. Empty where `before` has
// less, for then nobody here knows what lies between.
ContextSpans SpansOfSave(const ContextSpans& before, uint64_t known,
                         std::span<const ChunkToSave> saved, int64_t position_offset);
// Without tokens [begin, end).
ContextSpans WithoutTokens(const ContextSpans& spans, uint64_t begin, uint64_t end);

}  // namespace turnkeep
