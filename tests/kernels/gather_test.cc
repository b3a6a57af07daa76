// Gather and scatter against the layouts' own index formulas, element by element.
#include "kernels/gather.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "kernels/element.h"
#include "kernels/split_pages.h"

namespace turnkeep {
namespace {

using ::testing::HasSubstr;

// Element index by the bracket notation of each layout; `value` tells K from V.
uint64_t IndexOf(const PagedSpec& s, bool value, uint64_t layer, uint64_t page, uint64_t token,
                 uint64_t head, uint64_t i) {
  const uint64_t h = s.kv_heads, t = s.page_tokens, l = s.layers;
  const uint64_t p = page * l + layer;  // [pages, layers, …]
  const uint64_t pages = s.page_count * l;
  const uint64_t v = value ? 1 : 0;
  switch (s.kind) {
    case PagedKind::kPageKvTokenHead:
      return (((p * 2 + v) * t + token) * h + head) * s.key_dim + i;
    case PagedKind::kKvPageTokenHead:
      return (((v * pages + p) * t + token) * h + head) * s.key_dim + i;
    case PagedKind::kPageHeadKvToken:
      return (((p * h + head) * 2 + v) * t + token) * s.key_dim + i;
    case PagedKind::kSplitKeys: {
      const uint64_t x = 16 / s.element_bytes;
      if (!value) return (((p * h + head) * (s.key_dim / x) + i / x) * t + token) * x + i % x;
      return pages * h * s.key_dim * t + ((p * h + head) * s.value_dim + i) * t + token;
    }
    case PagedKind::kLatent:
      return (p * t + token) * (s.key_dim + s.value_dim) + (value ? s.key_dim : 0) + i;
  }
  return 0;
}

void Randomise(std::mt19937_64& random, std::vector<std::byte>* bytes) {
  for (std::byte& b : *bytes) b = static_cast<std::byte>(random());
}

// Bytes to skip so that the rest is `past` bytes past a cache line's begin.
size_t SkipTo(const std::vector<std::byte>& bytes, size_t past) {
  return (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64 + past;
}

// Every plane of every layer, tokens from anywhere to anywhere.
void CheckSpec(const PagedSpec& spec, uint64_t seed, size_t past_line = 16) {
  std::mt19937_64 random(seed);
  const auto bytes = PagedBytes(spec);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  std::vector<std::byte> memory(*bytes + 128);
  Randomise(random, &memory);
  const size_t skip = SkipTo(memory, past_line);
  std::vector<uint32_t> pages(spec.page_count);
  for (uint32_t i = 0; i < spec.page_count; ++i) pages[i] = (i * 7 + 3) % spec.page_count;
  const uint64_t capacity = uint64_t{spec.page_count} * spec.page_tokens;
  for (uint32_t layer = 0; layer < spec.layers; ++layer) {
    const auto planes = PlanesOf(spec, memory.data() + skip, layer);
    ASSERT_TRUE(planes.ok()) << planes.status();
    for (const bool value : {false, true}) {
      const PagedPlane& plane = value ? planes->values : planes->keys;
      const uint64_t first = random() % capacity;
      const auto count = static_cast<uint32_t>(1 + random() % (capacity - first));
      const TokenRange range{pages, first, count};
      std::vector<std::byte> dense_memory(DenseBytes(plane, count) + 128);
      std::byte* const dense = dense_memory.data() + SkipTo(dense_memory, past_line);
      GatherPlane(plane, range, dense);
      const auto at = [&](uint64_t t, uint64_t h, uint64_t i) {
        const uint64_t token = first + t;
        return IndexOf(spec, value, layer, pages[token / spec.page_tokens],
                       token % spec.page_tokens, h, i) *
                   spec.element_bytes +
               skip;
      };
      for (uint64_t t = 0, n = 0; t < count; ++t)
        for (uint64_t h = 0; h < plane.heads; ++h)
          for (uint64_t i = 0; i < plane.dim; ++i, n += spec.element_bytes)
            ASSERT_EQ(std::memcmp(&dense[n], &memory[at(t, h, i)], spec.element_bytes), 0)
                << (value ? "V" : "K") << " layer " << layer << " token " << first + t << " head "
                << h << " element " << i;
      // Scatter changes these elements and nothing else.
      std::vector<std::byte> expected = memory;
      Randomise(random, &dense_memory);
      for (uint64_t t = 0, n = 0; t < count; ++t)
        for (uint64_t h = 0; h < plane.heads; ++h)
          for (uint64_t i = 0; i < plane.dim; ++i, n += spec.element_bytes)
            std::memcpy(&expected[at(t, h, i)], &dense[n], spec.element_bytes);
      ScatterPlane(plane, range, dense);
      ASSERT_EQ(memory, expected) << (value ? "V" : "K") << " layer " << layer;
    }
  }
}

TEST(Gather, EveryLayoutAgreesWithItsFormula) {
  uint64_t seed = 1;
  for (const PagedKind kind :
       {PagedKind::kPageKvTokenHead, PagedKind::kKvPageTokenHead, PagedKind::kPageHeadKvToken,
        PagedKind::kSplitKeys, PagedKind::kLatent}) {
    for (const uint32_t element_bytes : {1u, 2u, 4u}) {
      for (const uint32_t page_tokens : {1u, 3u, 16u, 64u, 256u}) {
        for (const uint32_t kv_heads : {1u, 2u, 5u}) {
          for (const uint32_t layers : {1u, 3u}) {
            for (const uint32_t dim : {8u, 48u, 576u}) {
              if (kind == PagedKind::kLatent && kv_heads != 1) continue;
              if (kind == PagedKind::kSplitKeys && dim * element_bytes % 16 != 0) continue;
              if (dim == 576 && (page_tokens > 16 || layers > 1)) continue;
              const bool two_dims = kind == PagedKind::kLatent || kind == PagedKind::kSplitKeys;
              const PagedSpec spec{.kind = kind,
                                   .element_bytes = element_bytes,
                                   .page_tokens = page_tokens,
                                   .page_count = page_tokens > 16 ? 2u : 5u,
                                   .kv_heads = kv_heads,
                                   .key_dim = dim,
                                   .value_dim = two_dims ? dim + 8 > 576 ? 64 : dim + 8 : dim,
                                   .layers = layers};
              SCOPED_TRACE(std::string(NameOf(kind)) + " bytes " + std::to_string(element_bytes) +
                           " page " + std::to_string(page_tokens) + " heads " +
                           std::to_string(kv_heads) + " dim " + std::to_string(dim) + " layers " +
                           std::to_string(layers));
              CheckSpec(spec, ++seed);
              if (HasFatalFailure()) return;
            }
          }
        }
      }
    }
  }
}

// From 64 KiB on lines are streamed where the destination is made of whole ones.
TEST(Gather, LargeMovesAgreeWithTheFormulaOnLinesAndOffThem) {
  uint64_t seed = 1;
  for (const PagedKind kind : {PagedKind::kPageKvTokenHead, PagedKind::kPageHeadKvToken,
                               PagedKind::kSplitKeys, PagedKind::kLatent}) {
    for (const uint32_t element_bytes : {1u, 2u, 4u}) {
      for (const uint32_t page_tokens : {16u, 24u, 64u}) {
        for (const size_t past_line : {0u, 16u}) {
          const PagedSpec spec{.kind = kind,
                               .element_bytes = element_bytes,
                               .page_tokens = page_tokens,
                               .page_count = 1600 / page_tokens,
                               .kv_heads = kind == PagedKind::kLatent ? 1u : 3u,
                               .key_dim = 64,
                               .value_dim = 64};
          SCOPED_TRACE(std::string(NameOf(kind)) + " bytes " + std::to_string(element_bytes) +
                       " page " + std::to_string(page_tokens) + " past " +
                       std::to_string(past_line));
          CheckSpec(spec, ++seed, past_line);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Split keys and values are streamed by lines of a group of tokens: whole and partial groups, rows
// of whole lines and others, lines of one element's tokens and of two's.
TEST(Gather, LargeMovesOfSplitPagesAgreeWithTheFormula) {
  uint64_t seed = 1000;
  for (const uint32_t page_tokens : {8u, 16u, 32u, 48u, 64u, 128u, 256u}) {
    for (const uint32_t dim : {32u, 64u, 80u, 96u, 128u, 256u, 576u}) {
      for (const uint32_t kv_heads : {1u, 3u}) {
        const PagedSpec spec{.kind = PagedKind::kSplitKeys,
                             .page_tokens = page_tokens,
                             .page_count = std::max(4u, 262'144 / (dim * kv_heads * page_tokens)),
                             .kv_heads = kv_heads,
                             .key_dim = dim,
                             .value_dim = dim};
        SCOPED_TRACE("page " + std::to_string(page_tokens) + " dim " + std::to_string(dim) +
                     " heads " + std::to_string(kv_heads));
        CheckSpec(spec, ++seed, /*past_line=*/0);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Gather, ValuesThatDoNotFitTheStagingBufferAreLeftToOthers) {
  alignas(64) std::byte memory[64] = {};
  const SplitPart part{.paged = memory,
                       .paged_stride = 16,
                       .dense = memory,
                       .dense_stride = 4096,
                       .row_bytes = 4096,
                       .tokens = 8};
  EXPECT_FALSE(GatherSplitValues(part));
}

TEST(Gather, ScalesAreAPlaneOfTheirOwn) {
  std::vector<float> scales(3 * 4 * 2);
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(i);
  const PagedPlane plane = ScalePlane(reinterpret_cast<std::byte*>(scales.data()), 4, 2);
  const std::vector<uint32_t> pages = {2, 0};
  std::vector<float> dense(5 * 2);
  GatherPlane(plane, {pages, 2, 5}, reinterpret_cast<std::byte*>(dense.data()));
  EXPECT_THAT(dense, ::testing::ElementsAre(20, 21, 22, 23, 0, 1, 2, 3, 4, 5));
}

TEST(Gather, WhatALayoutCannotBeIsNamed) {
  const PagedSpec good{.page_count = 2, .key_dim = 64, .value_dim = 64};
  ASSERT_TRUE(PagedBytes(good).ok());
  struct Case {
    const char* message;
    void (*change)(PagedSpec&);
  };
  const Case cases[] = {
      {"element_bytes 3", [](PagedSpec& s) { s.element_bytes = 3; }},
      {"page_tokens 257", [](PagedSpec& s) { s.page_tokens = 257; }},
      {"kv_heads is 0", [](PagedSpec& s) { s.kv_heads = 0; }},
      {"layers is 0", [](PagedSpec& s) { s.layers = 0; }},
      {"key_dim 7", [](PagedSpec& s) { s.key_dim = 7; }},
      {"value_dim 600", [](PagedSpec& s) { s.value_dim = 600; }},
      {"value_dim 32 differ", [](PagedSpec& s) { s.value_dim = 32; }},
      {"of a latent", [](PagedSpec& s) { s.kind = PagedKind::kLatent, s.kv_heads = 2; }},
      {"not a multiple", [](PagedSpec& s) { s.kind = PagedKind::kSplitKeys, s.key_dim = 12; }}};
  for (const Case& c : cases) {
    PagedSpec spec = good;
    c.change(spec);
    EXPECT_THAT(MessageOf(PagedBytes(spec).status()), HasSubstr(c.message));
  }
  EXPECT_THAT(MessageOf(PlanesOf(good, nullptr, 1).status()), HasSubstr("layer 1 of 1"));
}

// Rotated on the way in, whatever the layout: equals rotating first.
TEST(Gather, ScatterRotatedIsRotateThenScatter) {
  RopeSpec rope{.pairing = RopePairing::kHalves, .rotary_dim = 32};
  for (int i = 0; i < 16; ++i) rope.inv_freq.push_back(1.0f / static_cast<float>(1 << i));
  for (const PagedKind kind :
       {PagedKind::kPageKvTokenHead, PagedKind::kPageHeadKvToken, PagedKind::kSplitKeys}) {
    const PagedSpec spec{.kind = kind,
                         .page_tokens = 16,
                         .page_count = 8,
                         .kv_heads = 3,
                         .key_dim = 64,
                         .value_dim = 64};
    std::vector<std::byte> a(*PagedBytes(spec));
    std::vector<std::byte> b = a;
    const std::vector<uint32_t> pages = {7, 6, 5, 4, 3, 2, 1, 0};
    std::vector<std::byte> dense(100 * 3 * 64 * 2);
    std::mt19937_64 random(5);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < dense.size(); i += 2)
      StoreElement(DType::kBFloat16, normal(random), &dense[i]);
    const TokenRange range{pages, 5, 100};
    for (const Rotation& rotation :
         {Rotation::Apply(rope, 5, 100), Rotation::Shift(rope, -77), Rotation::Shift(rope, 0)}) {
      std::vector<std::byte> rotated(dense.size());
      rotation.Rotate(DType::kBFloat16, 3, 64, 0, 100, dense.data(), rotated.data());
      ScatterRotated(PlanesOf(spec, a.data(), 0)->keys, range, dense.data(), DType::kBFloat16,
                     rotation);
      ScatterPlane(PlanesOf(spec, b.data(), 0)->keys, range, rotated.data());
      ASSERT_EQ(a, b) << NameOf(kind);
    }
  }
}

}  // namespace
}  // namespace turnkeep
