// Units with many query rows, on tensor cores.
//
// Grid [work, kv_heads]; a block of 4 warps takes 64 query rows of a unit, a warp 16 of them, and
// all go over the unit's tokens together in tiles of 32: S = Q · Kᵀ and O += P · V by
// mma.m16n8k16 with float32 sums, P rounded to the storage type, online softmax to base 2 once a
// tile. Tiles come through shared memory by 16-byte cp.async, the next one while this one is
// computed; rows there are padded by 16 bytes, so that ldmatrix has no bank conflicts. Tokens past
// the unit's end are zeroes and unseen.
//
// Applying the weights of an earlier layer (Shared Attention, section 3) is the same without keys:
// P comes from kept scores, in the registers where the scores' product would have left it.
//
// Bytes: 2 · head_dim · 2 a token, KV head and 64 rows, and 4 a score that is kept. Operations:
// 4 · head_dim a token and row. Applying: half of the KV's bytes and of the operations, and 4 bytes
// a score.
#include "kernels/attention_cuda_device.cuh"
#include "kernels/attention_cuda_warp.cuh"

namespace turnkeep {
namespace {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kTileTokens = 32;
constexpr uint32_t kWarpRows = 16;
static_assert(kThreads / 32 * kWarpRows == kCudaTileRows, "a warp takes 16 rows");

template <int kDim>
struct TileMemory {
  static constexpr uint32_t kPitch = kDim + 8;  // elements
  static constexpr uint32_t kTile = kTileTokens * kPitch;
  static constexpr uint32_t kBytes = 2 * (kCudaTileRows * kPitch + 4 * kTile);
};

// Keys (unless kApply) and values of tokens [begin, begin + 32) on their way to shared memory.
template <class T, int kDim, bool kApply>
__device__ void LoadTile(const CudaAttentionParams& p, const CudaUnit& unit, uint32_t kv_head,
                         uint32_t begin, T* keys, T* values) {
  constexpr uint32_t kVectors = kDim / 8;
  for (uint32_t i = threadIdx.x; i < kTileTokens * kVectors; i += kThreads) {
    const uint32_t token = i / kVectors;
    const uint32_t element = i % kVectors * 8;
    const bool valid = begin + token < unit.token_count;
    const uint32_t slot = valid ? __ldg(p.slots + unit.first_slot + begin + token) : 0;
    const uint64_t from = valid ? TokenAt(p, kv_head, slot) + element : 0;
    const uint32_t to = token * TileMemory<kDim>::kPitch + element;
    if (!kApply) CopyAsync16(keys + to, static_cast<const T*>(p.keys) + from, valid);
    CopyAsync16(values + to, static_cast<const T*>(p.values) + from, valid);
  }
}

// s = Q · Kᵀ of the warp's 16 rows and the tile's 32 tokens.
template <class T, int kDim>
__device__ void Scores(const T* queries, const T* keys, float (&s)[4][4]) {
  constexpr uint32_t kPitch = TileMemory<kDim>::kPitch;
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] = 0;
  }
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    uint32_t a[4];
    LoadMatrix4(a, queries + lane % 16 * kPitch + k + lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      uint32_t b[4];
      LoadMatrix4(b, keys + (n * 8 + lane / 16 * 8 + lane % 8) * kPitch + k + lane / 8 % 2 * 8);
      MultiplyAdd<T>(s[n], a, b[0], b[1]);
      MultiplyAdd<T>(s[n + 1], a, b[2], b[3]);
    }
  }
}

// o += P · V.
template <class T, int kDim>
__device__ void AddValues(const float (&s)[4][4], const T* values, float (&o)[kDim / 8][4]) {
  constexpr uint32_t kPitch = TileMemory<kDim>::kPitch;
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint32_t a[4] = {Pack<T>(s[2 * k][0], s[2 * k][1]), Pack<T>(s[2 * k][2], s[2 * k][3]),
                           Pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]),
                           Pack<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t b[4];
      LoadMatrix4Transposed(b, values + (k * 16 + lane % 16) * kPitch + n * 8 + lane / 16 * 8);
      MultiplyAdd<T>(o[n], a, b[0], b[1]);
      MultiplyAdd<T>(o[n + 1], a, b[2], b[3]);
    }
  }
}

