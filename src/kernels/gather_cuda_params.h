// What the CUDA kernels of gather and scatter are given: everything travels in the kernel's
// parameters, so that no table has to be uploaded, kept or freed. Internal to src/kernels; plain
// C++17, for nvcc reads it too.
//
// A plane's rows are cut into units of 1 to 16 bytes, the widest that every address and stride of
// the batch is a multiple of. In a run, unit u of token t is unit t · units_per_token + u of the
// dense side; of the paged side it lies at
//   pages[…] · page_stride + slot · token_stride + head · head_stride + block · block_stride
//     + unit in block
// bytes from the plane's base.
//
// Thread-safe: plain values.
#pragma once

#include <cstdint>

#include "kernels/cuda_host_device.h"

namespace turnkeep {

// n / divisor for n < 2^31 by a multiplication (Granlund and Montgomery, 1994): the GPU divides 32
// bits in some twenty instructions, and a unit needs five divisions.
struct CudaDivisor {
  uint32_t divisor = 1;
  uint32_t multiplier = 1;
  uint32_t shift = 0;

  // `divisor` from 1 to 2^31.
  static CudaDivisor Of(uint32_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t{1} << shift) < divisor) ++shift;
    const uint64_t rest = (uint64_t{1} << shift) - divisor;
    return {divisor, static_cast<uint32_t>((rest << 32) / divisor + 1), shift};
  }
  TURNKEEP_HOST_DEVICE uint32_t Quotient(uint32_t n) const {
    return (static_cast<uint32_t>((uint64_t{n} * multiplier) >> 32) + n) >> shift;
  }
  // The quotient; `rest` receives the remainder.
  TURNKEEP_HOST_DEVICE uint32_t Split(uint32_t n, uint32_t* rest) const {
    const uint32_t quotient = Quotient(n);
    *rest = n - quotient * divisor;
    return quotient;
  }
};

// Kernels have 32,764 bytes of parameters from CUDA 12.1 on, before that 4096. Set by the build,
// for both compilers have to see the same.
#if TURNKEEP_CUDA_LARGE_PARAMETERS
inline constexpr uint32_t kCudaParameterBytes = 32764;
inline constexpr uint32_t kCudaRunsAtOnce = 256;
inline constexpr uint32_t kCudaPagesAtOnce = 3072;
#else
inline constexpr uint32_t kCudaParameterBytes = 4096;
inline constexpr uint32_t kCudaRunsAtOnce = 32;
inline constexpr uint32_t kCudaPagesAtOnce = 384;
#endif
inline constexpr uint32_t kCudaMaxPairs = 288;  // a rotary dim of 576

// Consecutive tokens of one context, dense on one side.
struct CudaMoveRun {
  uint8_t* dense = nullptr;
  int64_t position = 0;      // CudaRotateBatch: of the first token, or the shift of all
  uint32_t first_page = 0;   // into CudaMoveBatch::pages
  uint32_t first_token = 0;  // in that page
  uint32_t token_count = 0;
};

struct CudaMoveBatch {
  uint8_t* base = nullptr;  // of the paged side
  uint64_t page_stride = 0;
  uint64_t token_stride = 0;
  uint64_t head_stride = 0;
  uint64_t block_stride = 0;
  uint32_t unit_bytes = 0;
  // Tokens (a power of two) whose units are neighbours among the threads: 4 where tokens are
  // contiguous but rows are not, so that both sides see whole sectors of 32 bytes.
  uint32_t inner_tokens_log2 = 0;
  CudaDivisor page_tokens;
  CudaDivisor units_per_token;
  CudaDivisor units_per_row;
  CudaDivisor units_per_block;
  uint32_t to_dense = 0;
  uint32_t run_count = 0;
  CudaMoveRun runs[kCudaRunsAtOnce];
  uint32_t pages[kCudaPagesAtOnce];
};

// Rows of elements that are contiguous along tokens, not along a row: vLLM's split values. Units
// are elements, and block_stride is the distance of a row's elements.
struct CudaTransposeBatch {
  CudaMoveBatch move;
  uint32_t heads = 0;
  uint32_t dim = 0;
  CudaDivisor dim_tiles;  // tiles of kCudaTileDims that a row has
  CudaDivisor heads_divisor;
};
inline constexpr uint32_t kCudaTileTokens = 32;
inline constexpr uint32_t kCudaTileDims = 64;

// DType's values, which nvcc does not see.
enum CudaKeyType : uint32_t {
  kCudaFloat32 = 1,
  kCudaFloat16,
  kCudaBFloat16,
  kCudaFp8E4M3,
  kCudaFp8E5M2,
  kCudaInt8
};

// Rows that are rotated on their way out of the dense side. A unit lies in one row.
struct CudaRotateBatch {
  CudaMoveBatch move;
  uint32_t key_type = 0;   // CudaKeyType
  uint32_t per_token = 0;  // raw keys: token t is rotated by position + t, else by position
  uint32_t pair_step = 0;  // pair p is elements p · pair_step and that plus pair_distance
  uint32_t pair_distance = 0;
  uint32_t rows_at_once = 0;  // of one thread block
  uint32_t row_bytes = 0;
  uint32_t angles_offset = 0;  // in shared memory, behind the rows
  uint32_t shared_bytes = 0;
  CudaDivisor pairs;
  CudaDivisor heads;
  double scale = 1;  // per_token: the attention scale
  float inv_freq[kCudaMaxPairs];
};
static_assert(sizeof(CudaTransposeBatch) <= kCudaParameterBytes &&
                  sizeof(CudaRotateBatch) <= kCudaParameterBytes,
              "kernel parameters");

// Elements of rows that a block of the rotating kernel holds in shared memory, if one row is not
// more: with the angles of as many tokens at most 48 KiB.
inline constexpr uint32_t kCudaRotateElements = 4096;

// Threads of a block, and units that one of them moves.
inline constexpr uint32_t kCudaMoveThreads = 256;
inline constexpr uint32_t kCudaUnitsEach = 4;

// All return a cudaError_t; `stream` is a cudaStream_t. None waits for the device. `blocks`: of
// each run, [blocks, run_count] in all.
int LaunchMove(const CudaMoveBatch& batch, uint32_t blocks, void* stream);
int LaunchTranspose(const CudaTransposeBatch& batch, uint32_t blocks, void* stream);
int LaunchRotate(const CudaRotateBatch& batch, uint32_t blocks, void* stream);

}  // namespace turnkeep
