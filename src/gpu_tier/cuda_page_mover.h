// LayerMover of an engine whose paged cache lies in the memory of a CUDA device: gather and scatter
// of src/kernels/gather_cuda.h, keys rotated on the way in, as CpuPageMover does on the host
// device. Only in builds with CUDA; the header needs none of CUDA's.
//
// Nothing is allocated and nothing uploaded: block table and positions travel with each launch, so
// a mover costs the device no memory and its end waits for nothing.
//
// Thread-safety: as LayerMover.
//
//   TK_ASSIGN_OR_RETURN(auto mover, CudaPageMover::Make(*device, {.layout = …, .layers = …}));
//   TK_RETURN_IF_ERROR(restore->Bind(*mover));
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "gpu_tier/cuda_device.h"
#include "gpu_tier/layer_mover.h"
#include "gpu_tier/page_mover_planes.h"

namespace turnkeep {

class CudaPageMover final : public LayerMover {
 public:
  // The engine's planes are memory of `device`. InvalidArgument as PlanesOfLayers.
  static absl::StatusOr<std::unique_ptr<CudaPageMover>> Make(const CudaDevice& device,
                                                             PageMoverOptions options) {
    return Make(device.ordinal(), std::move(options));
  }
  // The same by the number that CUDA gives the device, which need not be there yet.
  static absl::StatusOr<std::unique_ptr<CudaPageMover>> Make(int ordinal, PageMoverOptions options);

  // `stream` is of that device. InvalidArgument also: it is no CUDA stream, tokens lie behind the
  // block table's pages, and what gather_cuda.h refuses. Does not wait.
  absl::Status Scatter(DeviceStream& stream, uint32_t layer,
                       std::span<const StagedPage> pages) override;
  absl::Status Gather(DeviceStream& stream, uint32_t layer,
                      std::span<const StagedPage> pages) override;

 private:
  CudaPageMover(int ordinal, PageMoverOptions options, std::vector<std::vector<MoverPlane>> planes)
      : ordinal_(ordinal), options_(std::move(options)), planes_(std::move(planes)) {}
  absl::Status Check(const DeviceStream& stream, uint32_t layer,
                     std::span<const StagedPage> pages) const;

  const int ordinal_;
  const PageMoverOptions options_;
  const std::vector<std::vector<MoverPlane>> planes_;
};

}  // namespace turnkeep
