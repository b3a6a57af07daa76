// Copies rows with stores that go past the caches: a line that is written whole is not read from
// memory first, which is a third of a copy's traffic.
#pragma once

#include <cstddef>
#include <cstdint>

namespace turnkeep {

// Whether rows that begin at `to`, are `row_bytes` long and lie a multiple of `to_stride` apart are
// whole cache lines.
inline bool CanStreamRows(const std::byte* to, uint64_t to_stride, uint64_t row_bytes) {
  return (reinterpret_cast<uintptr_t>(to) | to_stride | row_bytes) % 64 == 0;
}

// CanStreamRows must hold; `from` needs no alignment. StreamFence must follow before another thread
// may be told. Thread-safe.
void StreamRows(const std::byte* from, uint64_t from_stride, uint32_t rows, uint64_t row_bytes,
                std::byte* to, uint64_t to_stride);
void StreamFence();

}  // namespace turnkeep
