// Arrays by chunk index that grow as indices come.
//
// Thread-compatible.
#pragma once

#include <cstddef>
#include <vector>

#include "store/policy.h"

namespace turnkeep {

// The entry of `chunk`; entries that nobody has spoken of are `unknown`. References into the array
// end when it grows, by a quarter: a resize alone would take twice what there was.
template <class T>
T& AtChunk(std::vector<T>& array, ChunkIndex chunk, const T& unknown = T()) {
  if (chunk >= array.size()) {
    const size_t size = size_t{chunk} + 1 + chunk / 4;
    array.reserve(size);
    array.resize(size, unknown);
  }
  return array[chunk];
}

}  // namespace turnkeep
