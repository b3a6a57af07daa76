// What the store knows, under its one lock, and the small steps by which every path
// changes it: allocate a slot, evict a copy, forget a chunk. save_path, restore_path,
// disk_writer and the rest are written in terms of these.
//
// Thread-safety: members marked so are guarded by `mu`; methods say what they require.
// None does I/O: index changes are queued for the disk writer.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/container/flat_hash_map.h>
#include <absl/synchronization/mutex.h>

#include "core/clock.h"
#include "core/metrics.h"
#include "disk_tier/recovery.h"
#include "host_tier/arena.h"
#include "store/catalog.h"
#include "store/counters.h"
#include "store/decision_log.h"
#include "store/placement.h"
#include "store/registry.h"
#include "store/session_table.h"
#include "store/store.h"

namespace turnkeep {

// A disk copy that has been given up: its index entry is deleted first, its slot freed then.
struct DiskRemoval {
  ChunkId id;
  ExtentRef extent;
};

// What is remembered of a chunk or session that is no more, for explain.
struct Forgotten {
  uint32_t unix_s = 0;
  std::string_view reason;  // static text
};

class StoreState {
 public:
  StoreState(StoreOptions store_options, std::unique_ptr<HostArena> host_arena, Placement rules);

  const StoreOptions options;
  Clock* const clock;
  DiskTier disk;  // parts are null without a disk tier; set once before use

  mutable absl::Mutex mu;
  std::unique_ptr<HostArena> arena ABSL_GUARDED_BY(mu);
  Catalog catalog ABSL_GUARDED_BY(mu);
  SessionTable sessions ABSL_GUARDED_BY(mu);
  Registry registry ABSL_GUARDED_BY(mu);
  Placement placement ABSL_GUARDED_BY(mu);
  Counters counters ABSL_GUARDED_BY(mu);
  DecisionLog decisions ABSL_GUARDED_BY(mu);
  LatencyHistogram save_latency;     // from begin to the commit's answer
  LatencyHistogram restore_latency;  // from begin until every layer is in host memory
  uint64_t next_epoch ABSL_GUARDED_BY(mu) = 1;
  uint64_t next_session ABSL_GUARDED_BY(mu) = 1;
  uint64_t open_tickets ABSL_GUARDED_BY(mu) = 0;
  uint64_t referenced_chunks ABSL_GUARDED_BY(mu) = 0;  // by at least one session
  bool closing ABSL_GUARDED_BY(mu) = false;
  std::vector<std::string> warnings ABSL_GUARDED_BY(mu);

  // Work for the disk writer.
  std::deque<ChunkIndex> to_write ABSL_GUARDED_BY(mu);
  std::vector<DiskRemoval> removals ABSL_GUARDED_BY(mu);
  // Work for the housekeeper: chunks to prefetch, each with an operation reference.
  std::deque<ChunkIndex> to_prefetch ABSL_GUARDED_BY(mu);
  // Called when host slots became free (saves that wait for room try again).
  std::function<void()> on_room;

  bool has_disk() const { return disk.extents != nullptr; }
  int64_t NowNs() const { return clock->NowNs(); }
  int64_t UnixSeconds() const { return clock->UnixSeconds(); }

  // Tells the placement and carries out what it answers.
  void Notify(PlacementEvent::Kind kind, ChunkIndex chunk, uint64_t bytes = 0)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // The same for many chunks at one time, in order.
  void NotifyAll(PlacementEvent::Kind kind, std::span<const ChunkIndex> chunks)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // A host slot for `tenant`, evicting what the placement says. ResourceExhausted when
  // nothing (more) can be evicted at once.
  absl::StatusOr<SlotRef> AllocateSlot(uint16_t tenant, uint64_t slot_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Gives back a slot that never became a host copy.
  void ReleaseSlot(SlotRef slot, uint64_t slot_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Answers a kPrefetch that was not begun: gives its reservation and reference back.
  void RefusePrefetch(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Who is expected to use the chunk, and when (kNoExpectedUse: nobody is).
  void NotifyExpected(ChunkIndex chunk, int64_t next_use) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // What a hint says of keeping it (KeepOrder).
  void NotifyKeep(ChunkIndex chunk, int8_t keep) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // `turn` begins to use these, or has ended (TurnInfo::is_use), from the last chunk to the first,
  // so that a prefix outlives what depends on it. `tail`: the last is partly filled.
  void NotifyTurn(const TurnInfo& turn, std::span<const ChunkIndex> backwards, bool tail)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // The slot becomes the host copy of the chunk.
  void FillHost(ChunkIndex chunk, SlotRef slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // References of running operations. The last one to go forgets a chunk that no
  // session refers to.
  void AddOperationRef(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void DropOperationRef(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void AddSessionRef(ChunkIndex chunk, bool pinned) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // `reason` is remembered if this forgets the chunk.
  void DropSessionRef(ChunkIndex chunk, bool pinned, std::string_view reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // Restores read the host copy, reads read the disk copy.
  void PinHost(std::span<const ChunkIndex> chunks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void UnpinHost(std::span<const ChunkIndex> chunks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void PinHost(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { PinHost({&chunk, 1}); }
  void UnpinHost(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { UnpinHost({&chunk, 1}); }

  // A copy turned out damaged or unreadable: it is dropped (a pinned host copy with its
  // last pin) and counted.
  void DropDamagedHost(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void DropDamagedDisk(ChunkIndex chunk, MissingReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // Frees a damaged host copy that nothing uses any more.
  void SettleDamagedHost(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Drops the disk copy if nothing holds it, whatever the policy's order.
  void EvictFromDisk(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // The chunk's slot image in the arena; the entry must be in the host tier.
  std::span<std::byte> HostImage(const ChunkEntry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  void Remember(const ChunkId& id, std::string_view reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  const Forgotten* FindForgotten(const ChunkId& id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // The same for sessions that are no more.
  void RememberSession(uint16_t tenant, const std::string& name, std::string_view reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  const Forgotten* FindForgottenSession(uint16_t tenant, const std::string& name) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Warn(const std::string& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // Whether the disk writer has something to do.
  bool WriterHasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    return !to_write.empty() || !removals.empty();
  }

 private:
  void NotifyAll(const PlacementEvent& event, std::span<const ChunkIndex> chunks)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Notify(const PlacementEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void LogDecision(const PlacementAction& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  std::vector<PlacementAction> TakeActions() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Carry(std::vector<PlacementAction> actions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Carry(const PlacementAction& action) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void FreeHostCopy(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void GiveUpDiskCopy(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void SetMissing(ChunkEntry& entry, MissingReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Forget(ChunkIndex chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  std::vector<PlacementAction> actions_ ABSL_GUARDED_BY(mu);
  // By a 64-bit check of what it was; bounded, the oldest goes first.
  class ForgottenLog {
   public:
    void Add(uint64_t key, const Forgotten& what);
    const Forgotten* Find(uint64_t key) const;

   private:
    absl::flat_hash_map<uint64_t, Forgotten> by_key_;
    std::deque<uint64_t> order_;
  };
  ForgottenLog forgotten_chunks_ ABSL_GUARDED_BY(mu);
  ForgottenLog forgotten_sessions_ ABSL_GUARDED_BY(mu);
};

}  // namespace turnkeep
