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
// Prefetch (placement_prefetch.cc): a chunk that somebody is expected to use (kExpected) and that
// is only on disk is asked for, the soonest use first, as far as the fetch window reaches. A
// prefetch evicts only what is on disk too and expected later, or by nobody; while restores read
// from disk none begins. When nobody who is expected waits, the policy's own prediction counts: the
// chunk on disk only that would be worth most is read, once between two uses, if that is clearly
// more than what has to go for it is worth.
//
// Hints: what is to be dropped soon goes first, what is retained last (KeepOrder); no prefetch
// evicts what is retained.
//
// Thread-compatible: the store calls it under its lock.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "core/kv_types.h"
#include "store/keep_order.h"
#include "store/policy.h"

namespace turnkeep {

struct PlacementOptions {
  uint64_t host_capacity_bytes = 0;
  uint64_t disk_capacity_bytes = 0;  // 0: no disk tier
  double high_watermark = 0.95;
  double low_watermark = 0.90;
  bool write_through = false;  // copy to disk as soon as a chunk is in the host tier
  double max_pinned_share = 0.5;
  // The fetch window of CachedAttention in bytes: what prefetches may hold of the host tier until
  // it is used. 0: nothing is prefetched.
  uint64_t prefetch_bytes = 0;
  uint64_t prefetch_in_flight_bytes = UINT64_MAX;  // asked for and not answered
  uint64_t prefetch_bytes_per_second = 0;          // 0: no budget
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
    kTouched,          // used by a save or a restore; of which turn, if turn.is_use
    kExpected,         // its soonest known use is `next_use` (EvictionPolicy::Expect)
    kTurnEnded,        // `turn` used it last
    kKeep,    // a hint says `keep` (KeepOrder) of it; a use or kExpected ends kDropSoonKeep
    kPinned,  // neither copy may go
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
    kDemoteWanted,     // the host copy of `chunk` shall go, if it is or can be on disk
    kPrefetchFailed,   // a kPrefetch did not end in kHostFilled; its slot is unreserved already
    kDiskReadsBegin,   // a restore begins to read from disk
    kDiskReadsEnd,     // … and has ended
    kForgotten,        // the index of `chunk`, which has no copy, will mean another one
    kTick,             // only time has passed
  };
  Kind kind;
  ChunkIndex chunk = kNoChunk;
  uint64_t bytes = 0;
  int64_t now_ns = 0;
  int64_t next_use = kNoExpectedUse;
  TurnInfo turn;
  int8_t keep = kPolicyKeep;
};

struct PlacementAction {
  enum class Kind : uint8_t {
    kWriteToDisk,  // answer with kDiskWritten or kDiskWriteFailed
    kEvictHost,    // done at once
    kEvictDisk,    // done at once
    // Read `chunk` from disk into host memory. Its slot bytes are reserved already. Answer with
    // kHostFilled, or with kHostUnreserved and then kPrefetchFailed; the other way round when a
    // restore that had joined still looks at the slot.
    kPrefetch,
    // Nobody is expected to use `chunk` any more, whose prefetch is running: it may be given
    // up, and is answered all the same.
    kCancelPrefetch,
  };
  enum class Reason : uint8_t {
    kNone,
    kWatermark,
    kSpace,
    kNoDiskTier,
    kDiskFull,
    kWriteFailed,
    kPrefetch,  // for one that is used sooner
    kDemoted,   // by a hint
    kDropped,   // a hint said that nobody will use it
  };
  Kind kind;
  ChunkIndex chunk = kNoChunk;
  Reason reason = Reason::kNone;
  // What was known when it was decided, for people.
  int8_t keep = kPolicyKeep;
  int64_t next_use = kNoExpectedUse;
  int64_t idle_ns = 0;     // since the last use
  uint64_t of_chunks = 0;  // in the tier that it leaves, with it
};

class Placement {
 public:
  Placement(const PlacementOptions& options, std::unique_ptr<EvictionPolicy> host_policy,
            std::unique_ptr<EvictionPolicy> disk_policy);

  // Appends what has to happen. Evictions are already accounted for when it returns.
  void Handle(const PlacementEvent& event, std::vector<PlacementAction>* actions);
  // The same for every chunk of a list, in order, whatever `event.chunk` is. A restore touches and
  // pins some thousand chunks before it answers.
  void HandleEach(PlacementEvent event, std::span<const ChunkIndex> chunks,
                  std::vector<PlacementAction>* actions);

  struct TierUsage {
    uint64_t capacity_bytes = 0;
    uint64_t used_bytes = 0;     // copies and reservations
    uint64_t leaving_bytes = 0;  // host: being written to disk in order to go
    uint64_t pinned_bytes = 0;   // by kPinned
    uint64_t chunk_count = 0;
  };
  const TierUsage& host() const { return host_; }
  const TierUsage& disk() const { return disk_; }

