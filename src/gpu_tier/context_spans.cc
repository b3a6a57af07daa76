#include "gpu_tier/context_spans.h"

#include <algorithm>
#include <utility>

#include "core/kv_store.h"

namespace turnkeep {

uint64_t TokensOf(const ContextSpans& spans) {
  return spans.empty() ? 0 : spans.back().token_begin + spans.back().token_count;
}

// No token was ever taken out before another one: each lies where it lay when it was computed.
bool IsPlain(const ContextSpans& spans) {
  return std::all_of(spans.begin(), spans.end(), [](const ContextSpan& span) {
    return span.first_in_chunk == 0 && span.stored_position == span.token_begin;
  });
}

ContextSpans SpansOf(const RestoreTicket& ticket) {
  ContextSpans spans;
  for (size_t i = 0; i < ticket.spans().size(); ++i) {
    const RestoredSpan& span = ticket.spans()[i];
    spans.push_back({.token_begin = span.token_begin,
                     .token_count = span.token_count,
                     .first_in_chunk = span.first_in_chunk,
                     .chunk_token_count = span.chunk_token_count,
                     .stored_position = span.stored_position,
                     .chunk = ticket.chunk(i)});
  }
  return spans;
}

ContextSpans LeadingSpans(ContextSpans spans, uint64_t tokens) {
  while (!spans.empty() && spans.back().token_begin >= tokens) spans.pop_back();
  if (!spans.empty()) {
    ContextSpan& last = spans.back();
    last.token_count =
        static_cast<uint32_t>(std::min<uint64_t>(last.token_count, tokens - last.token_begin));
  }
  return spans;
}

ContextSpans SpansOfSave(const ContextSpans& before, uint64_t known,
                         std::span<const ChunkToSave> saved, int64_t position_offset) {
  if (TokensOf(before) < known) return {};
  ContextSpans spans = LeadingSpans(before, known);
  for (const ChunkToSave& chunk : saved) {
    const int64_t position = static_cast<int64_t>(chunk.token_begin) + position_offset;
    spans.push_back({.token_begin = chunk.token_begin,
                     .token_count = chunk.token_count,
                     .chunk_token_count = chunk.token_count,
                     .stored_position = static_cast<uint64_t>(position),
                     .chunk = chunk.chunk});
  }
  return spans;
}

ContextSpans WithoutTokens(const ContextSpans& spans, uint64_t begin, uint64_t end) {
  ContextSpans out = LeadingSpans(spans, begin);
  for (ContextSpan span : spans) {
    const uint64_t span_end = span.token_begin + span.token_count;
    if (span_end <= end) continue;
    const uint32_t cut = static_cast<uint32_t>(end > span.token_begin ? end - span.token_begin : 0);
    span.token_begin += cut;
    span.token_begin -= end - begin;
    span.token_count -= cut;
    span.first_in_chunk += cut;
    span.stored_position += cut;
    out.push_back(span);
  }
  return out;
}

}  // namespace turnkeep
