#include "store/prompt_match.h"

#include <algorithm>
#include <array>

#include "core/chunk_header.h"
#include "core/slot_access.h"
#include "core/status.h"

namespace turnkeep {

namespace {

// Children looked at, the newest first, for one that begins like the prompt and then departs from
// it, and how many of those have their headers compared. Each is a miss of the caches in a large
// store, and what is gained is less than a chunk.
constexpr int kMaxSiblingsSeen = 64;
constexpr int kMaxSiblingsCompared = 16;

}  // namespace

uint32_t OpeningOf(std::span<const uint32_t> tokens) {
  if (tokens.size() < kOpeningTokens) return 0;
  uint64_t mixed = 0x9E3779B97F4A7C15u;
  for (uint32_t i = 0; i < kOpeningTokens; ++i) mixed = (mixed ^ tokens[i]) * 0xFF51AFD7ED558CCDu;
  const uint32_t opening = static_cast<uint32_t>(mixed >> 32);
  return opening == 0 ? 1 : opening;
}

std::optional<ChunkId> PromptMatcher::IdAt(const ChunkId& parent, uint64_t begin,
                                           uint32_t count) const {
  if (!prompt_.hashed()) {
    return tenant_->hasher.Tokens(parent, layout_->fingerprint,
                                  prompt_.tokens.subspan(begin, count));
  }
  const uint32_t chunk_tokens = layout_->layout.chunk_tokens;
  const uint64_t block = begin / chunk_tokens;
  const uint64_t block_end = std::min<uint64_t>((block + 1) * chunk_tokens, prompt_.token_count());
  if (begin % chunk_tokens != 0 || begin + count != block_end) return std::nullopt;
  return tenant_->hasher.Block(parent, layout_->fingerprint, prompt_.block_hashes[block], count);
}

bool PromptMatcher::MatchesWhole(const ChunkEntry& entry, uint64_t begin) const {
  state_->mu.AssertHeld();
  if (entry.parent == kNoChunk || begin + entry.token_count > prompt_.token_count()) return false;
  const auto id = IdAt(state_->catalog[entry.parent].id, begin, entry.token_count);
  return id.has_value() && *id == entry.id;
}

PromptMatch PromptMatcher::AlongSession(const Session& session) {
  state_->mu.AssertHeld();
  PromptMatch match;
  bool is_chain = true;
  ChunkIndex previous = state_->catalog.Find(tenant_->hasher.Root(layout_->fingerprint));
  for (const Span& span : session.spans) {
    const ChunkEntry& entry = state_->catalog[span.chunk];
    const uint64_t left = prompt_.token_count() - match.token_count;
    if (left == 0) return match;
    const bool whole = span.first == 0 && span.count == entry.token_count;
    uint32_t common = 0;
    if (whole && MatchesWhole(entry, match.token_count)) {
      common = span.count;
    } else {
      common = CommonTokens(span.chunk, span.first,
                            static_cast<uint32_t>(std::min<uint64_t>(span.count, left)),
                            match.token_count, &match);
    }
    if (match.needs_header != kNoChunk) return match;
    if (common > 0) {
      match.spans.push_back({span.chunk, span.first, static_cast<uint16_t>(common)});
      match.token_count += common;
    }
    if (common < span.count) {
      if (common < left) match.stop_reason = "the prompt departs from what the session has saved";
      return match;
    }
    ++match.whole_spans;
    is_chain = is_chain && whole && entry.parent == previous && previous != kNoChunk;
    previous = span.chunk;
  }
  if (is_chain && (session.spans.empty() ||
                   state_->catalog[previous].token_count == layout_->layout.chunk_tokens)) {
    if (session.spans.empty() && previous == kNoChunk) {
      match.stop_reason = "never saved";
    } else {
      Descend(previous, &match);
    }
  } else if (match.token_count < prompt_.token_count()) {
    match.stop_reason = "never saved";
  }
  return match;
}

PromptMatch PromptMatcher::DownTree() {
  state_->mu.AssertHeld();
  PromptMatch match;
  const ChunkIndex root = state_->catalog.Find(tenant_->hasher.Root(layout_->fingerprint));
  if (root == kNoChunk) {
    match.stop_reason = "never saved";
  } else {
    Descend(root, &match);
  }
  return match;
}

void PromptMatcher::Descend(ChunkIndex parent, PromptMatch* match) {
  state_->mu.AssertHeld();
  const uint32_t chunk_tokens = layout_->layout.chunk_tokens;
  while (prompt_.token_count() - match->token_count >= chunk_tokens) {
    const auto id = IdAt(state_->catalog[parent].id, match->token_count, chunk_tokens);
    const ChunkIndex child = id ? state_->catalog.Find(*id) : kNoChunk;
    if (child == kNoChunk || state_->catalog[child].session_refs == 0) break;
    match->spans.push_back({child, 0, static_cast<uint16_t>(chunk_tokens)});
    match->token_count += chunk_tokens;
    parent = child;
    if (!state_->catalog[child].HasData()) break;
  }
  if (match->token_count == prompt_.token_count()) return;
  if (match->spans.empty() || state_->catalog[parent].HasData()) MatchInsideChild(parent, match);
  if (match->token_count < prompt_.token_count()) match->stop_reason = "never saved";
}

void PromptMatcher::MatchInsideChild(ChunkIndex parent, PromptMatch* match) {
  state_->mu.AssertHeld();
  const uint64_t begin = match->token_count;
  const uint64_t left = prompt_.token_count() - begin;
  const uint32_t opening = prompt_.hashed() ? 0 : OpeningOf(prompt_.tokens.subspan(begin));
  Span best;
  int seen = 0;
  int alike_compared = 0;
  int others_compared = 0;
  for (ChunkIndex child = state_->catalog[parent].first_child;
       child != kNoChunk && seen < kMaxSiblingsSeen; child = state_->catalog[child].next_sibling) {
    ++seen;
    const ChunkEntry& entry = state_->catalog[child];
    if (entry.session_refs == 0 || !entry.HasData()) continue;
    // A child that opens otherwise shares less than kOpeningTokens: worth a look only where
    // that costs no disk read.
    const bool opens_alike = opening == 0 || entry.opening == 0 || entry.opening == opening;
    if (!opens_alike && (!entry.InHost() || others_compared == kMaxSiblingsCompared)) continue;
    if (!opens_alike) ++others_compared;
    uint32_t common = 0;
    if (entry.token_count <= left && MatchesWhole(entry, begin)) {
      common = entry.token_count;
    } else if (!prompt_.hashed() && !entry.hashed &&
               (!opens_alike || alike_compared < kMaxSiblingsCompared)) {
      if (opens_alike) ++alike_compared;
      common =
          CommonTokens(child, 0, static_cast<uint32_t>(std::min<uint64_t>(entry.token_count, left)),
                       begin, match);
      if (match->needs_header != kNoChunk) return;
    }
    if (common > best.count) best = {child, 0, static_cast<uint16_t>(common)};
  }
  if (best.count == 0) return;
  match->spans.push_back(best);
  match->token_count += best.count;
}

uint32_t PromptMatcher::CommonTokens(ChunkIndex chunk, uint32_t first, uint32_t count,
                                     uint64_t begin, PromptMatch* match) {
  state_->mu.AssertHeld();
  const ChunkEntry& entry = state_->catalog[chunk];
  if (prompt_.hashed() || entry.hashed) return 0;
  std::vector<uint32_t> from_host;
  const std::vector<uint32_t>* tokens = nullptr;
  if (const auto it = headers_->find({chunk, entry.epoch}); it != headers_->end()) {
    tokens = &it->second;
  } else if (entry.InHost()) {
    absl::StatusOr<ChunkHeader> header =
        DecodeChunkHeader(state_->HostImage(entry), entry.id, entry.epoch, entry.root);
    if (!header.ok()) {
      state_->DropDamagedHost(chunk);
      return CommonTokens(chunk, first, count, begin, match);
    }
    from_host = std::move(header->tokens);
    tokens = &from_host;
  } else if (!entry.disk.IsNull()) {
    match->needs_header = chunk;
    return 0;
  } else {
    return 0;
  }
  uint32_t common = 0;
  while (common < count && first + common < tokens->size() &&
         (*tokens)[first + common] == prompt_.tokens[begin + common]) {
    ++common;
  }
  return common;
}

ChunkId BindingOf(const StoreState& state, const Tenant& tenant, const LayoutInfo& layout,
                  std::span<const Span> spans) {
  ChunkId binding = tenant.hasher.Root(layout.fingerprint);
  for (const Span& span : spans) {
    const ChunkEntry& entry = state.catalog[span.chunk];
    const bool continues = span.first == 0 && span.count == entry.token_count &&
                           entry.parent != kNoChunk && state.catalog[entry.parent].id == binding;
    if (continues) {
      binding = entry.id;
      continue;
    }
    const std::array<ChunkSlice, 2> slices = {
        ChunkSlice{.chunk = binding},
        ChunkSlice{.chunk = entry.id, .first = span.first, .count = span.count}};
    binding = tenant.hasher.View(layout.fingerprint, slices);
  }
  return binding;
}

ChunkId AppendBindingOf(const StoreState& state, const Tenant& tenant, const LayoutInfo& layout,
                        std::span<const Span> kept, const Span* next) {
  const ChunkId binding = BindingOf(state, tenant, layout, kept);
  if (next == nullptr) return binding;
  const ChunkEntry& entry = state.catalog[next->chunk];
  const bool continues =
      next->first == 0 && entry.parent != kNoChunk && state.catalog[entry.parent].id == binding;
  if (continues) return binding;
  const std::array<ChunkSlice, 2> slices = {
      ChunkSlice{.chunk = binding},
      ChunkSlice{.chunk = entry.id, .first = next->first, .count = next->count}};
  return tenant.hasher.View(layout.fingerprint, slices);
}

}  // namespace turnkeep
