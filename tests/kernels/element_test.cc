// The scalar conversions, over every pattern of the small types and between all neighbours.
#include "kernels/element.h"

#include <cmath>
#include <cstring>
#include <limits>

#include <gtest/gtest.h>

namespace turnkeep {
namespace {

struct Format {
  const char* name;
  DType dtype;
  uint32_t patterns;
  float largest;
  float smallest;  // subnormal
  bool infinite;
};

const Format kFormats[] = {{"float16", DType::kFloat16, 1 << 16, 65504.0f, 0x1p-24f, true},
                           {"bfloat16", DType::kBFloat16, 1 << 16, 0x1.fep127f, 0x1p-133f, true},
                           {"fp8_e4m3", DType::kFp8E4M3, 1 << 8, 448.0f, 0x1p-9f, false},
                           {"fp8_e5m2", DType::kFp8E5M2, 1 << 8, 57344.0f, 0x1p-16f, true}};

float Decode(const Format& format, uint32_t pattern) {
  return LoadElement(format.dtype, reinterpret_cast<const std::byte*>(&pattern));
}

uint32_t Encode(const Format& format, float value) {
  uint32_t pattern = 0;
  StoreElement(format.dtype, value, reinterpret_cast<std::byte*>(&pattern));
  return pattern;
}

TEST(Element, EveryPatternComesBack) {
  for (const Format& format : kFormats) {
    float largest = 0;
    float smallest = std::numeric_limits<float>::infinity();
    for (uint32_t pattern = 0; pattern < format.patterns; ++pattern) {
      const float value = Decode(format, pattern);
      if (std::isnan(value)) {
        EXPECT_TRUE(std::isnan(Decode(format, Encode(format, value)))) << format.name << pattern;
        continue;
      }
      ASSERT_EQ(Encode(format, value), pattern) << format.name << " of " << value;
      if (std::isinf(value)) continue;
      largest = std::max(largest, value);
      if (value > 0) smallest = std::min(smallest, value);
    }
    EXPECT_EQ(largest, format.largest) << format.name;
    EXPECT_EQ(smallest, format.smallest) << format.name;
  }
}

TEST(Element, BetweenNeighboursTheNearerIsTakenAndTheEvenOneOfTwo) {
  for (const Format& format : kFormats) {
    for (uint32_t pattern = 0; pattern + 1 < format.patterns / 2; ++pattern) {
      const float low = Decode(format, pattern);
      const float high = Decode(format, pattern + 1);
      if (!std::isfinite(low) || !std::isfinite(high)) continue;
      const double middle = (double{low} + double{high}) / 2;
      const auto at_middle = static_cast<float>(middle);
      if (at_middle != middle) continue;
      const uint32_t even = pattern % 2 == 0 ? pattern : pattern + 1;
      ASSERT_EQ(Encode(format, at_middle), even) << format.name << " " << pattern;
      ASSERT_EQ(Encode(format, std::nextafter(at_middle, -1.0f)), pattern) << format.name;
      ASSERT_EQ(Encode(format, std::nextafter(at_middle, INFINITY)), pattern + 1) << format.name;
    }
  }
}

TEST(Element, PastTheLargestIsInfinityOrNan) {
  for (const Format& format : kFormats) {
    for (const float sign : {1.0f, -1.0f}) {
      for (const float value : {std::numeric_limits<float>::max(), INFINITY}) {
        const float back = Decode(format, Encode(format, sign * value));
        if (format.infinite) {
          EXPECT_EQ(back, sign * INFINITY) << format.name;
        } else {
          EXPECT_TRUE(std::isnan(back)) << format.name;
        }
      }
      EXPECT_EQ(Decode(format, Encode(format, sign * format.largest)), sign * format.largest);
    }
    EXPECT_TRUE(std::isnan(Decode(format, Encode(format, NAN)))) << format.name;
    EXPECT_TRUE(std::signbit(Decode(format, Encode(format, -0.0f)))) << format.name;
  }
}

TEST(Element, Int8SaturatesAndRoundsToEven) {
  const Format format{.name = "int8", .dtype = DType::kInt8};
  const std::pair<float, float> cases[] = {{0.5f, 0},     {1.5f, 2},      {-2.5f, -2},
                                           {127.4f, 127}, {1e9f, 127},    {-1e9f, -128},
                                           {NAN, 0},      {INFINITY, 127}};
  for (const auto& [value, expected] : cases) {
    EXPECT_EQ(Decode(format, Encode(format, value)), expected) << value;
  }
}

}  // namespace
}  // namespace turnkeep
