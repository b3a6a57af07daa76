// The body of the CUDA kernel that scatters rotated rows; otherwise as gather_cuda_body.h.
//
// Row r of a run is token r / heads, head r % heads. A block takes rows_at_once consecutive rows
// into shared memory, with the cosines and sines of the tokens they are of, rotates them there and
// scatters them. x' = x cos a - y sin a, y' = x sin a + y cos a, a = inv_freq · position in double
// precision, arithmetic in float32 (of float32 keys double), one rounding to the storage type at
// the end: kernels/rope.h, operation by operation.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/gather_cuda_body.h"

namespace turnkeep::cuda_body {

template <class Float>
struct Angle {
  Float cos;
  Float sin;
};

struct RotatePlace {
  uint32_t first_row = 0;
  uint32_t row_count = 0;
  uint32_t first_token = 0;  // that the block has angles of
  uint32_t token_count = 0;
};
// A row_count of 0: nothing to do.
TURNKEEP_DEVICE RotatePlace RotatePlaceOf(const CudaRotateBatch& b, uint32_t block,
                                          uint32_t run_index) {
  RotatePlace place;
  const uint32_t rows = b.move.runs[run_index].token_count * b.heads.divisor;
  place.first_row = block * b.rows_at_once;
  if (place.first_row >= rows) return place;
  const uint32_t left = rows - place.first_row;
  place.row_count = left < b.rows_at_once ? left : b.rows_at_once;
  place.first_token = b.heads.Quotient(place.first_row);
  place.token_count =
      b.heads.Quotient(place.first_row + place.row_count - 1) - place.first_token + 1;
  return place;
}

template <class Float>
TURNKEEP_DEVICE void MakeAngles(const CudaRotateBatch& b, const RotatePlace& place,
                                int64_t position, uint32_t thread, Angle<Float>* angles) {
  const uint32_t count = b.per_token != 0 ? place.token_count * b.pairs.divisor : b.pairs.divisor;
  for (uint32_t i = thread; i < count; i += kCudaMoveThreads) {
    uint32_t pair = 0;
    const uint32_t token = b.pairs.Split(i, &pair);
    const int64_t at = b.per_token != 0 ? position + place.first_token + token : position;
    double sine = 0;
    double cosine = 0;
    const double angle = static_cast<double>(b.inv_freq[pair]) * static_cast<double>(at);
#if defined(__CUDA_ARCH__)
    sincos(angle, &sine, &cosine);
#else
    sine = std::sin(angle);
    cosine = std::cos(angle);
#endif
    angles[i].cos = static_cast<Float>(cosine * b.scale);
    angles[i].sin = static_cast<Float>(sine * b.scale);
  }
}

// Between shared memory and the paged side, or from the dense side, in units of unit_bytes.
template <int kBytes, bool kLoad>
TURNKEEP_DEVICE void MoveRows(const CudaRotateBatch& b, const RotatePlace& place,
                              uint32_t run_index, uint32_t thread, uint8_t* rows) {
  const CudaMoveRun& run = b.move.runs[run_index];
  const uint32_t row_units = b.row_bytes / kBytes;
  auto* const shared = reinterpret_cast<Unit<kBytes>*>(rows);
  for (uint32_t i = thread; i < place.row_count * row_units; i += kCudaMoveThreads) {
    const uint32_t n = place.first_row * row_units + i;
    if (kLoad) {
      shared[i] = reinterpret_cast<const Unit<kBytes>*>(run.dense)[n];
    } else {
      uint32_t unit = 0;
      const uint32_t token = b.move.units_per_token.Split(n, &unit);
      *reinterpret_cast<Unit<kBytes>*>(b.move.base + TokenAt(b.move, run, token) +
                                       UnitAt(b.move, unit)) = shared[i];
    }
  }
}

template <bool kLoad>
TURNKEEP_DEVICE void MoveRows(const CudaRotateBatch& b, const RotatePlace& place,
                              uint32_t run_index, uint32_t thread, uint8_t* rows) {
  switch (b.move.unit_bytes) {
    case 16:
      return MoveRows<16, kLoad>(b, place, run_index, thread, rows);
    case 8:
      return MoveRows<8, kLoad>(b, place, run_index, thread, rows);
    case 4:
      return MoveRows<4, kLoad>(b, place, run_index, thread, rows);
    case 2:
      return MoveRows<2, kLoad>(b, place, run_index, thread, rows);
    default:
      return MoveRows<1, kLoad>(b, place, run_index, thread, rows);
  }
}

// Products and sums are rounded one by one, as on the CPU: the results are the same bits.
TURNKEEP_DEVICE float Difference(float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__)
  return __fsub_rn(__fmul_rn(a, b), __fmul_rn(c, d));
#else
  return a * b - c * d;
#endif
}
TURNKEEP_DEVICE float Sum(float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fmul_rn(a, b), __fmul_rn(c, d));
#else
  return a * b + c * d;
#endif
}
TURNKEEP_DEVICE double Difference(double a, double b, double c, double d) {
#if defined(__CUDA_ARCH__)
  return __dsub_rn(__dmul_rn(a, b), __dmul_rn(c, d));
#else
  return a * b - c * d;
#endif
}
TURNKEEP_DEVICE double Sum(double a, double b, double c, double d) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(__dmul_rn(a, b), __dmul_rn(c, d));
#else
  return a * b + c * d;
#endif
}

// Key: a storage type with Float, Bits, Load and Store.
template <class Key>
TURNKEEP_DEVICE void RotateRows(const CudaRotateBatch& b, const RotatePlace& place, uint32_t thread,
                                uint8_t* rows, const Angle<typename Key::Float>* angles) {
  using Float = typename Key::Float;
  auto* const elements = reinterpret_cast<typename Key::Bits*>(rows);
  const uint32_t dim = b.row_bytes / sizeof(typename Key::Bits);
  for (uint32_t i = thread; i < place.row_count * b.pairs.divisor; i += kCudaMoveThreads) {
    uint32_t pair = 0;
    const uint32_t row = b.pairs.Split(i, &pair);
    uint32_t at = pair;
    if (b.per_token != 0) {
      const uint32_t token = b.heads.Quotient(place.first_row + row) - place.first_token;
      at += token * b.pairs.divisor;
    }
    typename Key::Bits* const first = elements + row * dim + pair * b.pair_step;
    const Float x = Key::Load(first[0]);
    const Float y = Key::Load(first[b.pair_distance]);
    const Angle<Float> angle = angles[at];
    first[0] = Key::Store(Difference(x, angle.cos, y, angle.sin));
    first[b.pair_distance] = Key::Store(Sum(x, angle.sin, y, angle.cos));
  }
}

}  // namespace turnkeep::cuda_body
