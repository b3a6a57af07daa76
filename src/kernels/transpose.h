// Transposes matrices of 16-bit elements in tiles of eight by eight.
#pragma once

#include <cstddef>
#include <cstdint>

namespace turnkeep {

// to[c][r] = from[r][c]. Strides are bytes between rows. Thread-safe; no alignment needed beyond 2.
void Transpose16(const std::byte* from, uint64_t from_stride, uint32_t rows, uint32_t columns,
                 std::byte* to, uint64_t to_stride);

}  // namespace turnkeep
