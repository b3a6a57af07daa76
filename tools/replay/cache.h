// The store's placement without bytes: which blocks of a prompt are where, and what serving
// a prompt moves. Drives the same Placement and policies as the daemon; writes to disk take no
// time here, nor do reads, unless there are prefetches: then restores and prefetches share the
// disk's bandwidth one after another, and no prefetch begins beside a restore (AdvanceTo).
//
// Within a prompt blocks are touched from the last to the first, so that what depends on a
// block is never newer than the block.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "store/placement.h"
#include "trace.h"

namespace turnkeep::replay {

struct CacheOptions {
  uint64_t host_bytes = 0;
  uint64_t disk_bytes = 0;
  std::string policy = "lru";
  // Blocks are sessions: fifo's order is that in which they came first, however they have grown
  // since and whether they were evicted meanwhile.
  bool whole_sessions = false;
  double high_watermark = 1.0;
  double low_watermark = 1.0;
  bool write_through = false;   // to disk when saved, not when evicted
  uint64_t prefetch_bytes = 0;  // as PlacementOptions; 0: none
  double disk_bytes_per_s = 0;  // with prefetches, above 0
};

// Of a prompt: its longest stored prefix, in blocks.
struct Found {
  uint32_t host_blocks = 0;
  uint32_t disk_blocks = 0;
  uint32_t blocks() const { return host_blocks + disk_blocks; }
};

class Cache {
 public:
  static absl::StatusOr<std::unique_ptr<Cache>> Create(const CacheOptions& options);

  // The longest prefix of `runs` that is in either tier.
  Found Find(std::span<const BlockRun> runs) const;

  // A prompt whose first `found` blocks were found is in use: those on disk come to the
  // host tier, the others are saved there. Blocks of `block_bytes`, a multiple
  // of kBlockBytes. `turn.tail`: the last block is partly filled.
  void Use(std::span<const BlockRun> runs, uint32_t found, uint64_t block_bytes,
           const TurnInfo& turn, int64_t now_ns);
  // The turn that Use was told of as running has ended.
  void EndTurn(std::span<const BlockRun> runs, const TurnInfo& turn, int64_t now_ns);
  // Time passes: reads end, and prefetches begin. Not backwards; before anything else at `now_ns`.
  void AdvanceTo(int64_t now_ns);
  // The soonest known use of blocks; see EvictionPolicy::Expect.
  void Expect(const BlockRun& run, int64_t next_use);
  // What of a prompt would have to be read from disk, up to its first missing block.
  uint64_t DiskOnlyBytes(std::span<const BlockRun> runs) const;
  // Gives these host copies; returns how many.
  uint32_t Promote(std::span<const BlockRun> runs, int64_t now_ns);
  // Drops every copy of `block`, which is about to be saved with another size.
  void Forget(uint32_t block, int64_t now_ns);

  uint64_t disk_written_bytes() const { return disk_written_bytes_; }
  uint64_t evicted_blocks() const { return evicted_blocks_; }  // gone from both tiers
  const Placement& placement() const { return *placement_; }

 private:
  explicit Cache(const CacheOptions& options) : options_(options) {}

  void Handle(PlacementEvent::Kind kind, uint32_t block, uint64_t bytes, int64_t now_ns);
  void Run(int64_t now_ns);
  void GivePlaces(std::span<const BlockRun> runs);
  void Bring(uint32_t block, uint64_t bytes, int64_t now_ns);
  void ReadFromDisk(uint32_t block, uint64_t bytes, int64_t now_ns);
  void RestoreFromDisk(std::span<const BlockRun> runs, int64_t now_ns);

  const CacheOptions options_;
  std::unique_ptr<Placement> placement_;
  bool learns_ = false;      // the policy is told of turns
  bool first_come_ = false;  // fifo of whole sessions
  std::vector<bool> came_;   // by block, with first_come_
  int64_t came_count_ = 0;
  std::vector<PlacementAction> actions_;
  std::vector<uint64_t> bytes_of_;  // by block
  uint64_t disk_written_bytes_ = 0;
  uint64_t evicted_blocks_ = 0;

  struct Reading {
    int64_t end_ns = 0;
    uint32_t block = kNone;  // kNone: a restore reads
  };
  std::deque<Reading> readings_;  // in the order of their ends
  int64_t disk_free_ns_ = 0;
  int64_t next_tick_ns_ = 0;
  int64_t now_ns_ = 0;
};

}  // namespace turnkeep::replay
