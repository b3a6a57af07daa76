#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rotate_rows.cc"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3 | HWY_AVX3_DL)
#include <hwy/foreach_target.h>

#include "kernels/rotate_rows.h"

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace turnkeep {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

#include "kernels/half_vectors.inc"

// Compiled without contraction to fused multiply-adds: every instruction set, and the GPU, gives
// the same bits.
struct Rotated {
  FloatVector x, y;
};
HWY_INLINE Rotated Rotate(Floats d, FloatVector x, FloatVector y, const float* cos,
                          const float* sin) {
  const FloatVector c = hn::LoadU(d, cos);
  const FloatVector s = hn::LoadU(d, sin);
  return {hn::Sub(hn::Mul(x, c), hn::Mul(y, s)), hn::Add(hn::Mul(x, s), hn::Mul(y, c))};
}

// x and y half a row apart.
template <class T>
uint32_t RotateApart(const T* from, uint32_t pairs, const float* cos, const float* sin, T* to) {
  const Floats d;
  const auto n = static_cast<uint32_t>(hn::Lanes(d));
  uint32_t p = 0;
  for (; p + n <= pairs; p += n) {
    const Rotated r =
        Rotate(d, LoadHalves(d, from + p), LoadHalves(d, from + pairs + p), cos + p, sin + p);
    StoreHalves(r.x, to + p);
    StoreHalves(r.y, to + pairs + p);
  }
  return p;
}

// y behind its x.
#if HWY_TARGET == HWY_SCALAR
template <class T>
uint32_t RotateAdjacent(const T*, uint32_t, const float*, const float*, T*) {
  return 0;
}
#else
template <class T>
uint32_t RotateAdjacent(const T* from, uint32_t pairs, const float* cos, const float* sin, T* to) {
  const Floats d;
  const auto n = static_cast<uint32_t>(hn::Lanes(d));
  uint32_t p = 0;
  for (; p + n <= pairs; p += n) {
    const FloatVector low = LoadHalves(d, from + 2 * p);
    const FloatVector high = LoadHalves(d, from + 2 * p + n);
    const Rotated r =
        Rotate(d, hn::ConcatEven(d, high, low), hn::ConcatOdd(d, high, low), cos + p, sin + p);
    // Within blocks of four lanes; of two blocks the halves change places.
    const FloatVector lower = hn::InterleaveLower(d, r.x, r.y);
    const FloatVector upper = hn::InterleaveUpper(d, r.x, r.y);
    const bool blocks = n > 4;
    StoreHalves(blocks ? hn::ConcatLowerLower(d, upper, lower) : lower, to + 2 * p);
    StoreHalves(blocks ? hn::ConcatUpperUpper(d, upper, lower) : upper, to + 2 * p + n);
  }
  return p;
}
#endif

template <class T>
uint32_t RotateRow(RopePairing pairing, const std::byte* from, uint32_t pairs, const float* cos,
                   const float* sin, std::byte* to) {
  const auto* const row = reinterpret_cast<const T*>(from);
  auto* const rotated = reinterpret_cast<T*>(to);
  return pairing == RopePairing::kAdjacent ? RotateAdjacent(row, pairs, cos, sin, rotated)
                                           : RotateApart(row, pairs, cos, sin, rotated);
}

uint32_t RotateHalfRow(RopePairing pairing, const std::byte* from, uint32_t pairs, const float* cos,
                       const float* sin, std::byte* to) {
  return RotateRow<hwy::float16_t>(pairing, from, pairs, cos, sin, to);
}
uint32_t RotateBrainRow(RopePairing pairing, const std::byte* from, uint32_t pairs,
                        const float* cos, const float* sin, std::byte* to) {
  return RotateRow<hwy::bfloat16_t>(pairing, from, pairs, cos, sin, to);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace turnkeep
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace turnkeep {

HWY_EXPORT(RotateHalfRow);
HWY_EXPORT(RotateBrainRow);

uint32_t RotateHalves(DType dtype, RopePairing pairing, const std::byte* from, uint32_t pairs,
                      const float* cos, const float* sin, std::byte* to) {
  if (dtype == DType::kFloat16)
    return HWY_DYNAMIC_DISPATCH(RotateHalfRow)(pairing, from, pairs, cos, sin, to);
  if (dtype == DType::kBFloat16)
    return HWY_DYNAMIC_DISPATCH(RotateBrainRow)(pairing, from, pairs, cos, sin, to);
  return 0;
}

}  // namespace turnkeep
#endif  // HWY_ONCE
