#include "gpu_tier/pooled_contexts.h"

#include <algorithm>
#include <utility>

namespace turnkeep {

namespace {

uint64_t CommonTokens(std::span<const uint32_t> a, std::span<const uint32_t> b) {
  return static_cast<uint64_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                               a.begin());
}

// Leading tokens of the first `tokens` that are in the pool.
uint64_t TokensInPool(const PagePool& pool, const ContextSpans& spans, uint64_t tokens) {
  for (const ContextSpan& span : spans) {
    if (span.token_begin >= tokens) break;
    if (!pool.Contains(span.chunk)) return span.token_begin;
  }
  return tokens;
}

}  // namespace

PooledContexts::Entries::iterator PooledContexts::FindSession(const std::string& session) {
  return std::find_if(entries_.begin(), entries_.end(),
                      [&](const Entry& entry) { return entry.context.session == session; });
}

void PooledContexts::Drop(Entries::iterator entry) {
  if (entry == entries_.end()) return;
  tokens_ -= entry->context.tokens.size();
  entries_.erase(entry);
}

void PooledContexts::Forget(const std::string& session) { Drop(FindSession(session)); }

void PooledContexts::Doubt(const std::string& session) {
  const auto entry = FindSession(session);
  if (entry == entries_.end()) return;
  entry->current = false;
  if (!entry->plain) Drop(entry);
}

void PooledContexts::Truncate(const std::string& session, uint64_t generation, uint64_t begin,
                              uint64_t end) {
  const auto entry = FindSession(session);
  if (entry == entries_.end()) return;
  Context context = entry->context;
  const bool known = entry->current && begin <= end && end <= context.tokens.size();
  Drop(entry);
  if (!known) return;
  context.generation = generation;
  context.tokens.erase(context.tokens.begin() + static_cast<ptrdiff_t>(begin),
                       context.tokens.begin() + static_cast<ptrdiff_t>(end));
  context.spans = WithoutTokens(context.spans, begin, end);
  Remember(std::move(context));
}

void PooledContexts::Remember(Context context) {
  Forget(context.session);
  context.tokens.resize(std::min<uint64_t>(context.tokens.size(), TokensOf(context.spans)));
  if (context.tokens.empty() || context.tokens.size() > kMaxTokens) return;
  context.spans = LeadingSpans(std::move(context.spans), context.tokens.size());
  tokens_ += context.tokens.size();
  const bool plain = IsPlain(context.spans);
  entries_.push_front({.context = std::move(context), .plain = plain, .current = true});
  while (entries_.size() > kMaxContexts || tokens_ > kMaxTokens) Drop(std::prev(entries_.end()));
}

std::optional<PooledContexts::Found> PooledContexts::Find(const PagePool& pool,
                                                          const Request& request) {
  const std::span<const uint32_t> prompt =
      request.tokens.first(std::min<uint64_t>(request.tokens.size(), request.max_tokens));
  Found best;
  auto source = entries_.end();
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    const Context& context = entry->context;
    const bool own = context.session == request.session;
    if (context.layout != request.layout || (!own && !entry->plain)) continue;
    const uint64_t common = CommonTokens(prompt, context.tokens);
    const uint64_t pooled = TokensInPool(pool, context.spans, common);
    const bool complete = own && entry->plain && entry->current && pooled == common &&
                          common == std::min(prompt.size(), context.tokens.size());
    if (pooled == 0 || (pooled <= best.token_count && !complete)) continue;
    best = {.token_count = pooled, .complete = complete, .plain = entry->plain};
    if (own && entry->current) best.generation = context.generation;
    source = entry;
    if (complete) break;
  }
  if (source == entries_.end()) return std::nullopt;
  best.spans = LeadingSpans(source->context.spans, best.token_count);
  entries_.splice(entries_.begin(), entries_, source);
  return best;
}

HeldInPool HoldLeading(PagePool& pool, const ContextSpans& spans) {
  HeldInPool held;
  for (const ContextSpan& span : spans) {
    if (held.chunks.size() == kMaxHeldChunks) break;
    absl::StatusOr<PagePool::Pin> pin = pool.Hold(span.chunk);
    if (!pin.ok()) break;
    held.chunks.push_back(span.chunk);
    held.pins.push_back(*std::move(pin));
  }
  return held;
}

}  // namespace turnkeep
