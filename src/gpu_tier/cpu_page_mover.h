// LayerMover of an engine whose paged cache lies in host memory: gather and scatter of
// src/kernels, run as kernels of the host device.
//
// Keys are rotated on the way in when the layout says that they are raw, or when they go to
// another position than they were stored for; else bits are copied. Low-rank keys stay as they are.
//
// Thread-safety: as LayerMover.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/layout.h"
#include "gpu_tier/layer_mover.h"
#include "kernels/paged_layout.h"
#include "kernels/rope.h"

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

struct CpuPageMoverOptions {
  KvLayout layout;                  // valid
  std::vector<EngineLayer> layers;  // one a layer; memory is borrowed
  std::vector<uint32_t> pages;      // the context's block table
  int64_t first_position = 0;       // of the context's first token
};

class CpuPageMover final : public LayerMover {
 public:
  // InvalidArgument: a plane does not fit the layout (the message names layer and field), or a
  // layer has a recurrent state, which has no pages.
  static absl::StatusOr<std::unique_ptr<CpuPageMover>> Make(CpuPageMoverOptions options);

  // InvalidArgument also where tokens lie behind the block table's pages.
  absl::Status Scatter(DeviceStream& stream, uint32_t layer,
                       std::span<const StagedPage> pages) override;
  absl::Status Gather(DeviceStream& stream, uint32_t layer,
                      std::span<const StagedPage> pages) override;

 private:
  // One plane of a layer's pages, in the order of core/layout.h.
  struct Plane {
    PagedPlane engine;
    bool rotated = false;
    PagedPlane raw;  // base is null where there is none
  };
  struct Task {
    StagedPage page;
    std::shared_ptr<const Rotation> rotation;  // shared by the layers' tasks and rotations_
  };
  explicit CpuPageMover(CpuPageMoverOptions options) : options_(std::move(options)) {}
  absl::Status AddLayer(uint32_t layer);
  absl::Status CheckRange(uint32_t layer, std::span<const StagedPage> pages) const;
  std::shared_ptr<const Rotation> RotationOf(const StagedPage& page);
  void ScatterPage(uint32_t layer, const Task& task) const;
  void GatherPage(uint32_t layer, const StagedPage& page) const;

  const CpuPageMoverOptions options_;
  std::vector<std::vector<Plane>> planes_;
  // By first token: every layer needs the same. At most one a page of the context.
  std::map<uint64_t, std::pair<uint32_t, std::shared_ptr<const Rotation>>> rotations_;
};

}  // namespace turnkeep
