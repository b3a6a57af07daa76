#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/stream_rows.cc"
// Half a cache line a store is as good as a whole one.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3 | HWY_AVX3_DL)
#include <hwy/foreach_target.h>

#include "kernels/stream_rows.h"

#include <hwy/cache_control.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace turnkeep {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

void CopyRows(const std::byte* from, uint64_t from_stride, uint32_t rows, uint64_t row_bytes,
              std::byte* to, uint64_t to_stride) {
  const hn::CappedTag<uint8_t, 32> d;
  const size_t n = hn::Lanes(d);
  for (uint32_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    const auto* const source = reinterpret_cast<const uint8_t*>(from);
    auto* const target = reinterpret_cast<uint8_t*>(to);
    for (uint64_t i = 0; i < row_bytes; i += n) hn::Stream(hn::LoadU(d, source + i), d, target + i);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace turnkeep
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace turnkeep {

HWY_EXPORT(CopyRows);

void StreamRows(const std::byte* from, uint64_t from_stride, uint32_t rows, uint64_t row_bytes,
                std::byte* to, uint64_t to_stride) {
  HWY_DYNAMIC_DISPATCH(CopyRows)(from, from_stride, rows, row_bytes, to, to_stride);
}

void StreamFence() { hwy::FlushStream(); }

}  // namespace turnkeep
#endif  // HWY_ONCE
