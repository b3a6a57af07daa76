// Attention in plain loops and double precision: the oracle of every executor and planner.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention.h"

namespace turnkeep {

// Where one token's K and V lie.
struct KvToken {
  uint32_t page = 0;
  uint32_t offset = 0;  // in the page
};

// `visible[r]`: the tokens that row r sees. `output` and `lse` as AttentionTensors, in double.
void ReferenceAttention(const AttentionShape& shape, const PagedKv& kv, const std::byte* queries,
                        const std::vector<std::vector<KvToken>>& visible, double* output,
                        double* lse);

}  // namespace turnkeep
