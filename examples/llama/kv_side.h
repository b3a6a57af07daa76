// Where the engine's KV pages lie, and who attends over them there.
//
//   host side       pages in host memory; the engine attends itself. The device is a HostDevice.
//   device side     pages in a device's memory. The engine computes everything else on the CPU, as
//                   it always does: K and V of new tokens and the queries are copied up, attention
//                   runs on the device over its pages, the result is copied down.
//                   With CUDA that is a GPU; a HostDevice stands in for one where there is none.
//
// Plain value; the parts are used by one thread.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <functional>
#include <memory>

#include "gpu_tier/device.h"
#include "gpu_tier/host_device.h"
#include "gpu_tier/layer_mover.h"
#include "gpu_tier/page_mover_planes.h"
#include "kernels/attention.h"

namespace turnkeep::llama {

// An executor of attention plans on a device's memory.
class SideAttention {
 public:
  virtual ~SideAttention() = default;
  // Shape and plan are valid. The plan may change after the return.
  virtual absl::Status Upload(const AttentionShape& shape, const AttentionPlan& plan,
                              DeviceStream& stream) = 0;
  // The uploaded plan over one layer, in stream order. All pointers are the device's.
  virtual absl::Status Run(const PagedKv& kv, const AttentionTensors& tensors,
                           DeviceStream& stream) = 0;
};

struct KvSide {
  std::unique_ptr<Device> device;
  std::function<absl::StatusOr<std::unique_ptr<LayerMover>>(PageMoverOptions)> make_mover;
  std::unique_ptr<SideAttention> attention;  // null: the pages are in host memory
};

KvSide HostSide(const HostDeviceOptions& options);
// For tests: what CudaSide is, without a GPU.
KvSide HostSideWithPages(const HostDeviceOptions& options);
// FailedPrecondition: CUDA sees no device, or this program was built without CUDA.
absl::StatusOr<KvSide> CudaSide();

}  // namespace turnkeep::llama
