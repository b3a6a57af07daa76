#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/split_pages.cc"
// Blocks are of 16 bytes: two of them make a vector, wider ones add nothing.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3 | HWY_AVX3_DL)
#include <hwy/foreach_target.h>

#include "kernels/split_pages.h"

#include <algorithm>

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "kernels/stream_rows.h"

HWY_BEFORE_NAMESPACE();
namespace turnkeep {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

#include "kernels/transpose_tile.inc"

constexpr uint64_t kLine = 64;
constexpr uint64_t kBlock = 16;  // bytes

#if HWY_TARGET == HWY_SCALAR
bool GatherKeys(const SplitPart&) { return false; }
bool ScatterKeys(const SplitPart&) { return false; }
bool GatherValues(const SplitPart&) { return false; }
bool ScatterValues(const SplitPart&) { return false; }
#else

using D = hn::CappedTag<uint16_t, 16>;
using V = hn::Vec<D>;
constexpr size_t kBlocks = hn::MaxLanes(D()) / 8;  // of 16 bytes in a vector
constexpr uint64_t kVector = kBlocks * kBlock;

uint16_t* Elements(std::byte* at) { return reinterpret_cast<uint16_t*>(at); }
const uint16_t* Elements(const std::byte* at) { return reinterpret_cast<const uint16_t*>(at); }

// A vector of blocks that lie `stride` bytes apart.
HWY_INLINE V LoadBlocks(D d, const std::byte* from, uint64_t stride) {
  if constexpr (kBlocks == 1) {
    return hn::LoadU(d, Elements(from));
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, hn::LoadU(half, Elements(from + stride)),
                       hn::LoadU(half, Elements(from)));
  }
}

// Streams 64 bytes from the L1 cache.
HWY_INLINE void StreamLine(D d, const std::byte* from, std::byte* to) {
  for (uint64_t i = 0; i < kLine; i += kVector)
    hn::Stream(hn::Load(d, Elements(from + i)), d, Elements(to + i));
}

// Tokens of a key block that share a line, and how many such groups ahead lines are asked for.
constexpr uint32_t kGroup = kLine / kBlock;
constexpr uint32_t kGroupsAhead = 2;

bool GatherKeys(const SplitPart& part) {
  const D d;
  if (!CanStreamRows(part.dense, part.dense_stride, part.row_bytes)) return false;
  const uint64_t blocks = part.row_bytes / kBlock;
  const uint32_t groups = part.tokens / kGroup;
  for (uint32_t t = 0; t < part.tokens; ++t) {
    const uint32_t group = t / kGroup + kGroupsAhead;
    const bool here = group < groups;
    if (here || part.next_paged != nullptr) {
      const std::byte* const ahead =
          here ? part.paged + group * kLine : part.next_paged + (group - groups) * kLine;
      for (uint64_t b = t % kGroup; b < blocks; b += kGroup)
        hwy::Prefetch(ahead + b * part.paged_stride);
    }
    const std::byte* from = part.paged + t * kBlock;
    std::byte* const to = part.dense + t * part.dense_stride;
    for (uint64_t i = 0; i < part.row_bytes; i += kVector, from += kBlocks * part.paged_stride)
      hn::Stream(LoadBlocks(d, from, part.paged_stride), d, Elements(to + i));
  }
  return true;
}

bool ScatterKeys(const SplitPart& part) {
  const D d;
  if (part.tokens % kGroup != 0 || !CanStreamRows(part.paged, part.paged_stride, kLine))
    return false;
  const uint64_t blocks = part.row_bytes / kBlock;
  for (uint32_t t = 0; t < part.tokens; t += kGroup) {
    const uint32_t next = t + kGroupsAhead * kGroup;
    const std::byte* ahead = part.next_dense;
    if (next < part.tokens) {
      ahead = part.dense + next * part.dense_stride;
    } else if (ahead != nullptr) {
      ahead += (next - part.tokens) * part.dense_stride;
    }
    const std::byte* from = part.dense + t * part.dense_stride;
    std::byte* to = part.paged + t * kBlock;
    for (uint64_t b = 0; b < blocks; ++b, from += kBlock, to += part.paged_stride) {
      if (ahead != nullptr)
        hwy::Prefetch(ahead + b % kGroup * part.dense_stride + b / kGroup * kLine);
      for (uint64_t i = 0; i < kGroup; i += kBlocks) {
        hn::Stream(LoadBlocks(d, from + i * part.dense_stride, part.dense_stride), d,
                   Elements(to + i * kBlock));
      }
    }
  }
  return true;
}

// What is transposed lies here until its lines are whole.
constexpr uint64_t kStagingBytes = 16 * 1024;
constexpr uint32_t kTile = 8;
constexpr uint32_t kLineTokens = kLine / sizeof(uint16_t);
// Elements, or tokens, that become one vector of what is written.
constexpr uint32_t kTileSpan = kTile * kBlocks;
// How many tiles' rows ahead lines are asked for.
constexpr uint32_t kTilesAhead = 3;

