// What the CUDA kernels of attention are given: an attention plan's flat arrays on the device, and
// how they are launched. Internal to src/kernels; plain C++17, for nvcc reads it too.
//
// Thread-safe: plain values.
#pragma once

#include <cstdint>

#include "kernels/cuda_host_device.h"

namespace turnkeep {

// AttentionPlan::Unit, and where the unit's token slots begin.
struct CudaUnit {
  uint64_t first_mask;  // AttentionPlan::kNoMask: none
  uint64_t first_slot;
  uint64_t first_score;  // into scores: [kv_heads, rows of a KV head, ScorePitch]
  uint32_t first_segment;
  uint32_t segment_count;
  uint32_t token_count;
  uint32_t first_query;
  uint32_t query_count;
  uint32_t unused;
};
struct CudaSegment {
  uint32_t first_page;
  uint32_t offset;
  uint32_t token_count;
};
// Query rows [first_row, …) of a unit: what one thread block does for one KV head.
struct CudaWork {
  uint32_t unit;
  uint32_t first_row;
};

// Scores of a row are 16-byte aligned: four tokens are one load.
TURNKEEP_HOST_DEVICE constexpr uint32_t ScorePitch(uint32_t token_count) {
  return (token_count + 3) / 4 * 4;
}

// Units of up to kCudaFewRows rows stream; the tile kernel takes kCudaTileRows rows a block. Of
// float32, which the tile kernel has not, every four rows stream.
inline constexpr uint32_t kCudaFewRows = 4;
inline constexpr uint32_t kCudaTileRows = 64;
// Work lists: one row, two, up to four, more.
inline constexpr uint32_t kCudaWorkKinds = 4;

// DType's values.
inline constexpr uint32_t kCudaAttentionFloat32 = 1;
inline constexpr uint32_t kCudaAttentionFloat16 = 2;
inline constexpr uint32_t kCudaAttentionBFloat16 = 3;

struct CudaAttentionParams {
  const CudaUnit* units;
  const CudaSegment* segments;
  const uint32_t* pages;
  const uint32_t* queries;
  const uint32_t* limits;
  const uint32_t* partials;
  const uint64_t* masks;
  const uint32_t* merge_begin;
  const uint32_t* merge_list;
  const CudaWork* work;
  uint32_t* slots;  // page · page_tokens + token in page, for every token of every unit
  uint32_t unit_count;
  uint32_t row_count;
  uint32_t work_begin[kCudaWorkKinds + 1];

  const void* keys;  // 16-byte aligned, strides multiples of 8 elements
  const void* values;
  uint64_t page_stride;
  uint64_t head_stride;
  uint64_t token_stride;
  const void* query_rows;
  float* output;
  float* lse;
  float* partial_output;  // [partial_count, query_heads, head_dim]
  float* partial_lse;     // [partial_count, query_heads]
  float* scores;          // kept by a run where not null, to base 2; read by apply

  uint32_t query_heads;
  uint32_t kv_heads;
  uint32_t head_dim;  // 64, 128 or 256
  uint32_t page_tokens;
  uint32_t dtype;    // kCudaAttention…
  uint32_t apply;    // weights are made from scores and lse instead of queries and keys
  float scale_log2;  // scale · log2 e
};

// All return a cudaError_t; `stream` is a cudaStream_t. None waits for the device.
int LaunchExpandSlots(const CudaAttentionParams& params, void* stream);
int LaunchFewRows(const CudaAttentionParams& params, void* stream);
int LaunchManyRows(const CudaAttentionParams& params, void* stream);
int LaunchMerge(const CudaAttentionParams& params, void* stream);

}  // namespace turnkeep
