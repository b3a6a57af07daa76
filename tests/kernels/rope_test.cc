// Rotations against plain loops in double precision: within one rounding of the storage type.
#include "kernels/rope.h"

#include <cmath>
#include <cstring>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/element.h"

namespace turnkeep {
namespace {

constexpr uint32_t kDim = 80;
constexpr uint32_t kHeads = 2;

// Inverse frequencies as models define them.
std::vector<float> Plain(uint32_t rotary_dim, double base) {
  std::vector<float> table;
  for (uint32_t i = 0; i < rotary_dim; i += 2)
    table.push_back(static_cast<float>(std::pow(base, -static_cast<double>(i) / rotary_dim)));
  return table;
}
std::vector<float> Linear(uint32_t rotary_dim, double factor) {
  std::vector<float> table = Plain(rotary_dim, 10000);
  for (float& f : table) f = static_cast<float>(f / factor);
  return table;
}
// Llama 3: long waves are stretched by 8, those between are blended.
std::vector<float> Llama3(uint32_t rotary_dim) {
  std::vector<float> table = Plain(rotary_dim, 500000);
  for (float& f : table) {
    const double wave = 2 * std::numbers::pi / f;
    const double smooth = std::clamp((8192 / wave - 1) / (4 - 1), 0.0, 1.0);
    f = static_cast<float>((1 - smooth) * f / 8 + smooth * f);
  }
  return table;
}
// YaRN: a ramp between interpolated and plain frequencies.
std::vector<float> Yarn(uint32_t rotary_dim, double factor) {
  std::vector<float> table = Plain(rotary_dim, 10000);
  const auto dim_of = [&](double turns) {
    return rotary_dim * std::log(4096 / (turns * 2 * std::numbers::pi)) / (2 * std::log(10000));
  };
  const double low = std::floor(dim_of(32));
  const double high = std::ceil(dim_of(1));
  for (size_t i = 0; i < table.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    table[i] = static_cast<float>(ramp * table[i] / factor + (1 - ramp) * table[i]);
  }
  return table;
}

struct Table {
  const char* name;
  uint32_t rotary_dim;
  std::vector<float> inv_freq;
  float attention_scale = 1;
};
std::vector<Table> Tables() {
  return {{"plain", 80, Plain(80, 10000)},
          {"partial", 24, Plain(24, 10000)},
          {"linear", 80, Linear(80, 4)},
          {"llama3", 64, Llama3(64)},
          {"yarn", 80, Yarn(80, 16), static_cast<float>(0.1 * std::log(16.0) + 1)}};
}

// The distance of neighbours of the type around a value, and half of the smallest at least.
double UlpOf(DType dtype, double value) {
  int exponent = 0;
  std::frexp(value, &exponent);
  switch (dtype) {
    case DType::kFloat32:
      return std::ldexp(1.0, std::max(exponent - 24, -149));
    case DType::kFloat16:
      return std::ldexp(1.0, std::max(exponent - 11, -24));
    case DType::kBFloat16:
      return std::ldexp(1.0, std::max(exponent - 8, -133));
    case DType::kFp8E4M3:
      return std::ldexp(1.0, std::max(exponent - 4, -9));
    case DType::kFp8E5M2:
      return std::ldexp(1.0, std::max(exponent - 3, -16));
    case DType::kInt8:
      return 1;
  }
  return 0;
}

std::vector<std::byte> Keys(DType dtype, uint32_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, dtype == DType::kInt8 ? 20.0f : 1.0f);
  std::vector<std::byte> keys(uint64_t{tokens} * kHeads * kDim * DTypeBytes(dtype));
  for (size_t i = 0; i < keys.size(); i += DTypeBytes(dtype))
    StoreElement(dtype, normal(random), &keys[i]);
  return keys;
}

// `position(t)`: by how much token t is rotated.
template <typename Position>
void ExpectRotated(DType dtype, const RopeSpec& rope, double scale, const Position& position,
                   const std::vector<std::byte>& from, const std::vector<std::byte>& to) {
  const uint32_t bytes = DTypeBytes(dtype);
  const uint32_t pairs = rope.rotary_dim / 2;
  const bool halves = rope.pairing == RopePairing::kHalves;
  for (uint64_t row = 0; row < from.size() / bytes / kDim; ++row) {
    const auto value = [&](const std::vector<std::byte>& keys, uint32_t i) -> double {
      return LoadElement(dtype, &keys[(row * kDim + i) * bytes]);
    };
    const auto expect = [&](uint32_t i, double expected) {
      // One rounding, and what float32 arithmetic adds in front of it.
      const double allowed = 0.5 * UlpOf(dtype, expected) * 1.001 + 4e-7 * std::abs(expected);
      const double slack = dtype == DType::kFloat32 ? 0 : 1e-6;
      ASSERT_NEAR(value(to, i), expected, allowed + slack) << "row " << row << " element " << i;
    };
    for (uint32_t p = 0; p < pairs; ++p) {
      const uint32_t first = halves ? p : 2 * p;
      const uint32_t second = halves ? p + pairs : 2 * p + 1;
      const double angle = double{rope.inv_freq[p]} * position(row / kHeads);
      const double x = value(from, first), y = value(from, second);
      ASSERT_NO_FATAL_FAILURE(expect(first, scale * (x * std::cos(angle) - y * std::sin(angle))));
      ASSERT_NO_FATAL_FAILURE(expect(second, scale * (x * std::sin(angle) + y * std::cos(angle))));
    }
    ASSERT_EQ(std::memcmp(&from[(row * kDim + 2 * pairs) * bytes],
                          &to[(row * kDim + 2 * pairs) * bytes], (kDim - 2 * pairs) * bytes),
              0)
        << "dimensions past rotary_dim, row " << row;
  }
}

constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                            DType::kFp8E4M3, DType::kFp8E5M2, DType::kInt8};

