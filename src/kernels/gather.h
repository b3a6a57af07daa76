// Gather and scatter between an engine's paged cache and the dense planes of chunk pages
// ([tokens, heads, dim], core/layout.h), on the CPU.
//
// Tokens are counted along the context: token t lies in page pages[t / page_tokens]. Chunks may
// begin and end anywhere in a page, pages anywhere in a chunk.
//
// Bytes: every element is read once and written once, so the bound is a copy of the same size.
// Rows that are contiguous on both sides are copied whole, whole pages where tokens are; what is
// stored across tokens (split keys) goes through tiles that stay in the L1 cache or, of 16-bit
// elements, in registers.
//
// Thread-safe for different tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/paged_layout.h"
#include "kernels/rope.h"

namespace turnkeep {

// Tokens [first_token, first_token + token_count) of a context whose pages are `pages`.
struct TokenRange {
  std::span<const uint32_t> pages;
  uint64_t first_token = 0;
  uint32_t token_count = 0;
};

inline uint64_t DenseBytes(const PagedPlane& plane, uint32_t token_count) {
  return uint64_t{token_count} * plane.heads * plane.dim * plane.element_bytes;
}

// `dense` has DenseBytes. Pages of the range must be there; checked.
void GatherPlane(const PagedPlane& plane, const TokenRange& range, std::byte* dense);
void ScatterPlane(const PagedPlane& plane, const TokenRange& range, const std::byte* dense);

// ScatterPlane of keys that are rotated on the way: see Rotation. `dtype` is the plane's.
void ScatterRotated(const PagedPlane& plane, const TokenRange& range, const std::byte* dense,
                    DType dtype, const Rotation& rotation);

}  // namespace turnkeep
