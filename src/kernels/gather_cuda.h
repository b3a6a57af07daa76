// Gather and scatter between an engine's paged cache and the dense planes of chunk pages in device
// memory: gather.h's counterpart on CUDA, for the same PagedPlane, with the rotation of keys fused
// into scatter. Only in builds with CUDA; the header needs none of CUDA's. sm_80 and later.
//
// Three kernels: moves in units of 1 to 16 bytes, 16 where every address and stride allows; a
// transposing move through shared memory for planes that are contiguous along tokens; and a
// scatter that rotates rows in shared memory. Block tables and runs travel in the kernels'
// parameters. docs/kernels.md has bytes, state and floors.
//
// Rotated keys have the bits that gather.h gives, except where sine and cosine of CUDA and of the
// C library differ in the last place of a double and the difference survives the rounding.
//
// Thread-safe. Works on the calling thread's current device, whose `stream` (a cudaStream_t) is.
// Nothing waits; the planes' memory and the dense sides are the stream's until it has passed the
// operation. Spans are read before the return.
//
// InvalidArgument, before anything is launched: tokens behind the block table, a plane without
// memory or with dims of 0, element sizes other than 1, 2 and 4, blocks that do not divide a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <absl/status/status.h>

#include "core/layout.h"
#include "kernels/paged_layout.h"

namespace turnkeep {

// Tokens [first_token, first_token + token_count) of a context, dense on one side:
// [token_count, heads, dim].
struct CudaTokenRun {
  std::byte* dense = nullptr;
  uint64_t first_token = 0;
  uint32_t token_count = 0;
  // For CudaScatterRotated. Raw keys: the position of the first token. Rotated keys: by how many
  // positions all of them move; 0 leaves their bits.
  int64_t position = 0;
};

// `pages` is the context's block table, in host memory: token t lies in pages[t / page_tokens].
absl::Status CudaGather(const PagedPlane& plane, std::span<const uint32_t> pages,
                        std::span<const CudaTokenRun> runs, void* stream);
absl::Status CudaScatter(const PagedPlane& plane, std::span<const uint32_t> pages,
                         std::span<const CudaTokenRun> runs, void* stream);

// Keys of `dtype`, rotated as kernels/rope.h says. InvalidArgument also: a dtype of another size
// than the plane's elements, a rotary dim that does not fit the row or is past 576, rows of more
// than 4096 elements.
absl::Status CudaScatterRotated(const PagedPlane& plane, std::span<const uint32_t> pages,
                                std::span<const CudaTokenRun> runs, DType dtype,
                                const RopeSpec& rope, void* stream);

}  // namespace turnkeep
