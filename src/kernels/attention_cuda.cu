// Expanding a plan's pages, units with few query rows, and merging.
//
// Few rows (bytes bound): one block of 128 threads a unit and KV head, grid [work, kv_heads]. A
// token's row of head_dim 16-bit elements is read by head_dim / 8 lanes, 16 bytes each, so that a
// block holds 1024 / head_dim groups of lanes; group i takes tokens i·4 … i·4 + 3, then those
// 4 · groups further. Each keeps (max, sum, o) of its own and they are merged through shared
// memory. Bytes: 2 · head_dim · 2 a token and KV head, once for all rows of the unit.
#include "kernels/attention_cuda_device.cuh"

namespace turnkeep {
namespace {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kTokensAtOnce = 4;  // a group of lanes has 8 loads of 16 bytes under way

// Grid [units]. slots[first_slot + t] of every token t.
__global__ void ExpandSlots(CudaAttentionParams p) {
  const CudaUnit unit = p.units[blockIdx.x];
  uint64_t at = unit.first_slot;
  for (uint32_t s = 0; s < unit.segment_count; ++s) {
    const CudaSegment segment = p.segments[unit.first_segment + s];
    for (uint32_t t = threadIdx.x; t < segment.token_count; t += blockDim.x) {
      const uint32_t token = segment.offset + t;
      p.slots[at + t] = p.pages[segment.first_page + token / p.page_tokens] * p.page_tokens +
                        token % p.page_tokens;
    }
    at += segment.token_count;
  }
}

template <class T>
__device__ void Unpack(const uint4& from, float* to) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = ToFloats<T>(words[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}

template <class T, int kDim, int kRows>
__global__ void __launch_bounds__(kThreads) FewRows(CudaAttentionParams p, uint32_t first_work) {
  constexpr uint32_t kLanes = kDim / 8;
  constexpr uint32_t kGroups = kThreads / kLanes;
  __shared__ float shared_output[kRows][kGroups][kDim];
  __shared__ float shared_max[kRows][kGroups];
  __shared__ float shared_sum[kRows][kGroups];

  const CudaUnit unit = p.units[p.work[first_work + blockIdx.x].unit];
  const uint32_t kv_head = blockIdx.y;
  const uint32_t group = threadIdx.x / kLanes;
  const uint32_t lane = threadIdx.x % kLanes;
  const uint32_t row_count = unit.query_count * (p.query_heads / p.kv_heads);

  float q[kRows][8];
  float o[kRows][8];
  float max_score[kRows];
  float sum[kRows];
  Visibility sees[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sees[r] = Visibility::Of(p, unit, r);
    max_score[r] = -INFINITY;
    sum[r] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) q[r][i] = o[r][i] = 0;
    if (r >= row_count) continue;
    const T* const from =
        static_cast<const T*>(p.query_rows) + TensorRow(p, unit, kv_head, r) * kDim + lane * 8;
    Unpack<T>(*reinterpret_cast<const uint4*>(from), q[r]);
#pragma unroll
    for (int i = 0; i < 8; ++i) q[r][i] *= p.scale_log2;
  }

  const uint32_t* const slots = p.slots + unit.first_slot;
  // All lanes of a warp stay in the loop together, for the shuffles.
  for (uint32_t base = 0; base < unit.token_count; base += kGroups * kTokensAtOnce) {
    const uint32_t first = base + group * kTokensAtOnce;
    uint4 keys[kTokensAtOnce];
    uint4 values[kTokensAtOnce];
#pragma unroll
    for (int t = 0; t < kTokensAtOnce; ++t) {
      keys[t] = values[t] = make_uint4(0, 0, 0, 0);
      if (first + t >= unit.token_count) continue;
      const uint64_t at = TokenAt(p, kv_head, __ldg(slots + first + t)) + lane * 8;
      keys[t] = __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(p.keys) + at));
      values[t] = __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(p.values) + at));
    }
    float scores[kRows][kTokensAtOnce];
#pragma unroll
    for (int t = 0; t < kTokensAtOnce; ++t) {
      float k[8];
      Unpack<T>(keys[t], k);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float dot = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) dot = fmaf(q[r][i], k[i], dot);
#pragma unroll
        for (int step = kLanes / 2; step > 0; step /= 2)
          dot += __shfl_xor_sync(0xFFFFFFFFu, dot, step);
        scores[r][t] = sees[r].Sees(first + t) ? dot : -INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float largest = max_score[r];
#pragma unroll
      for (int t = 0; t < kTokensAtOnce; ++t) largest = fmaxf(largest, scores[r][t]);
      const float base_score = largest == -INFINITY ? 0 : largest;
      const float keep = exp2f(max_score[r] - base_score);
      max_score[r] = largest;
      sum[r] *= keep;
#pragma unroll
      for (int i = 0; i < 8; ++i) o[r][i] *= keep;