  struct PrefetchUsage {
    uint64_t in_flight_bytes = 0;
    uint64_t unused_bytes = 0;   // in host memory by a prefetch and not used since
    uint64_t waiting_count = 0;  // chunks on disk only that somebody is expected to use
    uint64_t begun = 0;          // and, of those begun:
    uint64_t failed = 0;
    uint64_t used = 0;    // by the time they left
    uint64_t wasted = 0;  // left unused
  };
  PrefetchUsage prefetch() const;

  // Whether pinning `bytes` more would pass max_pinned_share of the tier.
  bool MayPin(Tier tier, uint64_t bytes) const;
  // Whether writes that make room in the host tier are under way.
  bool RoomIsComing() const { return host_.leaving_bytes > 0; }

  bool MayEvictFromDisk(ChunkIndex chunk) const { return DiskEvictable(chunk); }

  bool InHost(ChunkIndex chunk) const { return Has(chunk, kInHost); }
  bool OnDisk(ChunkIndex chunk) const { return Has(chunk, kOnDisk); }
  bool Writing(ChunkIndex chunk) const { return Has(chunk, kWriting); }
  bool Prefetching(ChunkIndex chunk) const { return Has(chunk, kPrefetching); }

 private:
  enum Flag : uint8_t {
    kInHost = 1,
    kOnDisk = 2,
    kWriting = 4,
    kLeaving = 8,
    kPrefetching = 16,
    kPrefetched = 32,  // in host memory by a prefetch, not used since
    kTried = 64,       // a prefetch was begun for the present expectation, or since the last use
  };
  // 40 bytes a chunk, beside the policies' links. A view may show one chunk in a hundred thousand
  // spans, and each of them counts.
  struct State {
    uint32_t blocks = 0;  // slot bytes / kBlockBytes
    uint32_t pins = 0;
    uint32_t host_pins = 0;
    uint32_t disk_pins = 0;
    uint32_t holds = 0;
    uint8_t flags = 0;
    int64_t next_use = kNoExpectedUse;
    int64_t last_use_ns = 0;
  };

  bool Has(ChunkIndex chunk, Flag flag) const {
    return chunk < states_.size() && (states_[chunk].flags & flag) != 0;
  }
  State& At(ChunkIndex chunk);
  uint64_t BytesOf(ChunkIndex chunk) const;

  void Decide(const PlacementEvent& event, std::vector<PlacementAction>* actions);
  void Annotate(int64_t now_ns, PlacementAction* action) const;
  void Forget(ChunkIndex chunk);
  void Touched(ChunkIndex chunk, const PlacementEvent& event);
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

  // Prefetch (placement_prefetch.cc).
  bool HandlePrefetch(const PlacementEvent& event, std::vector<PlacementAction>* actions);
  static bool MayPrefetchAfter(PlacementEvent::Kind kind);
  void Demote(ChunkIndex chunk, std::vector<PlacementAction>* actions);
  void SetKeep(ChunkIndex chunk, int8_t keep, int64_t now_ns);
  void ForgetDropSoon(ChunkIndex chunk);
  void EndDropSoon(ChunkIndex chunk, int64_t now_ns);
  void Expected(const PlacementEvent& event, std::vector<PlacementAction>* actions);
  void EndPrefetch(ChunkIndex chunk);
  void NoteUse(ChunkIndex chunk, bool used);
  bool MayBePrefetched(ChunkIndex chunk) const;
  void Consider(ChunkIndex chunk);
  void Retry(ChunkIndex chunk);
  void Pump(int64_t now_ns, std::vector<PlacementAction>* actions);
  void PumpPredicted(int64_t now_ns, std::vector<PlacementAction>* actions);
  bool MayBegin(uint64_t bytes) const;
  void Begin(ChunkIndex chunk, std::vector<PlacementAction>* actions);
  bool MakeRoomFor(ChunkIndex chunk, double worth, std::vector<PlacementAction>* actions);

  PlacementOptions options_;
  std::unique_ptr<KeepOrder> host_policy_;
  std::unique_ptr<KeepOrder> disk_policy_;
  std::vector<State> states_;
  TierUsage host_;
  TierUsage disk_;
  // What could be prefetched, by next use.
  std::set<std::pair<int64_t, ChunkIndex>> wanted_;
  PrefetchUsage prefetch_;
  uint64_t disk_readers_ = 0;
  double budget_bytes_ = 0;
  int64_t budget_ns_ = 0;
};

}  // namespace turnkeep