bool GatherValues(const SplitPart& part) {
  const D d;
  if (part.tokens % kTile != 0 || part.row_bytes * kTile > kStagingBytes ||
      !CanStreamRows(part.dense, part.dense_stride, part.row_bytes))
    return false;
  alignas(kLine) std::byte staging[kStagingBytes];
  const auto dim = static_cast<uint32_t>(part.row_bytes / sizeof(uint16_t));
  const uint64_t stride = part.paged_stride;
  // As many tokens as a line has, so that none is read twice.
  const auto most = static_cast<uint32_t>(kStagingBytes / part.row_bytes / kTile * kTile);
  const uint32_t step = std::min({kLineTokens, part.tokens, most});
  for (uint32_t t = 0; t < part.tokens; t += step) {
    const uint32_t count = std::min(step, part.tokens - t);
    for (uint32_t j = 0; j < dim; j += kTileSpan) {
      const std::byte* from = part.paged + j * stride + t * sizeof(uint16_t);
      // The rows that are used kTilesAhead tiles later: of this step, the next one, or the next
      // part.
      const uint32_t row = j + kTilesAhead * kTileSpan;
      const std::byte* ahead = from + kTilesAhead * kTileSpan * stride;
      if (row >= dim && t + step < part.tokens) {
        ahead = from + step * sizeof(uint16_t) - j * stride + (row - dim) * stride;
      } else if (row >= dim) {
        ahead = part.next_paged == nullptr ? from : part.next_paged + (row - dim) * stride;
      }
      const uint64_t end = kTileSpan * stride;
      uint64_t asked = 0;
      for (uint32_t i = 0; i < count; i += kTile, from += kTile * sizeof(uint16_t)) {
        for (int n = 0; n < 4 && asked < end; ++n, asked += std::max(stride, kLine))
          hwy::Prefetch(ahead + asked);
        V tile[kTile];
        for (uint32_t r = 0; r < kTile; ++r)
          tile[r] = LoadBlocks(d, from + r * stride, kTile * stride);
        TransposeBlocks(d, tile);
        for (uint32_t r = 0; r < kTile; ++r) {
          hn::Store(tile[r], d,
                    Elements(staging + (i + r) * part.row_bytes + j * sizeof(uint16_t)));
        }
      }
    }
    StreamRows(staging, part.row_bytes, count, part.row_bytes, part.dense + t * part.dense_stride,
               part.dense_stride);
  }
  return true;
}

// kTokens tokens of a part, kLineTokens of their elements, to `to`, [kLineTokens][kTokens].
template <uint32_t kTokens>
HWY_INLINE void TransposeLine(D d, const std::byte* from, uint64_t stride, const std::byte* ahead,
                              std::byte* to) {
  constexpr uint64_t kRow = kTokens * sizeof(uint16_t);
  constexpr uint32_t kAsked = kTokens / (kTokens / kTileSpan * (kLineTokens / kTile));
  for (uint32_t half = 0; half < kTokens; half += kTileSpan) {
    for (uint32_t j = 0; j < kLineTokens; j += kTile) {
      for (uint32_t n = 0; n < kAsked && ahead != nullptr; ++n, ahead += stride)
        hwy::Prefetch(ahead);
      V tile[kTile];
      const std::byte* const at = from + half * stride + j * sizeof(uint16_t);
      for (uint32_t r = 0; r < kTile; ++r) tile[r] = LoadBlocks(d, at + r * stride, kTile * stride);
      TransposeBlocks(d, tile);
      for (uint32_t r = 0; r < kTile; ++r)
        hn::Store(tile[r], d, Elements(to + (j + r) * kRow + half * sizeof(uint16_t)));
    }
  }
}

bool ScatterValues(const SplitPart& part) {
  const D d;
  // Lines of two elements of 16 tokens, or of one element of 32.
  const uint64_t page_row = part.paged_stride;
  const uint32_t step = page_row == kLine / 2 ? kLineTokens / 2 : kLineTokens;
  if (part.tokens % step != 0 || part.row_bytes % kLine != 0 ||
      !CanStreamRows(part.paged, page_row * (kLineTokens / step), kLine))
    return false;
  alignas(kLine) std::byte staging[kLineTokens * kLine];
  for (uint32_t t = 0; t < part.tokens; t += step) {
    const std::byte* const rows = part.dense + t * part.dense_stride;
    const std::byte* next =
        t + step < part.tokens ? rows + step * part.dense_stride : part.next_dense;
    for (uint64_t i = 0; i < part.row_bytes; i += kLine) {
      const std::byte* const ahead = next == nullptr ? nullptr : next + i;
      std::byte* const to = part.paged + i / sizeof(uint16_t) * page_row + t * sizeof(uint16_t);
      if (step == kLineTokens) {
        TransposeLine<kLineTokens>(d, rows + i, part.dense_stride, ahead, staging);
        for (uint32_t r = 0; r < kLineTokens; ++r)
          StreamLine(d, staging + r * kLine, to + r * page_row);
      } else {
        TransposeLine<kLineTokens / 2>(d, rows + i, part.dense_stride, ahead, staging);
        for (uint64_t at = 0; at < kLineTokens * page_row; at += kLine)
          StreamLine(d, staging + at, to + at);
      }
    }
  }
  return true;
}
#endif

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace turnkeep
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace turnkeep {

HWY_EXPORT(GatherKeys);
HWY_EXPORT(ScatterKeys);
HWY_EXPORT(GatherValues);
HWY_EXPORT(ScatterValues);

bool GatherSplitKeys(const SplitPart& part) { return HWY_DYNAMIC_DISPATCH(GatherKeys)(part); }
bool ScatterSplitKeys(const SplitPart& part) { return HWY_DYNAMIC_DISPATCH(ScatterKeys)(part); }
bool GatherSplitValues(const SplitPart& part) { return HWY_DYNAMIC_DISPATCH(GatherValues)(part); }
bool ScatterSplitValues(const SplitPart& part) { return HWY_DYNAMIC_DISPATCH(ScatterValues)(part); }

}  // namespace turnkeep
#endif  // HWY_ONCE
