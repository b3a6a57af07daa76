// What engine processes say of their page pools, and how it is shown. Plain values.
#pragma once

#include <cstdint>
#include <string>

#include "core/ids.h"

namespace turnkeep {

// Chunks that one engine reports of its page pool at most.
inline constexpr uint32_t kMaxGpuChunks = 1u << 16;

// A chunk in an engine's own device memory.
struct GpuChunk {
  ChunkId chunk;
  uint64_t bytes = 0;
};

// An engine process with part of a context in its page pool, by its own last report. Only that
// process can use it.
struct GpuHolder {
  std::string engine;
  int64_t pid = 0;
  uint64_t token_count = 0;
  uint64_t chunk_count = 0;
  uint64_t bytes = 0;
};

}  // namespace turnkeep
