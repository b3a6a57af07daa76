// Expanding a plan's pages, units with few query rows, and merging.
//
// Few rows (bytes bound): one block of 128 threads a unit and KV head, grid [work, kv_heads]. A
// token's row of head_dim 16-bit elements is read by head_dim / 8 lanes, 16 bytes each, so that a
// block holds 1024 / head_dim groups of lanes; group i takes tokens i·4 … i·4 + 3, then those
// 4 · groups further. Each keeps (max, sum, o) of its own and they are merged through shared
// memory. Bytes: 2 · head_dim · 2 a token and KV head, once for all rows of the unit; of float32,
// which has no other kernel, twice that for every four rows.
//
// Applying the weights of an earlier layer (Shared Attention, section 3) reads values and 4 bytes a
// kept score, and no keys.
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

// Eight elements of a row, as they lie in memory: one load of 16 bytes, of float32 two.
template <class T>
struct Raw {
  uint4 words[sizeof(T) / 2];

  __device__ static Raw Zero() {
    Raw raw;
#pragma unroll
    for (uint4& word : raw.words) word = make_uint4(0, 0, 0, 0);
    return raw;
  }
  __device__ static Raw Load(const T* from) {
    Raw raw;
#pragma unroll
    for (int i = 0; i < sizeof(T) / 2; ++i)
      raw.words[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
    return raw;
  }
};

template <class T>
__device__ void Unpack(const Raw<T>& from, float* to) {
  const uint32_t words[4] = {from.words[0].x, from.words[0].y, from.words[0].z, from.words[0].w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = ToFloats<T>(words[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}
template <>
__device__ void Unpack<float>(const Raw<float>& from, float* to) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    to[4 * i] = __uint_as_float(from.words[i].x);
    to[4 * i + 1] = __uint_as_float(from.words[i].y);
    to[4 * i + 2] = __uint_as_float(from.words[i].z);
    to[4 * i + 3] = __uint_as_float(from.words[i].w);
  }
}

// Groups' results of the block's rows become the unit's. `kApply`: they are sums already weighted.
template <int kDim, int kRows, bool kApply>
struct GroupMemory {
  static constexpr uint32_t kGroups = kThreads / (kDim / 8);
  float output[kRows][kGroups][kDim];
  float max[kRows][kGroups];
  float sum[kRows][kGroups];

  __device__ void Write(const CudaAttentionParams& p, const CudaUnit& unit, uint32_t kv_head,
                        uint32_t first_row, uint32_t row_count) const {
    for (uint32_t i = threadIdx.x; i < kRows * kDim; i += kThreads) {
      const uint32_t r = i / kDim;
      if (first_row + r >= row_count) break;
      float largest = -INFINITY;
      for (uint32_t g = 0; g < kGroups && !kApply; ++g) largest = fmaxf(largest, max[r][g]);
      float total = 0;
      float value = 0;
      for (uint32_t g = 0; g < kGroups; ++g) {
        float weight = 1;
        if (!kApply) {
          weight = max[r][g] == -INFINITY ? 0 : exp2f(max[r][g] - largest);
          total = fmaf(weight, sum[r][g], total);
        }
        value = fmaf(weight, output[r][g][i % kDim], value);
      }
      const RowResult result = RowResult::Of(p, unit, kv_head, first_row + r);
      if (kApply) {
        result.output[i % kDim] = value;
        continue;
      }
      result.output[i % kDim] = total > 0 ? value / total : 0;
      if (i % kDim == 0) *result.lse = LseOf(largest, total);
    }
  }
};

// Left to itself (0), ptxas spills a register on sm_80 to have a seventh block on an SM.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kBlocksOfOneRow = 6;
#else
constexpr int kBlocksOfOneRow = 0;
#endif

// Up to kRows rows of a unit from the work's first row on.
template <class T, int kDim, int kRows, bool kApply>
__global__ void __launch_bounds__(kThreads, kRows == 1 && !kApply ? kBlocksOfOneRow : 0)
    FewRows(CudaAttentionParams p, uint32_t first_work) {
  constexpr uint32_t kLanes = kDim / 8;
  constexpr uint32_t kGroups = kThreads / kLanes;
  __shared__ GroupMemory<kDim, kRows, kApply> shared;

  const CudaWork work = p.work[first_work + blockIdx.x];
  const CudaUnit unit = p.units[work.unit];
  const uint32_t kv_head = blockIdx.y;
  const uint32_t group = threadIdx.x / kLanes;
  const uint32_t lane = threadIdx.x % kLanes;
  const uint32_t row_count = unit.query_count * (p.query_heads / p.kv_heads);

  float q[kRows][8];
  float o[kRows][8];
  float max_score[kRows];  // kApply: the log-sum-exp
  float sum[kRows];
  Visibility sees[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const uint32_t row = work.first_row + r;
    sees[r] = Visibility::Of(p, unit, row);
    max_score[r] = kApply ? INFINITY : -INFINITY;
    sum[r] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) q[r][i] = o[r][i] = 0;
    if (row >= row_count) continue;
    if (kApply) {
      max_score[r] = WeightLse(p, unit, kv_head, row);
      continue;
    }
    Unpack<T>(Raw<T>::Load(static_cast<const T*>(p.query_rows) +
                           TensorRow(p, unit, kv_head, row) * kDim + lane * 8),
              q[r]);
#pragma unroll
    for (int i = 0; i < 8; ++i) q[r][i] *= p.scale_log2;
  }

  const uint32_t* const slots = p.slots + unit.first_slot;
  // All lanes of a warp stay in the loop together, for the shuffles.
  for (uint32_t base = 0; base < unit.token_count; base += kGroups * kTokensAtOnce) {
    const uint32_t first = base + group * kTokensAtOnce;
    Raw<T> keys[kTokensAtOnce];
    Raw<T> values[kTokensAtOnce];
    float scores[kRows][kTokensAtOnce];
#pragma unroll
    for (int t = 0; t < kTokensAtOnce; ++t) {
      keys[t] = values[t] = Raw<T>::Zero();
      if (first + t >= unit.token_count) continue;
      const uint64_t at = TokenAt(p, kv_head, __ldg(slots + first + t)) + lane * 8;
      if (!kApply) keys[t] = Raw<T>::Load(static_cast<const T*>(p.keys) + at);
      values[t] = Raw<T>::Load(static_cast<const T*>(p.values) + at);
    }
#pragma unroll
    for (int r = 0; r < kRows && kApply; ++r) {
      float4 four = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      if (work.first_row + r < row_count && first < unit.token_count)
        four = __ldg(reinterpret_cast<const float4*>(
            RowScores(p, unit, kv_head, work.first_row + r) + first));
      scores[r][0] = exp2f(four.x - max_score[r]);
      scores[r][1] = exp2f(four.y - max_score[r]);
      scores[r][2] = exp2f(four.z - max_score[r]);
      scores[r][3] = exp2f(four.w - max_score[r]);
    }
#pragma unroll
    for (int t = 0; t < kTokensAtOnce && !kApply; ++t) {
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
    for (int r = 0; r < kRows && !kApply; ++r) {
      if (p.scores != nullptr && lane == 0 && first < unit.token_count &&
          work.first_row + r < row_count)
        // By name, for the compiler would store the four one by one.
        __stcg(reinterpret_cast<float4*>(RowScores(p, unit, kv_head, work.first_row + r) + first),
               make_float4(scores[r][0], scores[r][1], scores[r][2], scores[r][3]));
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
    for (int i = 0; i < 8; ++i) shared.output[r][group][lane * 8 + i] = o[r][i];
    if (lane == 0) {
      shared.max[r][group] = max_score[r];
      shared.sum[r][group] = sum[r];
    }
  }
  __syncthreads();
  shared.Write(p, unit, kv_head, work.first_row, row_count);
}

// Grid [rows, query_heads], head_dim threads. Natural logarithms.
__global__ void Merge(CudaAttentionParams p) {
  const uint32_t begin = p.merge_begin[blockIdx.x];
  const uint32_t end = p.merge_begin[blockIdx.x + 1];
  if (begin == end) return;  // written directly
  const uint32_t head = blockIdx.y;
  const uint64_t at = uint64_t{blockIdx.x} * p.query_heads + head;
  float* const output = p.output + at * p.head_dim + threadIdx.x;
  if (p.apply != 0) {  // the parts have the weights of the whole already
    float value = 0;
    for (uint32_t i = begin; i < end; ++i)
      value += p.partial_output[(uint64_t{p.merge_list[i]} * p.query_heads + head) * p.head_dim +
                                threadIdx.x];
    *output = value;
    return;
  }
  float largest = -INFINITY;
  for (uint32_t i = begin; i < end; ++i)
    largest = fmaxf(largest, p.partial_lse[uint64_t{p.merge_list[i]} * p.query_heads + head]);
  float sum = 0;
  float value = 0;
  for (uint32_t i = begin; i < end && largest != -INFINITY; ++i) {
    const uint64_t part = uint64_t{p.merge_list[i]} * p.query_heads + head;
    const float weight = expf(p.partial_lse[part] - largest);
    sum += weight;
    value = fmaf(weight, p.partial_output[part * p.head_dim + threadIdx.x], value);
  }
  *output = sum > 0 ? value / sum : 0;
  if (threadIdx.x == 0) p.lse[at] = sum > 0 ? largest + logf(sum) : -INFINITY;
}

// Work of `kind` by a kernel of kRows rows.
template <class T, int kDim, int kRows, bool kApply>
void LaunchKind(const CudaAttentionParams& p, int kind, cudaStream_t stream) {
  const dim3 grid(p.work_begin[kind + 1] - p.work_begin[kind], p.kv_heads);
  if (grid.x > 0)
    FewRows<T, kDim, kRows, kApply><<<grid, kThreads, 0, stream>>>(p, p.work_begin[kind]);
}

// Few instantiations: what is rare takes the kernel of four rows.
template <class T, int kDim>
int LaunchFewRowsOf(const CudaAttentionParams& p, cudaStream_t stream) {
  constexpr bool kOnlyFour = sizeof(T) == 4;
  if (p.apply != 0) {
    LaunchKind<T, kDim, kOnlyFour ? 4 : 1, true>(p, 0, stream);
    LaunchKind<T, kDim, 4, true>(p, 1, stream);
    LaunchKind<T, kDim, 4, true>(p, 2, stream);
  } else {
    LaunchKind<T, kDim, kOnlyFour ? 4 : 1, false>(p, 0, stream);
    LaunchKind<T, kDim, kOnlyFour ? 4 : 2, false>(p, 1, stream);
    LaunchKind<T, kDim, 4, false>(p, 2, stream);
  }
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
  if (params.dtype == kCudaAttentionFloat32) return LaunchFewRowsOf<float>(params, on);
  return params.dtype == kCudaAttentionBFloat16 ? LaunchFewRowsOf<__nv_bfloat16>(params, on)
                                                : LaunchFewRowsOf<__half>(params, on);
}

int LaunchMerge(const CudaAttentionParams& params, void* stream) {
  if (params.row_count == 0) return cudaSuccess;
  Merge<<<dim3(params.row_count, params.query_heads), params.head_dim, 0,
          static_cast<cudaStream_t>(stream)>>>(params);
  return cudaGetLastError();
}

}  // namespace turnkeep
