#include "llama/kv_side.h"

#include <utility>

#include "core/thread_pool.h"
#include "gpu_tier/cpu_page_mover.h"
#include "kernels/attention_cpu.h"

namespace turnkeep::llama {

namespace {

class HostAttention final : public SideAttention {
 public:
  absl::Status Upload(const AttentionShape& shape, const AttentionPlan& plan,
                      DeviceStream&) override {
    plan_ = std::make_shared<const AttentionPlan>(plan);
    shape_ = shape;
    return absl::OkStatus();
  }
  absl::Status Run(const PagedKv& kv, const AttentionTensors& tensors,
                   DeviceStream& stream) override {
    return stream.Launch([this, kv, tensors, shape = shape_, plan = plan_] {
      executor_.Run(shape, kv, *plan, tensors);
    });
  }

 private:
  ThreadPool pool_{1};
  CpuAttention executor_{&pool_};  // of the stream's thread
  AttentionShape shape_;
  std::shared_ptr<const AttentionPlan> plan_;  // shared with launches that have not ended
};

}  // namespace

KvSide HostSide(const HostDeviceOptions& options) {
  KvSide side;
  side.device = std::make_unique<HostDevice>(options);
  side.make_mover = [](PageMoverOptions mover) -> absl::StatusOr<std::unique_ptr<LayerMover>> {
    return CpuPageMover::Make(std::move(mover));
  };
  return side;
}

KvSide HostSideWithPages(const HostDeviceOptions& options) {
  KvSide side = HostSide(options);
  side.attention = std::make_unique<HostAttention>();
  return side;
}

}  // namespace turnkeep::llama