// Scaled to base 2, -inf where they are not to be seen. Rows g (half 0) and g + 8.
__device__ void HideScores(const Visibility (&sees)[2], uint32_t begin, float scale_log2,
                           float (&s)[4][4]) {
  const uint32_t column = begin + threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      s[n][i] = sees[i / 2].Sees(column + n * 8 + i % 2) ? s[n][i] * scale_log2 : -INFINITY;
  }
}

// Between the registers and the kept scores of the unit's rows `rows`. Those behind the unit's last
// row or token are -inf. Addresses are made here: held over the loop they would cost registers also
// where nothing is kept.
template <bool kLoad>
__device__ void MoveScores(const CudaAttentionParams& p, const CudaUnit& unit, uint32_t kv_head,
                           const uint32_t (&rows)[2], uint32_t begin, float (&s)[4][4]) {
  const uint32_t column = begin + threadIdx.x % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool valid = rows[half] < unit.query_count * (p.query_heads / p.kv_heads);
    float* const kept = valid ? RowScores(p, unit, kv_head, rows[half]) : nullptr;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      // The pitch is even: a pair is inside or outside as a whole.
      const bool inside = valid && column + n * 8 < ScorePitch(unit.token_count);
      auto* const at = reinterpret_cast<float2*>(kept + column + n * 8);
      if (kLoad) {
        const float2 pair = inside ? __ldg(at) : make_float2(-INFINITY, -INFINITY);
        s[n][2 * half] = pair.x;
        s[n][2 * half + 1] = pair.y;
      } else if (inside) {
        *at = make_float2(s[n][2 * half], s[n][2 * half + 1]);
      }
    }
  }
}

// Scores become weights of the whole.
__device__ void Weigh(const float (&lse)[2], float (&s)[4][4]) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] = exp2f(s[n][i] - lse[i / 2]);
  }
}

// Scores become weights below the new maximum; o and sum follow it.
template <int kDim>
__device__ void Soften(float (&s)[4][4], float (&max_score)[2], float (&sum)[2],
                       float (&o)[kDim / 8][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = max_score[half];
#pragma unroll
    for (int n = 0; n < 4; ++n) largest = fmaxf(largest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 2));
    const float base = largest == -INFINITY ? 0 : largest;
    const float keep = exp2f(max_score[half] - base);
    max_score[half] = largest;
    sum[half] *= keep;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      o[n][2 * half] *= keep;
      o[n][2 * half + 1] *= keep;
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        s[n][i] = exp2f(s[n][i] - base);
        sum[half] += s[n][i];
      }
    }
  }
}

// Left to itself (0), ptxas spills a register on sm_80 to have a seventh block on an SM.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kBlocksOfWeights64 = 6;
#else
constexpr int kBlocksOfWeights64 = 0;
#endif

