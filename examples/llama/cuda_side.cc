#include <utility>

#include "core/status.h"
#include "gpu_tier/cuda_device.h"
#include "gpu_tier/cuda_page_mover.h"
#include "kernels/attention_cuda.h"
#include "kernels/cuda_status.h"
#include "llama/kv_side.h"

namespace turnkeep::llama {

namespace {

class GpuAttention final : public SideAttention {
 public:
  explicit GpuAttention(int ordinal) : ordinal_(ordinal) {}

  absl::Status Upload(const AttentionShape& shape, const AttentionPlan& plan,
                      DeviceStream& stream) override {
    const CudaCurrentDevice current(ordinal_);
    TK_RETURN_IF_ERROR(current.status());
    return executor_.Upload(shape, plan, stream.native_handle());
  }
  absl::Status Run(const PagedKv& kv, const AttentionTensors& tensors,
                   DeviceStream& stream) override {
    const CudaCurrentDevice current(ordinal_);
    TK_RETURN_IF_ERROR(current.status());
    return executor_.Run(kv, tensors, stream.native_handle());
  }

 private:
  const int ordinal_;
  CudaAttention executor_;
};

}  // namespace

absl::StatusOr<KvSide> CudaSide() {
  if (CudaDevice::Count() == 0)
    return FailedPrecondition(
        "--device cuda: CUDA sees no device (no driver, or none is visible to this process)");
  TK_ASSIGN_OR_RETURN(auto device, CudaDevice::Open(0));
  const int ordinal = device->ordinal();
  KvSide side;
  side.device = std::move(device);
  side.attention = std::make_unique<GpuAttention>(ordinal);
  side.make_mover =
      [ordinal](PageMoverOptions options) -> absl::StatusOr<std::unique_ptr<LayerMover>> {
    return CudaPageMover::Make(ordinal, std::move(options));
  };
  return side;
}

}  // namespace turnkeep::llama
