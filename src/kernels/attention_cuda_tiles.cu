// Units with many query rows, on tensor cores.
//
// Grid [work, kv_heads]; a block of 4 warps takes 64 query rows of a unit, a warp 16 of them, and
// all go over the unit's tokens together in tiles of 32: S = Q · Kᵀ and O += P · V by
// mma.m16n8k16 with float32 sums, P rounded to the storage type, online softmax to base 2 once a
// tile. Tiles come through shared memory by 16-byte cp.async, the next one while this one is
// computed; rows there are padded by 16 bytes, so that ldmatrix has no bank conflicts. Tokens past
// the unit's end are zeroes and unseen.
//
// Bytes: 2 · head_dim · 2 a token, KV head and 64 rows. Operations: 4 · head_dim a token and row.
#include "kernels/attention_cuda_device.cuh"

namespace turnkeep {
namespace {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kTileTokens = 32;
constexpr uint32_t kWarpRows = 16;
static_assert(kThreads / 32 * kWarpRows == kCudaTileRows, "a warp takes 16 rows");

__device__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes to shared memory; zeroes where `valid` is false.
__device__ void CopyAsync16(void* to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(bytes)
               : "memory");
}

__device__ void LoadMatrix4(uint32_t (&r)[4], const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(from))
               : "memory");
}
__device__ void LoadMatrix4Transposed(uint32_t (&r)[4], const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(from))
               : "memory");
}

// c += a · b, a of 16 × 16 by rows, b of 16 × 8 by columns. Lane 4 · g + t holds of c rows g and
// g + 8, columns 2t and 2t + 1.
template <class T>
__device__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ void MultiplyAdd<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ void MultiplyAdd<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <class T>
__device__ uint32_t Pack(float low, float high);
template <>
__device__ uint32_t Pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ uint32_t Pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <int kDim>
struct TileMemory {
  static constexpr uint32_t kPitch = kDim + 8;  // elements
  static constexpr uint32_t kTile = kTileTokens * kPitch;
  static constexpr uint32_t kBytes = 2 * (kCudaTileRows * kPitch + 4 * kTile);
};

// Keys and values of tokens [begin, begin + 32) on their way to shared memory.
template <class T, int kDim>
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
    CopyAsync16(keys + to, static_cast<const T*>(p.keys) + from, valid);
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

// Scores become weights below the new maximum; o and sum follow it. Rows g (half 0) and g + 8.
template <int kDim>
__device__ void Soften(const Visibility (&sees)[2], uint32_t begin, float scale_log2,
                       float (&s)[4][4], float (&max_score)[2], float (&sum)[2],
                       float (&o)[kDim / 8][4]) {
  const uint32_t column = begin + threadIdx.x % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = max_score[half];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        s[n][i] = sees[half].Sees(column + n * 8 + i % 2) ? s[n][i] * scale_log2 : -INFINITY;
        largest = fmaxf(largest, s[n][i]);
      }
    }
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

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads) ManyRows(CudaAttentionParams p, uint32_t first_work) {
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

  for (uint32_t i = threadIdx.x; i < kCudaTileRows * (kDim / 8); i += kThreads) {
    const uint32_t row = work.first_row + i / (kDim / 8);
    const uint32_t element = i % (kDim / 8) * 8;
    const bool valid = row < row_count;
    const uint64_t from = valid ? TensorRow(p, unit, kv_head, row) * kDim + element : 0;
    CopyAsync16(queries + i / (kDim / 8) * Memory::kPitch + element,
                static_cast<const T*>(p.query_rows) + from, valid);
  }
  LoadTile<T, kDim>(p, unit, kv_head, 0, tiles, tiles + Memory::kTile);
  asm volatile("cp.async.commit_group;" ::: "memory");

  const uint32_t first_row = work.first_row + warp * kWarpRows;
  const bool active = first_row < row_count;
  const uint32_t rows[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
  const Visibility sees[2] = {Visibility::Of(p, unit, rows[0]), Visibility::Of(p, unit, rows[1])};
  float max_score[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
  float o[kDim / 8][4] = {};

  for (uint32_t begin = 0, stage = 0; begin < unit.token_count; begin += kTileTokens, stage ^= 1) {
    T* const keys = tiles + stage * 2 * Memory::kTile;
    T* const next = tiles + (stage ^ 1) * 2 * Memory::kTile;
    if (begin + kTileTokens < unit.token_count)
      LoadTile<T, kDim>(p, unit, kv_head, begin + kTileTokens, next, next + Memory::kTile);
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 1;" ::: "memory");  // all but the one just begun
    __syncthreads();
    if (active) {
      float s[4][4];
      Scores<T, kDim>(queries + warp * kWarpRows * Memory::kPitch, keys, s);
      Soften<kDim>(sees, begin, p.scale_log2, s, max_score, sum, o);
      AddValues<T, kDim>(s, keys + Memory::kTile, o);
    }
    __syncthreads();  // before the tile is overwritten
  }
  asm volatile("cp.async.wait_all;" ::: "memory");

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half] + __shfl_xor_sync(0xFFFFFFFFu, sum[half], 1);
    total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
    if (rows[half] >= row_count) continue;
    const RowResult result = RowResult::Of(p, unit, kv_head, rows[half]);
    const float factor = total > 0 ? 1.0f / total : 0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(result.output + n * 8 + lane % 4 * 2) =
          make_float2(o[n][2 * half] * factor, o[n][2 * half + 1] * factor);
    }
    if (lane % 4 == 0) *result.lse = LseOf(max_score[half], total);
  }
}

template <class T, int kDim>
int LaunchManyRowsOf(const CudaAttentionParams& p, cudaStream_t stream) {
  const dim3 grid(p.work_begin[4] - p.work_begin[3], p.kv_heads);
  if (grid.x == 0) return cudaSuccess;
  constexpr uint32_t kBytes = TileMemory<kDim>::kBytes;
  const cudaError_t error = cudaFuncSetAttribute(
      ManyRows<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes));
  if (error != cudaSuccess) return error;
  ManyRows<T, kDim><<<grid, kThreads, kBytes, stream>>>(p, p.work_begin[3]);
  return cudaGetLastError();
}

template <class T>
int LaunchManyRowsOf(const CudaAttentionParams& p, cudaStream_t stream) {
  if (p.head_dim == 64) return LaunchManyRowsOf<T, 64>(p, stream);
  if (p.head_dim == 128) return LaunchManyRowsOf<T, 128>(p, stream);
  return LaunchManyRowsOf<T, 256>(p, stream);
}

}  // namespace

int LaunchManyRows(const CudaAttentionParams& params, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return params.is_bfloat16 ? LaunchManyRowsOf<__nv_bfloat16>(params, on)
                            : LaunchManyRowsOf<__half>(params, on);
}

}  // namespace turnkeep
