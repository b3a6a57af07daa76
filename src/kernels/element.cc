#include "kernels/element.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/check.h"

namespace turnkeep {

namespace {

// A binary format of one sign bit, `kExponentBits` and `kMantissaBits`; IEEE unless kFinite, whose
// largest exponent holds numbers too and whose only NaN has all bits set.
template <int kExponentBits, int kMantissaBits, bool kFinite>
struct SmallFloat {
  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  static constexpr uint32_t kMaxExponent = (1u << kExponentBits) - 1;
  static constexpr uint32_t kMantissaMask = (1u << kMantissaBits) - 1;
  static constexpr uint32_t kInfinity = kMaxExponent << kMantissaBits;
  static constexpr uint32_t kNan =
      kFinite ? kInfinity | kMantissaMask : kInfinity | (kMantissaMask / 2 + 1);
  // The largest finite value, as bits; the next pattern is infinity or NaN.
  static constexpr uint32_t kLargest = kFinite ? kNan - 1 : kInfinity - 1;

  static float Decode(uint32_t bits) {
    const uint32_t exponent = (bits >> kMantissaBits) & kMaxExponent;
    const uint32_t mantissa = bits & kMantissaMask;
    const bool negative = (bits >> (kExponentBits + kMantissaBits)) != 0;
    float value = 0;
    if (kFinite ? (bits & kNan) == kNan : exponent == kMaxExponent && mantissa != 0) {
      value = NAN;
    } else if (!kFinite && exponent == kMaxExponent) {
      value = INFINITY;
    } else if (exponent == 0) {
      value = std::ldexp(static_cast<float>(mantissa), 1 - kBias - kMantissaBits);
    } else {
      value = std::ldexp(static_cast<float>(mantissa + kMantissaMask + 1),
                         static_cast<int>(exponent) - kBias - kMantissaBits);
    }
    return negative ? -value : value;
  }

  static uint32_t Encode(float value) {
    const uint32_t sign = (std::bit_cast<uint32_t>(value) >> 31) << (kExponentBits + kMantissaBits);
    if (std::isnan(value)) return sign | kNan;
    const float magnitude = std::fabs(value);
    if (magnitude == 0) return sign;
    if (std::isinf(magnitude)) return sign | (kFinite ? kNan : kInfinity);
    int exponent = 0;
    std::frexp(magnitude, &exponent);  // magnitude = f · 2^exponent, f in [0.5, 1)
    // The distance of neighbours around the value is 2^quantum.
    const int quantum = std::max(exponent - 1, 1 - kBias) - kMantissaBits;
    const auto steps =
        static_cast<uint64_t>(std::nearbyint(std::ldexp(double{magnitude}, -quantum)));
    // Counting patterns upward from 0 counts quanta: a carry into the exponent is right by itself.
    const uint64_t base = static_cast<uint64_t>(quantum + kMantissaBits + kBias - 1)
                          << kMantissaBits;
    const uint64_t bits = base + steps;
    if (bits > kLargest) return sign | (kFinite ? kNan : kInfinity);
    return sign | static_cast<uint32_t>(bits);
  }
};

using Float16 = SmallFloat<5, 10, false>;
using BFloat16 = SmallFloat<8, 7, false>;
using Fp8E4M3 = SmallFloat<4, 3, true>;
using Fp8E5M2 = SmallFloat<5, 2, false>;

template <typename T>
T Read(const std::byte* element) {
  T value;
  std::memcpy(&value, element, sizeof(value));
  return value;
}

template <typename T>
void Write(T value, std::byte* element) {
  std::memcpy(element, &value, sizeof(value));
}

int8_t FloatToInt8(float value) {
  if (std::isnan(value)) return 0;
  return static_cast<int8_t>(std::nearbyint(std::fmin(std::fmax(value, -128.0f), 127.0f)));
}

}  // namespace

float Float16ToFloat(uint16_t bits) { return Float16::Decode(bits); }
float BFloat16ToFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
float Fp8E4M3ToFloat(uint8_t bits) { return Fp8E4M3::Decode(bits); }
float Fp8E5M2ToFloat(uint8_t bits) { return Fp8E5M2::Decode(bits); }

uint16_t FloatToFloat16(float value) { return static_cast<uint16_t>(Float16::Encode(value)); }
uint16_t FloatToBFloat16(float value) { return static_cast<uint16_t>(BFloat16::Encode(value)); }
uint8_t FloatToFp8E4M3(float value) { return static_cast<uint8_t>(Fp8E4M3::Encode(value)); }
uint8_t FloatToFp8E5M2(float value) { return static_cast<uint8_t>(Fp8E5M2::Encode(value)); }

float LoadElement(DType dtype, const std::byte* element) {
  switch (dtype) {
    case DType::kFloat32:
      return Read<float>(element);
    case DType::kFloat16:
      return Float16ToFloat(Read<uint16_t>(element));
    case DType::kBFloat16:
      return BFloat16ToFloat(Read<uint16_t>(element));
    case DType::kFp8E4M3:
      return Fp8E4M3ToFloat(Read<uint8_t>(element));
    case DType::kFp8E5M2:
      return Fp8E5M2ToFloat(Read<uint8_t>(element));
    case DType::kInt8:
      return Read<int8_t>(element);
  }
  TK_CHECK(false);
  return 0;
}

void StoreElement(DType dtype, float value, std::byte* element) {
  switch (dtype) {
    case DType::kFloat32:
      return Write(value, element);
    case DType::kFloat16:
      return Write(FloatToFloat16(value), element);
    case DType::kBFloat16:
      return Write(FloatToBFloat16(value), element);
    case DType::kFp8E4M3:
      return Write(FloatToFp8E4M3(value), element);
    case DType::kFp8E5M2:
      return Write(FloatToFp8E5M2(value), element);
    case DType::kInt8:
      return Write(FloatToInt8(value), element);
  }
  TK_CHECK(false);
}

}  // namespace turnkeep