template <class T, int kDim, bool kApply>
__global__ void __launch_bounds__(kThreads, kApply&& kDim == 64 ? kBlocksOfWeights64 : 0)
    ManyRows(CudaAttentionParams p, uint32_t first_work) {
  using Memory = TileMemory<kDim>;
  extern __shared__ uint4 shared_memory[];  // 16-byte aligned
  T* const queries = reinterpret_cast<T*>(shared_memory);
  T* const tiles = queries + kCudaTileRows * Memory::kPitch;  // [2][keys, values]

  const CudaWork work = p.work[first_work + blockIdx.x];
  const CudaUnit unit = p.units[work.unit];
  const uint32_t kv_head = blockIdx.y;
  const uint32_t row_count = unit.query_count * (p.query_heads / p.kv_heads);
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;

  for (uint32_t i = threadIdx.x; !kApply && i < kCudaTileRows * (kDim / 8); i += kThreads) {
    const uint32_t row = work.first_row + i / (kDim / 8);
    const uint32_t element = i % (kDim / 8) * 8;
    const bool valid = row < row_count;
    const uint64_t from = valid ? TensorRow(p, unit, kv_head, row) * kDim + element : 0;
    CopyAsync16(queries + i / (kDim / 8) * Memory::kPitch + element,
                static_cast<const T*>(p.query_rows) + from, valid);
  }
  LoadTile<T, kDim, kApply>(p, unit, kv_head, 0, tiles, tiles + Memory::kTile);
  CommitCopies();

  const uint32_t first_row = work.first_row + warp * kWarpRows;
  const bool active = first_row < row_count;
  const uint32_t rows[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
  const Visibility sees[2] = {Visibility::Of(p, unit, rows[0]), Visibility::Of(p, unit, rows[1])};
  float lse[2] = {INFINITY, INFINITY};
#pragma unroll
  for (int half = 0; half < 2 && kApply; ++half)
    if (rows[half] < row_count) lse[half] = WeightLse(p, unit, kv_head, rows[half]);
  float max_score[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
  float o[kDim / 8][4] = {};

  for (uint32_t begin = 0, stage = 0; begin < unit.token_count; begin += kTileTokens, stage ^= 1) {
    T* const keys = tiles + stage * 2 * Memory::kTile;
    T* const next = tiles + (stage ^ 1) * 2 * Memory::kTile;
    if (begin + kTileTokens < unit.token_count)
      LoadTile<T, kDim, kApply>(p, unit, kv_head, begin + kTileTokens, next, next + Memory::kTile);
    CommitCopies();
    float s[4][4];
    if (kApply) MoveScores<true>(p, unit, kv_head, rows, begin, s);
    WaitForAllButOne();
    __syncthreads();
    if (active) {
      if (kApply) {
        Weigh(lse, s);
      } else {
        Scores<T, kDim>(queries + warp * kWarpRows * Memory::kPitch, keys, s);
        HideScores(sees, begin, p.scale_log2, s);
        if (p.scores != nullptr) MoveScores<false>(p, unit, kv_head, rows, begin, s);
        Soften<kDim>(s, max_score, sum, o);
      }
      AddValues<T, kDim>(s, keys + Memory::kTile, o);
    }
    __syncthreads();  // before the tile is overwritten
  }
  WaitForCopies();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half] + __shfl_xor_sync(0xFFFFFFFFu, sum[half], 1);
    total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
    if (rows[half] >= row_count) continue;
    const RowResult result = RowResult::Of(p, unit, kv_head, rows[half]);
    const float factor = kApply ? 1.0f : total > 0 ? 1.0f / total : 0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(result.output + n * 8 + lane % 4 * 2) =
          make_float2(o[n][2 * half] * factor, o[n][2 * half + 1] * factor);
    }
    if (!kApply && lane % 4 == 0) *result.lse = LseOf(max_score[half], total);
  }
}

template <class T, int kDim, bool kApply>
int LaunchManyRowsOf(const CudaAttentionParams& p, cudaStream_t stream) {
  const dim3 grid(p.work_begin[4] - p.work_begin[3], p.kv_heads);
  if (grid.x == 0) return cudaSuccess;
  constexpr uint32_t kBytes = TileMemory<kDim>::kBytes;
  const cudaError_t error =
      cudaFuncSetAttribute(ManyRows<T, kDim, kApply>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(kBytes));
  if (error != cudaSuccess) return error;
  ManyRows<T, kDim, kApply><<<grid, kThreads, kBytes, stream>>>(p, p.work_begin[3]);
  return cudaGetLastError();
}

template <class T, bool kApply>
int LaunchManyRowsOf(const CudaAttentionParams& p, cudaStream_t stream) {
  if (p.head_dim == 64) return LaunchManyRowsOf<T, 64, kApply>(p, stream);
  if (p.head_dim == 128) return LaunchManyRowsOf<T, 128, kApply>(p, stream);
  return LaunchManyRowsOf<T, 256, kApply>(p, stream);
}

template <class T>
int LaunchManyRowsOf(const CudaAttentionParams& p, cudaStream_t stream) {
  return p.apply != 0 ? LaunchManyRowsOf<T, true>(p, stream)
                      : LaunchManyRowsOf<T, false>(p, stream);
}

}  // namespace

// Of float32 there are no such units.
int LaunchManyRows(const CudaAttentionParams& params, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return params.dtype == kCudaAttentionBFloat16 ? LaunchManyRowsOf<__nv_bfloat16>(params, on)
                                                : LaunchManyRowsOf<__half>(params, on);
}

}  // namespace turnkeep
