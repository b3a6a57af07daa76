// Placement: which chunk is where, and what moves. A pure state machine: events in,
// actions out. It has no threads, clocks, files or sockets; the daemon, the replayer
// and the fuzzers drive this same code, and the same events give the same actions.
//
// Bytes are slot bytes. A capacity is never passed by what the placement allows: an
// event that would pass one is preceded by the evictions that make room, and Admit
// says whether there is any.
//
// Watermarks: an event that leaves a tier above `high` evicts down to `low`. A host copy
// that is on disk too is simply dropped; one that is not is first written to disk.
//
// Thread-compatible: the store calls it under its lock.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/kv_types.h"
#include "store/policy.h"

namespace turnkeep {

struct PlacementOptions {
  uint64_t host_capacity_bytes = 0;
  uint64_t disk_capacity_bytes = 0;  // 0: no disk tier
  double high_watermark = 0.95;
  double low_watermark = 0.90;
  bool write_through = false;  // copy to disk as soon as a chunk is in the host tier
  double max_pinned_share = 0.5;
};

struct PlacementEvent {
  enum class Kind : uint8_t {
    kHostReserved,     // `bytes` of host slots were handed out for a save or a promotion
    kHostUnreserved,   // … and given back
    kHostFilled,       // a reserved slot became the host copy of `chunk`
    kHostLost,         // the host copy is gone for another reason (damage, forgotten chunk)
    kDiskWritten,      // a kWriteToDisk ended well
    kDiskWriteFailed,  // … or did not
    kDiskFound,        // recovery: `chunk` of `bytes` is on disk
    kDiskLost,         // the disk copy is gone for another reason
    kTouched,          // used by a save or a restore
    kExpected,         // its soonest known use is `next_use` (EvictionPolicy::Expect)
    kTurnEnded,        // `turn` used it last
    kPinned,           // neither copy may go
    kUnpinned,
    kHostPinned,  // the host copy may not go (a restore, a write)
    kHostUnpinned,
    kDiskPinned,  // the disk copy may not go (a read)
    kDiskUnpinned,
    kHeld,  // the last copy may not go (a running save relies on it)
    kUnheld,
    kHostSpaceNeeded,  // a host slot of `bytes` could not be had
    kDiskSpaceNeeded,  // a disk slot of `bytes` could not be had
    kWriteWanted,      // `chunk` shall get a disk copy now (durability, shutdown)
  };
  Kind kind;
  ChunkIndex chunk = kNoChunk;
  uint64_t bytes = 0;
  int64_t now_ns = 0;
  int64_t next_use = kNoExpectedUse;
  TurnInfo turn;
};

struct PlacementAction {
  enum class Kind : uint8_t {
    kWriteToDisk,  // answer with kDiskWritten or kDiskWriteFailed
    kEvictHost,    // done at once
    kEvictDisk,    // done at once
  };
  enum class Reason : uint8_t { kNone, kWatermark, kSpace, kNoDiskTier, kDiskFull, kWriteFailed };
  Kind kind;
  ChunkIndex chunk = kNoChunk;
  Reason reason = Reason::kNone;
};

class Placement {
 public:
  Placement(const PlacementOptions& options, std::unique_ptr<EvictionPolicy> host_policy,
            std::unique_ptr<EvictionPolicy> disk_policy);

  // Appends what has to happen. Evictions are already accounted for when it returns.
  void Handle(const PlacementEvent& event, std::vector<PlacementAction>* actions);

  struct TierUsage {
    uint64_t capacity_bytes = 0;
    uint64_t used_bytes = 0;     // copies and reservations
    uint64_t leaving_bytes = 0;  // host: being written to disk in order to go
    uint64_t pinned_bytes = 0;   // by kPinned
    uint64_t chunk_count = 0;
  };
  const TierUsage& host() const { return host_; }
  const TierUsage& disk() const { return disk_; }

  // Whether pinning `bytes` more would pass max_pinned_share of the tier.
  bool MayPin(Tier tier, uint64_t bytes) const;
  // Whether writes that make room in the host tier are under way.
  bool RoomIsComing() const { return host_.leaving_bytes > 0; }

  bool MayEvictFromDisk(ChunkIndex chunk) const { return DiskEvictable(chunk); }

  bool InHost(ChunkIndex chunk) const { return Has(chunk, kInHost); }
  bool OnDisk(ChunkIndex chunk) const { return Has(chunk, kOnDisk); }
  bool Writing(ChunkIndex chunk) const { return Has(chunk, kWriting); }

 private:
  enum Flag : uint8_t { kInHost = 1, kOnDisk = 2, kWriting = 4, kLeaving = 8 };
  // 16 bytes a chunk, beside the policies' links.
  struct State {
    uint32_t blocks = 0;  // slot bytes / kBlockBytes
    uint16_t pins = 0;
    uint16_t host_pins = 0;
    uint16_t disk_pins = 0;
    uint16_t holds = 0;
    uint8_t flags = 0;
  };

  bool Has(ChunkIndex chunk, Flag flag) const {
    return chunk < states_.size() && (states_[chunk].flags & flag) != 0;
  }
  State& At(ChunkIndex chunk);
  uint64_t BytesOf(ChunkIndex chunk) const;

  void HandleCounts(const PlacementEvent& event);
  void DiskFound(const PlacementEvent& event);
  void HostFilled(const PlacementEvent& event, std::vector<PlacementAction>* actions);
  void DiskWritten(const PlacementEvent& event, std::vector<PlacementAction>* actions);
  void DiskWriteFailed(const PlacementEvent& event, std::vector<PlacementAction>* actions);

  bool HostEvictable(ChunkIndex chunk) const;
  bool DiskEvictable(ChunkIndex chunk) const;
  // Frees host bytes until at most `target` are used, counting those on their way out;
  // slots of `preferred_bytes` first (0: no preference).
  void ShrinkHost(uint64_t target, uint64_t preferred_bytes, PlacementAction::Reason reason,
                  std::vector<PlacementAction>* actions);
  bool ShrinkDisk(uint64_t target, uint64_t preferred_bytes, PlacementAction::Reason reason,
                  std::vector<PlacementAction>* actions);
  ChunkIndex Victim(EvictionPolicy& policy, uint64_t preferred_bytes,
                    bool (Placement::*evictable)(ChunkIndex) const);
  bool StartWrite(ChunkIndex chunk, bool leaving, std::vector<PlacementAction>* actions);
  void DropHost(ChunkIndex chunk);
  void DropDisk(ChunkIndex chunk);

  PlacementOptions options_;
  std::unique_ptr<EvictionPolicy> host_policy_;
  std::unique_ptr<EvictionPolicy> disk_policy_;
  std::vector<State> states_;
  TierUsage host_;
  TierUsage disk_;
};

}  // namespace turnkeep
