// Rows of KV elements to float32 and back, by Google Highway for the 16-bit types.
//
// As element.h: to float exact, from float rounded to nearest, ties to even; but numbers past the
// largest of an fp8 type become that one, not infinity or NaN: what is stored keeps its scale.
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layout.h"

namespace turnkeep {

void RowToFloat(DType dtype, const std::byte* from, uint32_t count, float* to);
void RowFromFloat(DType dtype, const float* from, uint32_t count, std::byte* to);

}  // namespace turnkeep
