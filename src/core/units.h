// Byte units and overflow-checked size arithmetic.
#pragma once

#include <cstdint>

namespace turnkeep {

inline constexpr uint64_t kKiB = uint64_t{1} << 10;
inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kGiB = uint64_t{1} << 30;

// The unit of direct I/O: every offset, length and buffer of the disk tier is a
// multiple of it.
inline constexpr uint64_t kBlockBytes = 4096;
// Alignment of layer pages too small to be read alone.
inline constexpr uint64_t kCacheLineBytes = 64;

constexpr uint64_t RoundUp(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
constexpr uint64_t RoundDown(uint64_t value, uint64_t multiple) {
  return value / multiple * multiple;
}
constexpr uint64_t DivideRoundUp(uint64_t value, uint64_t divisor) {
  return (value + divisor - 1) / divisor;
}

// *out = a * b (or a + b); false and *out untouched when 64 bits do not hold it.
[[nodiscard]] constexpr bool CheckedMultiply(uint64_t a, uint64_t b, uint64_t* out) {
  uint64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) return false;
  *out = result;
  return true;
}
[[nodiscard]] constexpr bool CheckedAdd(uint64_t a, uint64_t b, uint64_t* out) {
  uint64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) return false;
  *out = result;
  return true;
}

}  // namespace turnkeep
