#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/transpose.cc"
// An eight by eight tile needs 128-bit vectors; wider instruction sets add nothing.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX2 | HWY_AVX3 | HWY_AVX3_DL)
#include <hwy/foreach_target.h>

#include "kernels/transpose.h"

#include <cstring>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace turnkeep {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

#include "kernels/transpose_tile.inc"

constexpr uint32_t kTile = 8;

#if HWY_TARGET == HWY_SCALAR
void TransposeTile(const std::byte* from, uint64_t from_stride, std::byte* to, uint64_t to_stride) {
  for (uint32_t r = 0; r < kTile; ++r)
    for (uint32_t c = 0; c < kTile; ++c)
      std::memcpy(to + c * to_stride + 2 * r, from + r * from_stride + 2 * c, 2);
}
#else
void TransposeTile(const std::byte* from, uint64_t from_stride, std::byte* to, uint64_t to_stride) {
  const hn::Full128<uint16_t> d16;
  hn::Vec<decltype(d16)> rows[kTile];
  for (uint32_t r = 0; r < kTile; ++r)
    rows[r] = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from + r * from_stride));
  TransposeBlocks(d16, rows);
  for (uint32_t c = 0; c < kTile; ++c)
    hn::StoreU(rows[c], d16, reinterpret_cast<uint16_t*>(to + c * to_stride));
}
#endif

// Whole tiles only.
void TransposeTiles(const std::byte* from, uint64_t from_stride, uint32_t rows, uint32_t columns,
                    std::byte* to, uint64_t to_stride) {
  for (uint32_t r = 0; r + kTile <= rows; r += kTile)
    for (uint32_t c = 0; c + kTile <= columns; c += kTile)
      TransposeTile(from + r * from_stride + 2 * c, from_stride, to + c * to_stride + 2 * r,
                    to_stride);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace turnkeep
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace turnkeep {

HWY_EXPORT(TransposeTiles);

void Transpose16(const std::byte* from, uint64_t from_stride, uint32_t rows, uint32_t columns,
                 std::byte* to, uint64_t to_stride) {
  constexpr uint32_t kTile = 8;
  HWY_DYNAMIC_DISPATCH(TransposeTiles)(from, from_stride, rows, columns, to, to_stride);
  const uint32_t whole_rows = rows / kTile * kTile;
  const uint32_t whole_columns = columns / kTile * kTile;
  for (uint32_t r = 0; r < rows; ++r)
    for (uint32_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      std::memcpy(to + c * to_stride + 2 * r, from + r * from_stride + 2 * c, 2);
}

}  // namespace turnkeep
#endif  // HWY_ONCE
