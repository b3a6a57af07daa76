// Rotary position embedding of keys that come out of the store.
//
// For pair (x, y) of inverse frequency f and an angle a = f · p:
//   x' = x cos a - y sin a,   y' = x sin a + y cos a
// Raw keys are rotated by their position and scaled by the layout's attention scale; keys that were
// stored rotated are rotated by the difference of positions and keep their scale. Dimensions past
// rotary_dim stay as they are. Angles are double precision; arithmetic is float32, of float32 keys
// double, and each result is rounded once to the storage type (fp8 and int8 saturate).
//
// Paper: CachedAttention (arXiv 2403.19708), section 3.4.
//
// Thread-safe after construction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/layout.h"

namespace turnkeep {

class Rotation {
 public:
  // Nothing to do: keys that were rotated for the positions they go to.
  Rotation() = default;
  // Raw keys, the first of which goes to `position`, the others behind it.
  static Rotation Apply(const RopeSpec& rope, int64_t position, uint32_t token_count);
  // Rotated keys that go `shift` positions further (mostly back: negative).
  static Rotation Shift(const RopeSpec& rope, int64_t shift);
  // What the layout's keys need that were stored for `stored_position` and go to `position`.
  static Rotation For(const RopeSpec& rope, int64_t stored_position, int64_t position,
                      uint32_t token_count);

  bool IsIdentity() const { return pairs_ == 0; }

  // Rotates tokens [first_token, first_token + token_count) of those it was made for, rows
  // [token_count, heads, dim] of `dtype`, from `from` to `to`, which may be the same.
  void Rotate(DType dtype, uint32_t heads, uint32_t dim, uint32_t first_token, uint32_t token_count,
              const std::byte* from, std::byte* to) const;

 private:
  void AddAngles(const RopeSpec& rope, double position, double scale);

  RopePairing pairing_ = RopePairing::kNone;
  uint32_t pairs_ = 0;
  bool same_for_all_ = false;  // one row of angles serves every token
  // [tokens or 1, pairs]
  std::vector<double> cos_, sin_;
  std::vector<float> cos_f_, sin_f_;
};

}  // namespace turnkeep
