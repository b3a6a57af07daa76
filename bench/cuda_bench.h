// What `turnkeep bench … --device cuda` measures: the same figures as on the CPU, with the device's
// own ceilings. FailedPrecondition names what is missing: a build with CUDA, or a device.
//
// Not thread-safe.
#pragma once

#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "attention_bench.h"
#include "gather_bench.h"
#include "overlap_bench.h"

namespace turnkeep::bench {

// OK where the other functions can run.
absl::Status CudaIsThere();

// Times between events on the stream; planning includes the upload of the plan. read_bytes_per_s is
// what a copy on the device moves, both ways counted; operations_per_s what mma.sync does from
// registers, of float32 the same although that kernel does not use it.
absl::StatusOr<AttentionBenchResult> MeasureAttentionOnCuda(
    const AttentionBenchOptions& options, const std::vector<AttentionCaseSpec>& cases);

// Against a copy of the same bytes on the device.
absl::StatusOr<std::vector<GatherRow>> MeasureGatherOnCuda(const GatherBenchOptions& options);

// For MeasureOverlap: the link's rate is measured with copies of 64 MiB from pinned memory.
absl::StatusOr<OverlapDevice> CudaOverlapDevice();

}  // namespace turnkeep::bench
