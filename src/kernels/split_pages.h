// Moves one KV head's part of a page of split keys, [d/x, page, x] with x of 16 bytes, or of its
// values, [d, page], from or to dense rows, with stores that go past the caches.
//
// Both sides are read and written by whole cache lines, and lines are asked for in the order they
// are used in, the next head's after this one's: no prefetcher follows blocks. All return false,
// having moved nothing, where the destination is not whole lines, or the part is not whole groups
// of tokens; StreamFence (stream_rows.h) must follow before another thread may be told.
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace turnkeep {

struct SplitPart {
  std::byte* paged = nullptr;  // of the first token
  uint64_t paged_stride = 0;   // bytes from one block of a key, or element of a value, to the next
  std::byte* dense = nullptr;  // the first row
  uint64_t dense_stride = 0;   // bytes from one token's row to the next
  uint64_t row_bytes = 0;      // of one token
  uint32_t tokens = 0;
  // The part that is moved after this one, which has as many tokens: null for none.
  const std::byte* next_paged = nullptr;
  const std::byte* next_dense = nullptr;
};

// Keys of any element.
bool GatherSplitKeys(const SplitPart& part);
bool ScatterSplitKeys(const SplitPart& part);
// Values of 16-bit elements.
bool GatherSplitValues(const SplitPart& part);
bool ScatterSplitValues(const SplitPart& part);

}  // namespace turnkeep
