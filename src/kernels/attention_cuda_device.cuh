// What the CUDA kernels of attention share: addresses, visibility, results. The equation is in
// attention.h; scores and maxima are to base 2.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention_cuda_params.h"

namespace turnkeep {

inline constexpr uint64_t kCudaNoMask = ~uint64_t{0};

template <class T>
__device__ inline float2 ToFloats(uint32_t pair);
template <>
__device__ inline float2 ToFloats<__half>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
template <>
__device__ inline float2 ToFloats<__nv_bfloat16>(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

// Row of the queries, the output and the log-sum-exps of row `row` of the unit.
__device__ inline uint64_t TensorRow(const CudaAttentionParams& p, const CudaUnit& unit,
                                     uint32_t kv_head, uint32_t row) {
  const uint32_t group = p.query_heads / p.kv_heads;
  const uint64_t query = p.queries[unit.first_query + row / group];
  return query * p.query_heads + kv_head * group + row % group;
}

// First element of a token's key or value row.
__device__ inline uint64_t TokenAt(const CudaAttentionParams& p, uint32_t kv_head, uint32_t slot) {
  return slot / p.page_tokens * p.page_stride + kv_head * p.head_stride +
         slot % p.page_tokens * p.token_stride;
}

// What one row sees of the unit: tokens below `limit`, and of these the mask's.
struct Visibility {
  uint32_t limit;
  const uint64_t* mask;  // null: no mask

  __device__ static Visibility Of(const CudaAttentionParams& p, const CudaUnit& unit,
                                  uint32_t row) {
    const uint32_t query = row / (p.query_heads / p.kv_heads);
    if (query >= unit.query_count) return {0, nullptr};
    const uint64_t words = (unit.token_count + 63) / 64;
    return {min(p.limits[unit.first_query + query], unit.token_count),
            unit.first_mask == kCudaNoMask ? nullptr : p.masks + unit.first_mask + query * words};
  }
  __device__ bool Sees(uint32_t token) const {
    if (token >= limit) return false;
    return mask == nullptr || ((mask[token / 64] >> (token % 64)) & 1) != 0;
  }
};

// Where a row's result goes.
struct RowResult {
  float* output;  // head_dim floats
  float* lse;

  __device__ static RowResult Of(const CudaAttentionParams& p, const CudaUnit& unit,
                                 uint32_t kv_head, uint32_t row) {
    const uint32_t group = p.query_heads / p.kv_heads;
    const uint32_t partial = p.partials[unit.first_query + row / group];
    if (partial == 0xFFFFFFFFu) {
      const uint64_t at = TensorRow(p, unit, kv_head, row);
      return {p.output + at * p.head_dim, p.lse + at};
    }
    const uint64_t at = uint64_t{partial} * p.query_heads + kv_head * group + row % group;
    return {p.partial_output + at * p.head_dim, p.partial_lse + at};
  }
};

// Scores of one row of the unit, ScorePitch(token_count) of them.
__device__ inline float* RowScores(const CudaAttentionParams& p, const CudaUnit& unit,
                                   uint32_t kv_head, uint32_t row) {
  const uint32_t row_count = unit.query_count * (p.query_heads / p.kv_heads);
  return p.scores + unit.first_score +
         (uint64_t{kv_head} * row_count + row) * ScorePitch(unit.token_count);
}

// Merged log-sum-exp of a row to base 2, for weights; infinite for a row that sees nothing, so that
// it gets no weight.
__device__ inline float WeightLse(const CudaAttentionParams& p, const CudaUnit& unit,
                                  uint32_t kv_head, uint32_t row) {
  const float lse = p.lse[TensorRow(p, unit, kv_head, row)];
  return isfinite(lse) ? lse * 1.44269504f : INFINITY;
}

// Natural log-sum-exp from a maximum and a sum to base 2; -inf for a row that sees nothing.
__device__ inline float LseOf(float max, float sum) {
  return sum > 0 ? (max + log2f(sum)) * 0.69314718f : -INFINITY;
}

}  // namespace turnkeep
