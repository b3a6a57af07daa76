// What attention units cost on this machine, for the auto planner.
#pragma once

#include "core/thread_pool.h"
#include "gpu_tier/attention_planner.h"
#include "kernels/attention.h"

namespace turnkeep {

// Times the CPU executor on a few small plans of the shape; about 250 ms. The shape must be valid.
// Not thread-safe with other work on the pool.
AttentionCosts MeasureCpuCosts(const AttentionShape& shape, ThreadPool& pool);

}  // namespace turnkeep