TEST(Rope, RawKeysAreRotatedToTheirPositions) {
  for (const Table& table : Tables()) {
    for (const RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
      for (const DType dtype : kTypes) {
        SCOPED_TRACE(std::string(table.name) + " " + std::string(NameOf(pairing)) + " " +
                     std::string(NameOf(dtype)));
        const RopeSpec rope{.pairing = pairing,
                            .rotary_dim = table.rotary_dim,
                            .inv_freq = table.inv_freq,
                            .attention_scale = table.attention_scale,
                            .key_state = KeyState::kRaw};
        constexpr int64_t kFirst = 130'000;
        const auto keys = Keys(dtype, 40, 1);
        std::vector<std::byte> rotated(keys.size());
        const Rotation rotation = Rotation::For(rope, 0, kFirst, 40);
        // In two parts, as chunks of a load are.
        const uint64_t token_bytes = keys.size() / 40;
        rotation.Rotate(dtype, kHeads, kDim, 0, 17, keys.data(), rotated.data());
        rotation.Rotate(dtype, kHeads, kDim, 17, 23, keys.data() + 17 * token_bytes,
                        rotated.data() + 17 * token_bytes);
        ExpectRotated(
            dtype, rope, double{table.attention_scale},
            [](uint64_t t) { return static_cast<double>(kFirst + t); }, keys, rotated);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Rope, RotatedKeysAreShiftedByTheDifferenceAndKeepTheirScale) {
  for (const Table& table : Tables()) {
    for (const RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
      for (const DType dtype : kTypes) {
        SCOPED_TRACE(std::string(table.name) + " " + std::string(NameOf(pairing)) + " " +
                     std::string(NameOf(dtype)));
        const RopeSpec rope{.pairing = pairing,
                            .rotary_dim = table.rotary_dim,
                            .inv_freq = table.inv_freq,
                            .attention_scale = table.attention_scale,
                            .key_state = KeyState::kRotated};
        auto keys = Keys(dtype, 9, 2);
        const auto before = keys;
        Rotation::For(rope, 5000, 904, 9)
            .Rotate(dtype, kHeads, kDim, 0, 9, keys.data(),
                    keys.data());  // in place
        ExpectRotated(
            dtype, rope, 1, [](uint64_t) { return -4096.0; }, before, keys);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Rope, KeysThatStayWhereTheyWereAreTheSameBits) {
  const RopeSpec rope{
      .pairing = RopePairing::kHalves, .rotary_dim = 80, .inv_freq = Plain(80, 10000)};
  for (const DType dtype : kTypes) {
    const auto keys = Keys(dtype, 5, 3);
    std::vector<std::byte> same(keys.size());
    const Rotation rotation = Rotation::For(rope, 77, 77, 5);
    EXPECT_TRUE(rotation.IsIdentity());
    rotation.Rotate(dtype, kHeads, kDim, 0, 5, keys.data(), same.data());
    EXPECT_EQ(keys, same);
  }
  EXPECT_TRUE(Rotation::For({.key_state = KeyState::kRaw}, 0, 5, 5).IsIdentity()) << "no RoPE";
}

// A quantised key whose pair grows past the largest number keeps its sign and its scale.
TEST(Rope, QuantisedKeysSaturate) {
  const RopeSpec rope{.pairing = RopePairing::kAdjacent, .rotary_dim = 2, .inv_freq = {1.0f}};
  const std::pair<DType, float> cases[] = {
      {DType::kInt8, 127}, {DType::kFp8E4M3, 448}, {DType::kFp8E5M2, 57344}};
  for (const auto& [dtype, largest] : cases) {
    std::byte key[2];
    StoreElement(dtype, largest, &key[0]);
    StoreElement(dtype, largest, &key[1]);
    Rotation::Shift(rope, -1).Rotate(dtype, 1, 2, 0, 1, key, key);
    // largest · (cos 1 + sin 1) and largest · (cos 1 - sin 1)
    EXPECT_EQ(LoadElement(dtype, &key[0]), largest);
    EXPECT_NEAR(LoadElement(dtype, &key[1]), largest * -0.3012, 0.1 * largest);
  }
}

}  // namespace
}  // namespace turnkeep
