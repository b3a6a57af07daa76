// Rotates pairs of float16 or bfloat16 elements of a row in vectors, for rope.h.
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layout.h"

namespace turnkeep {

// Pairs [0, n) of a row of `pairs` of them, for the n that is returned: whole vectors, none for
// other types. (x, y) becomes (x cos - y sin, x sin + y cos), products and sums rounded to float32
// one by one, the results once to `dtype`. `to` may be `from`.
uint32_t RotateHalves(DType dtype, RopePairing pairing, const std::byte* from, uint32_t pairs,
                      const float* cos, const float* sin, std::byte* to);

}  // namespace turnkeep