#pragma unroll
      for (int t = 0; t < kTokensAtOnce; ++t) {
        scores[r][t] = exp2f(scores[r][t] - base_score);
        sum[r] += scores[r][t];
      }
    }
#pragma unroll
    for (int t = 0; t < kTokensAtOnce; ++t) {
      float v[8];
      Unpack<T>(values[t], v);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < 8; ++i) o[r][i] = fmaf(scores[r][t], v[i], o[r][i]);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < 8; ++i) shared_output[r][group][lane * 8 + i] = o[r][i];
    if (lane == 0) {
      shared_max[r][group] = max_score[r];
      shared_sum[r][group] = sum[r];
    }
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < kRows * kDim; i += kThreads) {
    const uint32_t r = i / kDim;
    if (r >= row_count) break;
    float largest = -INFINITY;
    for (uint32_t g = 0; g < kGroups; ++g) largest = fmaxf(largest, shared_max[r][g]);
    float total = 0;
    float value = 0;
    for (uint32_t g = 0; g < kGroups; ++g) {
      const float weight = shared_max[r][g] == -INFINITY ? 0 : exp2f(shared_max[r][g] - largest);
      total = fmaf(weight, shared_sum[r][g], total);
      value = fmaf(weight, shared_output[r][g][i % kDim], value);
    }
    const RowResult result = RowResult::Of(p, unit, kv_head, r);
    result.output[i % kDim] = total > 0 ? value / total : 0;
    if (i % kDim == 0) *result.lse = LseOf(largest, total);
  }
}

// Grid [rows, query_heads], head_dim threads. Natural logarithms.
__global__ void Merge(CudaAttentionParams p) {
  const uint32_t begin = p.merge_begin[blockIdx.x];
  const uint32_t end = p.merge_begin[blockIdx.x + 1];
  if (begin == end) return;  // written directly
  const uint32_t head = blockIdx.y;
  float largest = -INFINITY;
  for (uint32_t i = begin; i < end; ++i)
    largest = fmaxf(largest, p.partial_lse[uint64_t{p.merge_list[i]} * p.query_heads + head]);
  float sum = 0;
  float value = 0;
  for (uint32_t i = begin; i < end && largest != -INFINITY; ++i) {
    const uint64_t at = uint64_t{p.merge_list[i]} * p.query_heads + head;
    const float weight = expf(p.partial_lse[at] - largest);
    sum += weight;
    value = fmaf(weight, p.partial_output[at * p.head_dim + threadIdx.x], value);
  }
  const uint64_t at = uint64_t{blockIdx.x} * p.query_heads + head;
  p.output[at * p.head_dim + threadIdx.x] = sum > 0 ? value / sum : 0;
  if (threadIdx.x == 0) p.lse[at] = sum > 0 ? largest + logf(sum) : -INFINITY;
}

template <class T, int kDim>
int LaunchFewRowsOf(const CudaAttentionParams& p, cudaStream_t stream) {
  const auto grid = [&](int kind) {
    return dim3(p.work_begin[kind + 1] - p.work_begin[kind], p.kv_heads);
  };
  if (grid(0).x > 0) FewRows<T, kDim, 1><<<grid(0), kThreads, 0, stream>>>(p, p.work_begin[0]);
  if (grid(1).x > 0) FewRows<T, kDim, 2><<<grid(1), kThreads, 0, stream>>>(p, p.work_begin[1]);
  if (grid(2).x > 0) FewRows<T, kDim, 4><<<grid(2), kThreads, 0, stream>>>(p, p.work_begin[2]);
  return cudaGetLastError();
}

template <class T>
int LaunchFewRowsOf(const CudaAttentionParams& p, cudaStream_t stream) {
  if (p.head_dim == 64) return LaunchFewRowsOf<T, 64>(p, stream);
  if (p.head_dim == 128) return LaunchFewRowsOf<T, 128>(p, stream);
  return LaunchFewRowsOf<T, 256>(p, stream);
}

}  // namespace

int LaunchExpandSlots(const CudaAttentionParams& params, void* stream) {
  if (params.unit_count == 0) return cudaSuccess;
  ExpandSlots<<<params.unit_count, 128, 0, static_cast<cudaStream_t>(stream)>>>(params);
  return cudaGetLastError();
}

int LaunchFewRows(const CudaAttentionParams& params, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return params.is_bfloat16 ? LaunchFewRowsOf<__nv_bfloat16>(params, on)
                            : LaunchFewRowsOf<__half>(params, on);
}

int LaunchMerge(const CudaAttentionParams& params, void* stream) {
  if (params.row_count == 0) return cudaSuccess;
  Merge<<<dim3(params.row_count, params.query_heads), params.head_dim, 0,
          static_cast<cudaStream_t>(stream)>>>(params);
  return cudaGetLastError();
}

}  // namespace turnkeep
