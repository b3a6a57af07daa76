// What the placement decided lately, and what it knew then: for explain and top. A ring of the last
// kMaxDecisions; the last eviction of a chunk is found by its id while it is in the ring.
//
// Thread-compatible: guarded by the store's lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "core/ids.h"
#include "store/placement.h"

namespace turnkeep {

struct Decision {
  uint64_t number = 0;  // from 1, in order
  int64_t unix_s = 0;
  int64_t now_ns = 0;
  ChunkId chunk;
  uint16_t tenant = 0;
  uint64_t slot_bytes = 0;
  bool last_copy = false;  // an eviction after which no tier has the chunk
  PlacementAction action;
};

class DecisionLog {
 public:
  static constexpr size_t kMaxDecisions = 4096;

  // Numbers it.
  void Add(Decision decision);
  // Null when there was none, or it is forgotten. Valid until the next Add.
  const Decision* LastEviction(const ChunkId& chunk) const;
  // The newest `limit` of the tenant with numbers above `after`, in order.
  std::vector<Decision> After(uint16_t tenant, uint64_t after, size_t limit) const;
  uint64_t last_number() const { return next_ - 1; }

 private:
  std::deque<Decision> ring_;
  absl::flat_hash_map<uint64_t, uint64_t> evictions_;  // by the id's prefix: the last's number
  uint64_t next_ = 1;
};

// "evicted from host", "prefetch", "prefetch cancelled".
std::string_view WhatOf(const Decision& decision);
// "policy lru: the first to go of 31 chunks, unused for 12.3 s, nobody expects it; below the
// watermark".
std::string WhyOf(const Decision& decision, std::string_view policy);

}  // namespace turnkeep
