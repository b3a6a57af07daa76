// Belady's optimum on prefix blocks: the most block hits that any policy could have had in
// one cache of `capacity_blocks`, knowing the future and free not to keep a block at all.
//
// Since the next use of a parent is never later than its child's, what the optimum keeps
// is closed under parents, so every hit of it is a prefix hit. And all cached blocks of
// one next use lie on the prompt of that request, the last to go first; so it is enough to
// count, for every request to come, how many cached blocks it is the next to use. Serving
// request n hits exactly that many blocks, and its blocks move to their next users.
// (Belady 1966; with bypass, MIN of Mattson et al. 1970.)
//
// Thread-safe: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trace.h"

namespace turnkeep::replay {

// For each request of `order` the blocks by who uses them next, as runs along the prompt.
class NextUses {
 public:
  // `count` blocks next used by the request at `next` of the order (kNone: never).
  struct Run {
    uint32_t count = 0;
    uint32_t next = kNone;
  };
  // `order`: indices into trace.requests, as they were served.
  NextUses(const Trace& trace, std::span<const uint32_t> order);

  // Of the request at `position` of the order, from its first block on.
  std::span<const Run> Of(size_t position) const {
    return {runs_.data() + begins_[position + 1], begins_[position] - begins_[position + 1]};
  }
  size_t size() const { return begins_.size() - 1; }

 private:
  std::vector<Run> runs_;         // of the last request first
  std::vector<uint64_t> begins_;  // descending; [i + 1, i) are those of i
};

// Block hits of the requests from `first_counted` of the order on.
uint64_t OptimalHits(const NextUses& uses, uint64_t capacity_blocks, size_t first_counted);

// The most blocks that are at one time between a use and their next: what a cache must hold
// to miss nothing twice.
uint64_t PeakLiveBlocks(const NextUses& uses);
// The same of blocks that were used within the last `ttl_s` seconds: what a store holds that drops
// what nobody has used for so long (CachedAttention's capacity study: an hour). `times_s` of the
// order, ascending.
uint64_t PeakUnexpiredBlocks(const NextUses& uses, std::span<const double> times_s, double ttl_s);
// The same of what sessions that have begun and not ended have used: a block lives from its first
// use to the last turn of the last session that used it. `order` as of NextUses.
uint64_t PeakSessionBlocks(const Trace& trace, std::span<const uint32_t> order);

}  // namespace turnkeep::replay
