// Where an engine's planes lie and which of them make up a layer page: what every page mover needs
// to know of its engine, whatever device moves the bytes.
//
// Thread-safe: plain values.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/layout.h"
#include "gpu_tier/layer_mover.h"
#include "kernels/paged_layout.h"

namespace turnkeep {

// Where one layer's planes lie. Of a value_only layer `planes.keys` is not looked at.
struct EngineLayer {
  PagedLayer planes;
  // Beside them where the layout has scales per token and head (ScalePlane); of a latent layer they
  // belong to the latent and to the rotary key.
  PagedPlane key_scales;
  PagedPlane value_scales;
  // Of an engine that keeps raw keys beside the rotated ones that its attention reads (full and
  // window layers of a layout with raw keys): saved from here, and restored to here as they are
  // besides. Without it, raw keys are gathered from `planes.keys`.
  PagedPlane raw_keys;
};

struct PageMoverOptions {
  KvLayout layout;                  // valid
  std::vector<EngineLayer> layers;  // one a layer; memory is borrowed
  std::vector<uint32_t> pages;      // the context's block table
  int64_t first_position = 0;       // of the context's first token
};

// One plane of a layer's pages.
struct MoverPlane {
  PagedPlane engine;
  bool rotated = false;  // keys that the layout's RoPE may have to turn on the way in
  PagedPlane raw;        // base is null where there is none
};

// By layer, then in the order in which core/layout.h has the planes. InvalidArgument: a plane does
// not fit the layout (the message names layer and field), or a layer has a recurrent state, which
// has no pages.
absl::StatusOr<std::vector<std::vector<MoverPlane>>> PlanesOfLayers(
    const PageMoverOptions& options);

// InvalidArgument: tokens lie behind the block table's `page_count` pages.
absl::Status CheckTokens(std::span<const MoverPlane> planes, size_t page_count,
                         std::span<const StagedPage> pages);

}  // namespace turnkeep
