// Gather and scatter on CUDA: the kernels around the bodies of gather_cuda_body.h, and the storage
// types that are rotated.
//
// Bytes: every element is read once and written once, 2 · heads · dim · element_bytes a token, so
// the floor is a copy on the device. Rotation adds the angles' arithmetic, in double precision
// once a token and pair, and none in bytes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/gather_cuda_body.h"
#include "kernels/rotate_cuda_body.h"

namespace turnkeep {
namespace {

// Bits are converted as kernels/row_convert.h does: to nearest, ties to even, fp8 and int8
// saturate.
struct KeyFloat32 {
  using Float = double;
  using Bits = float;
  __device__ static double Load(float bits) { return bits; }
  __device__ static float Store(double value) { return __double2float_rn(value); }
};
struct KeyFloat16 {
  using Float = float;
  using Bits = __half;
  __device__ static float Load(__half bits) { return __half2float(bits); }
  __device__ static __half Store(float value) { return __float2half_rn(value); }
};
struct KeyBFloat16 {
  using Float = float;
  using Bits = __nv_bfloat16;
  __device__ static float Load(__nv_bfloat16 bits) { return __bfloat162float(bits); }
  __device__ static __nv_bfloat16 Store(float value) { return __float2bfloat16_rn(value); }
};
template <__nv_fp8_interpretation_t kKind>
struct KeyFp8 {
  using Float = float;
  using Bits = __nv_fp8_storage_t;
  __device__ static float Load(__nv_fp8_storage_t bits) {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(bits, kKind)));
  }
  __device__ static __nv_fp8_storage_t Store(float value) {
    return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, kKind);
  }
};
struct KeyInt8 {
  using Float = float;
  using Bits = signed char;
  __device__ static float Load(signed char bits) { return bits; }
  __device__ static signed char Store(float value) {
    return static_cast<signed char>(max(-128, min(127, __float2int_rn(value))));  // a NaN: 0
  }
};

template <int kBytes>
__global__ void __launch_bounds__(kCudaMoveThreads) Move(const __grid_constant__ CudaMoveBatch b) {
  cuda_body::Move<kBytes>(b, blockIdx.x, blockIdx.y, threadIdx.x);
}

template <int kBytes>
__global__ void __launch_bounds__(kCudaMoveThreads)
    Transpose(const __grid_constant__ CudaTransposeBatch b) {
  __shared__ cuda_body::TransposeTile<kBytes> tile;
  if (b.move.to_dense != 0) {
    cuda_body::TransposePaged<kBytes, true>(b, blockIdx.x, blockIdx.y, threadIdx.x, &tile);
    __syncthreads();
    cuda_body::TransposeDense<kBytes, false>(b, blockIdx.x, blockIdx.y, threadIdx.x, &tile);
  } else {
    cuda_body::TransposeDense<kBytes, true>(b, blockIdx.x, blockIdx.y, threadIdx.x, &tile);
    __syncthreads();
    cuda_body::TransposePaged<kBytes, false>(b, blockIdx.x, blockIdx.y, threadIdx.x, &tile);
  }
}

template <class Key>
__device__ void RotateAs(const CudaRotateBatch& b, const cuda_body::RotatePlace& place,
                         uint8_t* rows) {
  auto* const angles =
      reinterpret_cast<cuda_body::Angle<typename Key::Float>*>(rows + b.angles_offset);
  cuda_body::MakeAngles(b, place, b.move.runs[blockIdx.y].position, threadIdx.x, angles);
  __syncthreads();
  cuda_body::RotateRows<Key>(b, place, threadIdx.x, rows, angles);
}

__global__ void __launch_bounds__(kCudaMoveThreads)
    Rotate(const __grid_constant__ CudaRotateBatch b) {
  extern __shared__ uint4 rows_and_angles[];  // 16-byte aligned
  auto* const rows = reinterpret_cast<uint8_t*>(rows_and_angles);
  const cuda_body::RotatePlace place = cuda_body::RotatePlaceOf(b, blockIdx.x, blockIdx.y);
  if (place.row_count == 0) return;
  cuda_body::MoveRows<true>(b, place, blockIdx.y, threadIdx.x, rows);
  switch (b.key_type) {  // the same for all threads
    case kCudaFloat32:
      RotateAs<KeyFloat32>(b, place, rows);
      break;
    case kCudaFloat16:
      RotateAs<KeyFloat16>(b, place, rows);
      break;
    case kCudaBFloat16:
      RotateAs<KeyBFloat16>(b, place, rows);
      break;
    case kCudaFp8E4M3:
      RotateAs<KeyFp8<__NV_E4M3>>(b, place, rows);
      break;
    case kCudaFp8E5M2:
      RotateAs<KeyFp8<__NV_E5M2>>(b, place, rows);
      break;
    default:
      RotateAs<KeyInt8>(b, place, rows);
  }
  __syncthreads();
  cuda_body::MoveRows<false>(b, place, blockIdx.y, threadIdx.x, rows);
}

}  // namespace

int LaunchMove(const CudaMoveBatch& batch, uint32_t blocks, void* stream) {
  const dim3 grid(blocks, batch.run_count);
  const auto on = static_cast<cudaStream_t>(stream);
  switch (batch.unit_bytes) {
    case 16:
      Move<16><<<grid, kCudaMoveThreads, 0, on>>>(batch);
      break;
    case 8:
      Move<8><<<grid, kCudaMoveThreads, 0, on>>>(batch);
      break;
    case 4:
      Move<4><<<grid, kCudaMoveThreads, 0, on>>>(batch);
      break;
    case 2:
      Move<2><<<grid, kCudaMoveThreads, 0, on>>>(batch);
      break;
    default:
      Move<1><<<grid, kCudaMoveThreads, 0, on>>>(batch);
  }
  return cudaGetLastError();
}

int LaunchTranspose(const CudaTransposeBatch& batch, uint32_t blocks, void* stream) {
  const dim3 grid(blocks, batch.move.run_count);
  const auto on = static_cast<cudaStream_t>(stream);
  switch (batch.move.unit_bytes) {
    case 4:
      Transpose<4><<<grid, kCudaMoveThreads, 0, on>>>(batch);
      break;
    case 2:
      Transpose<2><<<grid, kCudaMoveThreads, 0, on>>>(batch);
      break;
    default:
      Transpose<1><<<grid, kCudaMoveThreads, 0, on>>>(batch);
  }
  return cudaGetLastError();
}

int LaunchRotate(const CudaRotateBatch& batch, uint32_t blocks, void* stream) {
  Rotate<<<dim3(blocks, batch.move.run_count), kCudaMoveThreads, batch.shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(batch);
  return cudaGetLastError();
}

}  // namespace turnkeep
