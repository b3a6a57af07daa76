#include "kernels/rope.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "kernels/element.h"
#include "kernels/rotate_rows.h"
#include "kernels/row_convert.h"

namespace turnkeep {

Rotation Rotation::Apply(const RopeSpec& rope, int64_t position, uint32_t token_count) {
  Rotation rotation;
  if (rope.pairing == RopePairing::kNone) return rotation;
  rotation.pairing_ = rope.pairing;
  rotation.pairs_ = rope.rotary_dim / 2;
  for (uint32_t t = 0; t < token_count; ++t) {
    rotation.AddAngles(rope, static_cast<double>(position + t),
                       static_cast<double>(rope.attention_scale));
  }
  return rotation;
}

Rotation Rotation::Shift(const RopeSpec& rope, int64_t shift) {
  Rotation rotation;
  if (rope.pairing == RopePairing::kNone || shift == 0) return rotation;
  rotation.pairing_ = rope.pairing;
  rotation.pairs_ = rope.rotary_dim / 2;
  rotation.same_for_all_ = true;
  rotation.AddAngles(rope, static_cast<double>(shift), 1.0);
  return rotation;
}

Rotation Rotation::For(const RopeSpec& rope, int64_t stored_position, int64_t position,
                       uint32_t token_count) {
  return rope.key_state == KeyState::kRaw ? Apply(rope, position, token_count)
                                          : Shift(rope, position - stored_position);
}

void Rotation::AddAngles(const RopeSpec& rope, double position, double scale) {
  TK_CHECK(rope.inv_freq.size() == pairs_);
  for (const float inv_freq : rope.inv_freq) {
    const double angle = static_cast<double>(inv_freq) * position;
    cos_.push_back(std::cos(angle) * scale);
    sin_.push_back(std::sin(angle) * scale);
    cos_f_.push_back(static_cast<float>(cos_.back()));
    sin_f_.push_back(static_cast<float>(sin_.back()));
  }
}

namespace {

// One row in place. Pair p is (row[p · step], row[p · step + distance]).
template <typename Float>
void RotateRow(Float* row, uint32_t pairs, uint32_t step, uint32_t distance, const Float* cos,
               const Float* sin) {
  for (uint32_t p = 0; p < pairs; ++p) {
    const Float x = row[p * step];
    const Float y = row[p * step + distance];
    row[p * step] = x * cos[p] - y * sin[p];
    row[p * step + distance] = x * sin[p] + y * cos[p];
  }
}

// A pair of elements that lie at `x` and `y` bytes from the row.
void RotatePair(DType dtype, const std::byte* from, uint64_t x, uint64_t y, float cos, float sin,
                std::byte* to) {
  const float first = LoadElement(dtype, from + x);
  const float second = LoadElement(dtype, from + y);
  StoreElement(dtype, first * cos - second * sin, to + x);
  StoreElement(dtype, first * sin + second * cos, to + y);
}

constexpr uint32_t kMaxDim = 4096;

}  // namespace

void Rotation::Rotate(DType dtype, uint32_t heads, uint32_t dim, uint32_t first_token,
                      uint32_t token_count, const std::byte* from, std::byte* to) const {
  const uint32_t bytes = DTypeBytes(dtype);
  const uint64_t row_bytes = uint64_t{dim} * bytes;
  if (IsIdentity()) {
    if (from != to) std::memmove(to, from, token_count * heads * row_bytes);
    return;
  }
  TK_CHECK(2 * pairs_ <= dim && dim <= kMaxDim);
  const uint32_t step = pairing_ == RopePairing::kAdjacent ? 2 : 1;
  const uint32_t distance = pairing_ == RopePairing::kAdjacent ? 1 : pairs_;
  float row[kMaxDim];
  double wide[kMaxDim];
  for (uint32_t t = 0; t < token_count; ++t) {
    const uint64_t at = same_for_all_ ? 0 : uint64_t{first_token + t} * pairs_;
    for (uint32_t h = 0; h < heads; ++h, from += row_bytes, to += row_bytes) {
      const uint64_t rotated = uint64_t{2 * pairs_} * bytes;
      if (from != to) std::memcpy(to + rotated, from + rotated, row_bytes - rotated);
      const uint32_t done =
          RotateHalves(dtype, pairing_, from, pairs_, &cos_f_[at], &sin_f_[at], to);
      if (done > 0) {
        for (uint32_t p = done; p < pairs_; ++p) {
          RotatePair(dtype, from, uint64_t{p} * step * bytes,
                     (uint64_t{p} * step + distance) * bytes, cos_f_[at + p], sin_f_[at + p], to);
        }
        continue;
      }
      RowToFloat(dtype, from, 2 * pairs_, row);
      if (dtype == DType::kFloat32) {
        std::copy(row, row + 2 * pairs_, wide);
        RotateRow(wide, pairs_, step, distance, &cos_[at], &sin_[at]);
        for (uint32_t i = 0; i < 2 * pairs_; ++i) row[i] = static_cast<float>(wide[i]);
      } else {
        RotateRow(row, pairs_, step, distance, &cos_f_[at], &sin_f_[at]);
      }
      RowFromFloat(dtype, row, 2 * pairs_, to);
    }
  }
}

}  // namespace turnkeep
