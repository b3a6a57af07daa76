// What a policy would take, to the last.
#pragma once

#include <vector>

#include "store/policy.h"

namespace turnkeep {

// Takes everything out in eviction order.
inline std::vector<ChunkIndex> Drain(EvictionPolicy& policy) {
  std::vector<ChunkIndex> order;
  for (;;) {
    const ChunkIndex chunk = policy.FindVictim([](ChunkIndex) { return true; }, 1);
    if (chunk == kNoChunk) return order;
    policy.Remove(chunk);
    order.push_back(chunk);
  }
}

}  // namespace turnkeep
