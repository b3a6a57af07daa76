// The engine's cache of a gather bench: its layout, its block table, and the rotation of its keys.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/layout.h"
#include "core/units.h"
#include "kernels/paged_layout.h"

namespace turnkeep::bench {

inline constexpr uint32_t kGatherChunkTokens = 64;

struct GatherCase {
  PagedKind kind;
  uint32_t page_tokens;
  uint32_t kv_heads;
  uint32_t key_dim;
  uint32_t value_dim;
  uint32_t layers = 1;

  uint64_t token_bytes() const { return uint64_t{kv_heads} * (key_dim + value_dim) * 2; }
  uint64_t chunk_page_bytes() const { return kGatherChunkTokens * token_bytes(); }
  // Whole chunks of about `bytes` in one layer.
  uint32_t TokensFor(uint64_t bytes) const {
    return static_cast<uint32_t>(
        RoundDown(bytes / token_bytes(), uint64_t{kGatherChunkTokens} * 4));
  }
  PagedSpec Spec(uint32_t tokens) const {
    return {.kind = kind,
            .element_bytes = 2,
            .page_tokens = page_tokens,
            .page_count = (tokens + page_tokens - 1) / page_tokens,
            .kv_heads = kv_heads,
            .key_dim = key_dim,
            .value_dim = value_dim,
            .layers = layers};
  }
  bool rotates() const { return kind != PagedKind::kLatent; }
  std::string Name() const {
    return std::string(NameOf(kind)) + (layers > 1 ? " (one for all layers)" : "");
  }
};

// Llama's heads in four layouts, with one combined allocation where `combined`, and MLA's latent.
inline std::vector<GatherCase> GatherCases(bool combined) {
  std::vector<GatherCase> cases;
  for (const uint32_t page_tokens : {16u, 64u}) {
    for (const PagedKind kind : {PagedKind::kPageKvTokenHead, PagedKind::kKvPageTokenHead,
                                 PagedKind::kPageHeadKvToken, PagedKind::kSplitKeys})
      cases.push_back({kind, page_tokens, 8, 128, 128});
    if (combined) cases.push_back({PagedKind::kPageKvTokenHead, page_tokens, 8, 128, 128, 8});
    cases.push_back({PagedKind::kLatent, page_tokens, 1, 512, 64});
  }
  return cases;
}

// A block table as a cache in use has it.
inline std::vector<uint32_t> ShuffledPages(uint32_t count) {
  std::vector<uint32_t> pages(count);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(1));
  return pages;
}

inline RopeSpec GatherRope(uint32_t dim) {
  RopeSpec rope{.pairing = RopePairing::kHalves, .rotary_dim = dim};
  for (uint32_t i = 0; i < dim / 2; ++i)
    rope.inv_freq.push_back(
        std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(dim)));
  return rope;
}

}  // namespace turnkeep::bench
