// What the layer pipeline asks of the engine's side: move layer pages that lie in device memory
// into the engine's paged cache, and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <absl/status/status.h>

#include "gpu_tier/device.h"

namespace turnkeep {

// A layer page in device memory: dense planes of `chunk_token_count` tokens as core/layout.h
// gives them. Of these the engine's context has `token_count` from `first_in_chunk` on.
struct StagedPage {
  std::byte* data = nullptr;
  uint64_t bytes = 0;
  uint64_t token_begin = 0;  // in the context
  uint32_t token_count = 0;
  uint32_t first_in_chunk = 0;
  uint32_t chunk_token_count = 0;
  uint64_t stored_position = 0;  // of the first of them; restores only
};

// Both put work into `stream` and return at once; `pages` itself is read before the return. Pages,
// the engine's memory and the mover are the operation's until it has ended. Called from one thread
// at a time.
class LayerMover {
 public:
  virtual ~LayerMover() = default;
  // Pages to the engine's cache, rotating keys where positions or the layout ask for it.
  virtual absl::Status Scatter(DeviceStream& stream, uint32_t layer,
                               std::span<const StagedPage> pages) = 0;
  // The engine's cache to pages, every byte of them (first_in_chunk is 0).
  virtual absl::Status Gather(DeviceStream& stream, uint32_t layer,
                              std::span<const StagedPage> pages) = 0;
};

}  // namespace turnkeep
