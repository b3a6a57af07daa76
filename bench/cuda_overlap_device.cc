#include <algorithm>
#include <memory>

#include "core/units.h"
#include "cuda_bench.h"
#include "cuda_timing.h"
#include "gpu_tier/cuda_page_mover.h"
#include "kernels/cuda_ceilings.h"
#include "kernels/cuda_status.h"

namespace turnkeep::bench {
namespace {

constexpr uint64_t kCopyBytes = 64 * kMiB;

absl::StatusOr<double> MeasureLink() {
  TK_ASSIGN_OR_RETURN(CudaTiming cuda, CudaTiming::Open());
  TK_ASSIGN_OR_RETURN(const DeviceMemory from, cuda.device().AllocatePinned(kCopyBytes));
  TK_ASSIGN_OR_RETURN(const DeviceMemory to, cuda.device().Allocate(kCopyBytes));
  std::fill_n(from.data(), kCopyBytes, std::byte{0x3C});
  double best_s = 1e9;
  for (int round = 0; round < 5; ++round) {
    TK_ASSIGN_OR_RETURN(const double seconds, cuda.Seconds([&] {
      return cuda.stream().Copy(CopyKind::kToDevice, to.data(), from.data(), kCopyBytes);
    }));
    best_s = std::min(best_s, seconds);
  }
  return static_cast<double>(kCopyBytes) / best_s;
}

}  // namespace

absl::StatusOr<OverlapDevice> CudaOverlapDevice() {
  OverlapDevice out;
  TK_ASSIGN_OR_RETURN(out.link_bytes_per_s, MeasureLink());
  TK_ASSIGN_OR_RETURN(auto device, CudaDevice::Open(0));
  const int ordinal = device->ordinal();
  out.device = std::move(device);
  out.compute = [ordinal](DeviceStream& stream, double seconds) -> absl::Status {
    const CudaCurrentDevice current(ordinal);
    TK_RETURN_IF_ERROR(current.status());
    return CudaStatus(LaunchSpin(static_cast<uint64_t>(seconds * 1e9), stream.native_handle()),
                      "a layer's compute");
  };
  out.make_mover =
      [ordinal](PageMoverOptions options) -> absl::StatusOr<std::unique_ptr<LayerMover>> {
    return CudaPageMover::Make(ordinal, std::move(options));
  };
  out.registers_memory = true;
  return out;
}

}  // namespace turnkeep::bench
