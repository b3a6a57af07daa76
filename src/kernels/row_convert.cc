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

using Floats = hn::CappedTag<float, 8>;

// Whole vectors of the row; returns how many elements that were.
uint32_t HalvesToFloat(const uint16_t* from, uint32_t count, float* to) {
  const Floats d;
  const hn::Rebind<hwy::float16_t, Floats> dh;
  const auto n = static_cast<uint32_t>(hn::Lanes(d));
  uint32_t i = 0;
  for (; i + n <= count; i += n) {
    const auto* const at = reinterpret_cast<const hwy::float16_t*>(from + i);
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(dh, at)), d, to + i);
  }
  return i;
}

uint32_t FloatToHalves(const float* from, uint32_t count, uint16_t* to) {
  const Floats d;
  const hn::Rebind<hwy::float16_t, Floats> dh;
  const auto n = static_cast<uint32_t>(hn::Lanes(d));
  uint32_t i = 0;
  for (; i + n <= count; i += n) {
    auto* const at = reinterpret_cast<hwy::float16_t*>(to + i);
    hn::StoreU(hn::DemoteTo(dh, hn::LoadU(d, from + i)), dh, at);
  }
  return i;
}

uint32_t Brains(const uint16_t* from, uint32_t count, float* to) {
  const Floats d;
  const hn::Rebind<hwy::bfloat16_t, Floats> db;
  const auto n = static_cast<uint32_t>(hn::Lanes(d));
  uint32_t i = 0;
  for (; i + n <= count; i += n) {
    const auto* const at = reinterpret_cast<const hwy::bfloat16_t*>(from + i);
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(db, at)), d, to + i);
  }
  return i;
}

// Highway's own conversion to bfloat16 cuts off; this one rounds to nearest, ties to even.
uint32_t FloatToBrains(const float* from, uint32_t count, uint16_t* to) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> du;
  const hn::Rebind<uint16_t, Floats> dh;
  const auto n = static_cast<uint32_t>(hn::Lanes(d));
  uint32_t i = 0;
  for (; i + n <= count; i += n) {
    const auto value = hn::LoadU(d, from + i);
    const auto bits = hn::BitCast(du, value);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd);
    // A NaN keeps its top bits and stays quiet.
    const auto nan = hn::Or(bits, hn::Set(du, 0x400000));
    const auto is_nan = hn::RebindMask(du, hn::IsNaN(value));
    const auto top = hn::ShiftRight<16>(hn::IfThenElse(is_nan, nan, rounded));
    hn::StoreU(hn::TruncateTo(dh, top), dh, to + i);
  }
  return i;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace turnkeep
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace turnkeep {

HWY_EXPORT(HalvesToFloat);
HWY_EXPORT(FloatToHalves);
HWY_EXPORT(Brains);
HWY_EXPORT(FloatToBrains);

void RowToFloat(DType dtype, const std::byte* from, uint32_t count, float* to) {
  const uint32_t bytes = DTypeBytes(dtype);
  uint32_t done = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  if (dtype == DType::kFloat16)
    done = HWY_DYNAMIC_DISPATCH(HalvesToFloat)(reinterpret_cast<const uint16_t*>(from), count, to);
  if (dtype == DType::kBFloat16)
    done = HWY_DYNAMIC_DISPATCH(Brains)(reinterpret_cast<const uint16_t*>(from), count, to);
  for (; done < count; ++done) to[done] = LoadElement(dtype, from + done * bytes);
}

void RowFromFloat(DType dtype, const float* from, uint32_t count, std::byte* to) {
  const uint32_t bytes = DTypeBytes(dtype);
  uint32_t done = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  if (dtype == DType::kFloat16)
    done = HWY_DYNAMIC_DISPATCH(FloatToHalves)(from, count, reinterpret_cast<uint16_t*>(to));
  if (dtype == DType::kBFloat16)
    done = HWY_DYNAMIC_DISPATCH(FloatToBrains)(from, count, reinterpret_cast<uint16_t*>(to));
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
