// The bodies of the CUDA kernels of gather and scatter, phase by phase: what thread `thread` of
// block (`block`, `run`) does between two barriers. Plain C++17 but for the conversions, so that
// tests run every phase of every thread on the CPU. Internal to src/kernels.
//
// Nothing here has a loop-carried order between threads: in a phase no thread reads what another
// one writes.
#pragma once

#include <cstdint>

#include "kernels/gather_cuda_params.h"

#if defined(__CUDACC__)
#define TURNKEEP_UNROLL _Pragma("unroll")
#else
#define TURNKEEP_UNROLL
#endif
#define TURNKEEP_DEVICE TURNKEEP_HOST_DEVICE inline

namespace turnkeep::cuda_body {

// One load or store: 16 bytes in one instruction where kBytes is 16.
template <int kBytes>
struct alignas(kBytes) Unit {
  uint32_t words[kBytes / 4];
};
template <>
struct alignas(2) Unit<2> {
  uint16_t half;
};
template <>
struct Unit<1> {
  uint8_t byte;
};

// The page that a token of a run lies in, as bytes from the plane's base, with its slot in it.
TURNKEEP_DEVICE uint64_t TokenAt(const CudaMoveBatch& b, const CudaMoveRun& run, uint32_t token) {
  uint32_t slot = 0;
  const uint32_t page = b.page_tokens.Split(run.first_token + token, &slot);
  return b.pages[run.first_page + page] * b.page_stride + slot * b.token_stride;
}

// Unit `unit` of a token's units_per_token, as bytes from the token.
TURNKEEP_DEVICE uint64_t UnitAt(const CudaMoveBatch& b, uint32_t unit) {
  uint32_t in_row = 0;
  uint32_t in_block = 0;
  const uint32_t head = b.units_per_row.Split(unit, &in_row);
  const uint32_t block = b.units_per_block.Split(in_row, &in_block);
  return head * b.head_stride + block * b.block_stride + uint64_t{in_block} * b.unit_bytes;
}

// ---- plain moves: grid [blocks of kCudaMoveThreads · kCudaUnitsEach units, runs] -------------

template <int kBytes>
TURNKEEP_DEVICE void Move(const CudaMoveBatch& b, uint32_t block, uint32_t run_index,
                          uint32_t thread) {
  const CudaMoveRun& run = b.runs[run_index];
  const uint32_t inner_mask = (1u << b.inner_tokens_log2) - 1;
  const uint8_t* from[kCudaUnitsEach];
  uint8_t* to[kCudaUnitsEach];  // null: behind the run's end
  TURNKEEP_UNROLL
  for (uint32_t i = 0; i < kCudaUnitsEach; ++i) {
    const uint32_t n = (block * kCudaUnitsEach + i) * kCudaMoveThreads + thread;
    uint32_t unit = 0;
    const uint32_t group = b.units_per_token.Split(n >> b.inner_tokens_log2, &unit);
    const uint32_t token = (group << b.inner_tokens_log2) + (n & inner_mask);
    from[i] = to[i] = nullptr;
    if (token < run.token_count) {
      uint8_t* const paged = b.base + TokenAt(b, run, token) + UnitAt(b, unit);
      uint8_t* const dense =
          run.dense + (uint64_t{token} * b.units_per_token.divisor + unit) * kBytes;
      from[i] = b.to_dense != 0 ? paged : dense;
      to[i] = b.to_dense != 0 ? dense : paged;
    }
  }
  // All loads are under way before the first store waits for one.
  Unit<kBytes> units[kCudaUnitsEach];
  TURNKEEP_UNROLL
  for (uint32_t i = 0; i < kCudaUnitsEach; ++i) {
    if (to[i] != nullptr) units[i] = *reinterpret_cast<const Unit<kBytes>*>(from[i]);
  }
  TURNKEEP_UNROLL
  for (uint32_t i = 0; i < kCudaUnitsEach; ++i) {
    if (to[i] != nullptr) *reinterpret_cast<Unit<kBytes>*>(to[i]) = units[i];
  }
}

// ---- transposing moves: grid [token tiles · heads · dim tiles, runs] --------------------------

// A tile's rows in shared memory are an odd number of 4-byte words apart, so that a column of it
// lies in 32 banks.
template <int kBytes>
struct TransposeTile {
  static constexpr uint32_t kPitch = kCudaTileTokens + 4 / kBytes;
  Unit<kBytes> units[kCudaTileDims * kPitch];
};

struct TransposePlace {
  uint32_t first_token = 0;
  uint32_t head = 0;
  uint32_t first_dim = 0;
};
TURNKEEP_DEVICE TransposePlace TransposePlaceOf(const CudaTransposeBatch& b, uint32_t block) {
  TransposePlace place;
  uint32_t dim_tile = 0;
  const uint32_t rest = b.dim_tiles.Split(block, &dim_tile);
  place.first_dim = dim_tile * kCudaTileDims;
  place.first_token = b.heads_divisor.Split(rest, &place.head) * kCudaTileTokens;
  return place;
}

// Lanes along tokens: contiguous in a page.
template <int kBytes, bool kLoad>
TURNKEEP_DEVICE void TransposePaged(const CudaTransposeBatch& b, uint32_t block, uint32_t run_index,
                                    uint32_t thread, TransposeTile<kBytes>* tile) {
  const CudaMoveRun& run = b.move.runs[run_index];
  const TransposePlace place = TransposePlaceOf(b, block);
  const uint32_t lane = thread % kCudaTileTokens;
  const uint32_t token = place.first_token + lane;
  if (token >= run.token_count) return;
  uint8_t* const row = b.move.base + TokenAt(b.move, run, token) + place.head * b.move.head_stride;
  TURNKEEP_UNROLL
  for (uint32_t i = 0; i < kCudaTileDims; i += kCudaMoveThreads / kCudaTileTokens) {
    const uint32_t d = i + thread / kCudaTileTokens;
    if (place.first_dim + d >= b.dim) continue;
    auto* const at =
        reinterpret_cast<Unit<kBytes>*>(row + (place.first_dim + d) * b.move.block_stride);
    Unit<kBytes>* const shared = tile->units + d * TransposeTile<kBytes>::kPitch + lane;
    if (kLoad) {
      *shared = *at;
    } else {
      *at = *shared;
    }
  }
}

// Lanes along a row: contiguous in the dense side.
template <int kBytes, bool kLoad>
TURNKEEP_DEVICE void TransposeDense(const CudaTransposeBatch& b, uint32_t block, uint32_t run_index,
                                    uint32_t thread, TransposeTile<kBytes>* tile) {
  const CudaMoveRun& run = b.move.runs[run_index];
  const TransposePlace place = TransposePlaceOf(b, block);
  const uint32_t d = thread % kCudaTileDims;
  if (place.first_dim + d >= b.dim) return;
  TURNKEEP_UNROLL
  for (uint32_t i = 0; i < kCudaTileTokens; i += kCudaMoveThreads / kCudaTileDims) {
    const uint32_t t = i + thread / kCudaTileDims;
    const uint32_t token = place.first_token + t;
    if (token >= run.token_count) continue;
    const uint64_t row = uint64_t{token} * b.heads + place.head;
    auto* const at =
        reinterpret_cast<Unit<kBytes>*>(run.dense + (row * b.dim + place.first_dim + d) * kBytes);
    Unit<kBytes>* const shared = tile->units + d * TransposeTile<kBytes>::kPitch + t;
    if (kLoad) {
      *shared = *at;
    } else {
      *at = *shared;
    }
  }
}

}  // namespace turnkeep::cuda_body
