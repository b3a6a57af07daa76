// Finding what is stored of a prompt: along a session's view, or down the prefix tree.
//
// Whole chunks are compared by identity: the HMAC of the prompt's tokens after the
// chunk's own parent must be the chunk's id. Parts of chunks are compared token by token
// with the ids in the chunk's header; when that header is only on disk, the match asks
// for it (`needs_header`) and is run again once the caller has read it.
//
// Thread-safety: used under the store's lock, which every method asserts.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/kv_types.h"
#include "store/state.h"

namespace turnkeep {

// Token ids of chunks whose headers were read from disk for this match, by (chunk, epoch).
using HeaderTokens = std::map<std::pair<ChunkIndex, uint64_t>, std::vector<uint32_t>>;

// A check value of a chunk's first tokens that tells most chunks apart without their
// headers; 0 for fewer than kOpeningTokens.
inline constexpr uint32_t kOpeningTokens = 8;
uint32_t OpeningOf(std::span<const uint32_t> tokens);

struct PromptMatch {
  std::vector<Span> spans;   // what matches, in order, whether any tier holds it or not
  uint64_t token_count = 0;  // sum of the spans
  size_t whole_spans = 0;    // leading spans of the session that match whole
  std::string stop_reason;   // why it ends before the prompt does; empty if it does not
  ChunkIndex needs_header = kNoChunk;
};

class PromptMatcher {
 public:
  PromptMatcher(StoreState* state, const Tenant* tenant, const LayoutInfo* layout,
                const Prompt& prompt, const HeaderTokens* headers)
      : state_(state), tenant_(tenant), layout_(layout), prompt_(prompt), headers_(headers) {}

  // The common prefix of the prompt and the session's view; beyond the view, what the
  // prefix tree has.
  PromptMatch AlongSession(const Session& session);
  // The longest stored prefix of the prompt.
  PromptMatch DownTree();

  // The id of the chunk that holds prompt tokens [begin, begin + count) after `parent`;
  // nullopt if an engine's hashes do not give it.
  std::optional<ChunkId> IdAt(const ChunkId& parent, uint64_t begin, uint32_t count) const;

 private:
  // Continues `match`, whose last whole chunk is `parent`, down the tree.
  void Descend(ChunkIndex parent, PromptMatch* match);
  void MatchInsideChild(ChunkIndex parent, PromptMatch* match);
  bool MatchesWhole(const ChunkEntry& entry, uint64_t begin) const;
  // Leading tokens of chunk tokens [first, first + count) that equal the prompt's from
  // `begin`; sets match->needs_header when they cannot be known yet.
  uint32_t CommonTokens(ChunkIndex chunk, uint32_t first, uint32_t count, uint64_t begin,
                        PromptMatch* match);

  StoreState* const state_;
  const Tenant* const tenant_;
  const LayoutInfo* const layout_;
  const Prompt& prompt_;
  const HeaderTokens* const headers_;
};

// The identity that binds everything before the next chunk of a view: the last chunk's id
// where the view is a plain chain, a view id after a truncation.
ChunkId BindingOf(const StoreState& state, const Tenant& tenant, const LayoutInfo& layout,
                  std::span<const Span> spans) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state.mu);

// The parent of what a save appends behind `kept`, the leading spans of its session's view.
// `next` is the span that follows them there, as far as the prompt has it; null when it has
// nothing of it. The engine may give `next`'s tokens as it restored them. After a truncation
// their KV remembers what was dropped, so they are bound to that span and not to the
// chain of a context that was shorter from the start.
ChunkId AppendBindingOf(const StoreState& state, const Tenant& tenant, const LayoutInfo& layout,
                        std::span<const Span> kept, const Span* next)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(state.mu);

}  // namespace turnkeep
