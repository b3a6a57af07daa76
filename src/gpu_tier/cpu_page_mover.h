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

#include "gpu_tier/layer_mover.h"
#include "gpu_tier/page_mover_planes.h"
#include "kernels/rope.h"

namespace turnkeep {

using CpuPageMoverOptions = PageMoverOptions;

class CpuPageMover final : public LayerMover {
 public:
  // InvalidArgument as PlanesOfLayers.
  static absl::StatusOr<std::unique_ptr<CpuPageMover>> Make(CpuPageMoverOptions options);

  // InvalidArgument also where tokens lie behind the block table's pages.
  absl::Status Scatter(DeviceStream& stream, uint32_t layer,
                       std::span<const StagedPage> pages) override;
  absl::Status Gather(DeviceStream& stream, uint32_t layer,
                      std::span<const StagedPage> pages) override;

 private:
  struct Task {
    StagedPage page;
    std::shared_ptr<const Rotation> rotation;  // shared by the layers' tasks and rotations_
  };
  CpuPageMover(CpuPageMoverOptions options, std::vector<std::vector<MoverPlane>> planes)
      : options_(std::move(options)), planes_(std::move(planes)) {}
  absl::Status CheckRange(uint32_t layer, std::span<const StagedPage> pages) const;
  std::shared_ptr<const Rotation> RotationOf(const StagedPage& page);
  void ScatterPage(uint32_t layer, const Task& task) const;
  void GatherPage(uint32_t layer, const StagedPage& page) const;

  const CpuPageMoverOptions options_;
  const std::vector<std::vector<MoverPlane>> planes_;
  // By first token: every layer needs the same. At most one a page of the context.
  std::map<uint64_t, std::pair<uint32_t, std::shared_ptr<const Rotation>>> rotations_;
};

}  // namespace turnkeep
