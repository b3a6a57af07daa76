#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/row_convert.cc"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3 | HWY_AVX3_DL)
#include <hwy/foreach_target.h>

#include "kernels/row_convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <hwy/highway.h>

#include "kernels/element.h"

HWY_BEFORE_NAMESPACE();
namespace turnkeep {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

#include "kernels/half_vectors.inc"

// Whole vectors of the row; returns how many elements that were.
template <class T>
uint32_t RowToFloats(const T* from, uint32_t count, float* to) {
  const Floats d;
  const auto n = static_cast<uint32_t>(hn::Lanes(d));
  uint32_t i = 0;
  for (; i + n <= count; i += n) hn::StoreU(LoadHalves(d, from + i), d, to + i);
  return i;
}

template <class T>
uint32_t RowFromFloats(const float* from, uint32_t count, T* to) {
  const Floats d;
  const auto n = static_cast<uint32_t>(hn::Lanes(d));
  uint32_t i = 0;
  for (; i + n <= count; i += n) StoreHalves(hn::LoadU(d, from + i), to + i);
  return i;
}

uint32_t HalvesToFloat(const std::byte* from, uint32_t count, float* to) {
  return RowToFloats(reinterpret_cast<const hwy::float16_t*>(from), count, to);
}
uint32_t FloatToHalves(const float* from, uint32_t count, std::byte* to) {
  return RowFromFloats(from, count, reinterpret_cast<hwy::float16_t*>(to));
}
uint32_t BrainsToFloat(const std::byte* from, uint32_t count, float* to) {
  return RowToFloats(reinterpret_cast<const hwy::bfloat16_t*>(from), count, to);
}
uint32_t FloatToBrains(const float* from, uint32_t count, std::byte* to) {
  return RowFromFloats(from, count, reinterpret_cast<hwy::bfloat16_t*>(to));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace turnkeep
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace turnkeep {

HWY_EXPORT(HalvesToFloat);
HWY_EXPORT(FloatToHalves);
HWY_EXPORT(BrainsToFloat);
HWY_EXPORT(FloatToBrains);

void RowToFloat(DType dtype, const std::byte* from, uint32_t count, float* to) {
  const uint32_t bytes = DTypeBytes(dtype);
  uint32_t done = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  if (dtype == DType::kFloat16) done = HWY_DYNAMIC_DISPATCH(HalvesToFloat)(from, count, to);
  if (dtype == DType::kBFloat16) done = HWY_DYNAMIC_DISPATCH(BrainsToFloat)(from, count, to);
  for (; done < count; ++done) to[done] = LoadElement(dtype, from + done * bytes);
}

void RowFromFloat(DType dtype, const float* from, uint32_t count, std::byte* to) {
  const uint32_t bytes = DTypeBytes(dtype);
  uint32_t done = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  if (dtype == DType::kFloat16) done = HWY_DYNAMIC_DISPATCH(FloatToHalves)(from, count, to);
  if (dtype == DType::kBFloat16) done = HWY_DYNAMIC_DISPATCH(FloatToBrains)(from, count, to);
  const float largest = dtype == DType::kFp8E4M3   ? 448.0f
                        : dtype == DType::kFp8E5M2 ? 57344.0f
                                                   : INFINITY;
  for (; done < count; ++done) {
    const float value = from[done];
    const bool past = std::fabs(value) > largest;  // false for a NaN
    StoreElement(dtype, past ? std::copysign(largest, value) : value, to + done * bytes);
  }
}

}  // namespace turnkeep
#endif  // HWY_ONCE
