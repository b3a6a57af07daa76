// The GPU tier: chunks that stay in device memory between turns, inside a byte budget.
//
// The budget is taken from the device once and cut into slots of one chunk. A chunk is put in by a
// copy stream and read by others (scatter, attention); eviction takes the chunk that was used
// longest ago and has no pin. Nobody waits for an evicted chunk's readers: their last use is an
// event, and only the stream that fills the slot anew waits for it. So pressure never blocks the
// engine's streams.
//
// The pool and all it holds are the engine process's own: its death leaves nothing behind.
//
// Thread-safe. Nothing blocks.
//
//   if (auto hit = pool->Find(id); hit.ok()) {
//     TK_RETURN_IF_ERROR(hit->ReadOn(*scatter));
//     … work on scatter that reads hit->data() …
//     TK_RETURN_IF_ERROR(hit->EndedOn(*scatter));
//   } else {
//     TK_ASSIGN_OR_RETURN(PagePool::Pin pin, pool->Insert({.id = id, .bytes = bytes}, *read));
//     … copies on read that write pin.data() …
//     TK_RETURN_IF_ERROR(pin.FilledOn(*read));
//   }
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/synchronization/mutex.h>

#include "core/ids.h"
#include "gpu_tier/device.h"

namespace turnkeep {

class PagePool {
 public:
  struct Options {
    uint64_t budget_bytes = 0;
    uint64_t slot_bytes = 0;  // of the largest chunk: ChunkGeometry::payload_bytes
  };
  struct Chunk {
    ChunkId id;
    uint64_t bytes = 0;
    // Of the chunk's first token when the keys in here were rotated; the store may hold the same
    // chunk for another one.
    uint64_t position = 0;
  };
  struct Counters {
    uint64_t hits = 0;
    uint64_t misses = 0;
    uint64_t evictions = 0;
  };

  // One chunk in the pool, which stays there as long as this lives. Move-only; must not outlive the
  // pool. Destroyed before FilledOn, a chunk that was being inserted vanishes (the filler must live
  // until then); destroyed without EndedOn the streams it was read on must have ended.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept { *this = std::move(other); }
    Pin& operator=(Pin&& other) noexcept {
      std::swap(pool_, other.pool_);
      std::swap(slot_, other.slot_);
      std::swap(filler_, other.filler_);
      return *this;
    }
    ~Pin();

    std::byte* data() const;
    uint64_t position() const;
    // Later work of `stream` waits until the chunk's bytes are there.
    absl::Status ReadOn(DeviceStream& stream) const;
    // The last use so far on `stream` is behind everything put into it. Once for each stream.
    absl::Status EndedOn(DeviceStream& stream) const;
    // The bytes are there when `stream` has done what it was given; others may find the chunk now.
    absl::Status FilledOn(DeviceStream& stream);

   private:
    friend class PagePool;
    Pin(PagePool* pool, size_t slot, DeviceStream* filler)
        : pool_(pool), slot_(slot), filler_(filler) {}
    PagePool* pool_ = nullptr;
    size_t slot_ = 0;
    DeviceStream* filler_ = nullptr;  // not null: being inserted
  };

  // Takes the budget's memory, in whole slots. InvalidArgument: not one slot fits the budget.
  static absl::StatusOr<std::unique_ptr<PagePool>> Make(Device& device, const Options& options);
  ~PagePool();

  // NotFound: not here (or still being filled).
  absl::StatusOr<Pin> Find(const ChunkId& id) ABSL_LOCKS_EXCLUDED(mu_);
  // What Find would find stays here while the pin lives. No use of it, and its bytes are not to be
  // read by this pin.
  absl::StatusOr<Pin> Hold(const ChunkId& id) ABSL_LOCKS_EXCLUDED(mu_);
  // Room for a chunk that `filler` will write; later work of it waits for the last readers of what
  // was there before. AlreadyExists: it is here, or being filled. ResourceExhausted: every slot is
  // pinned; the engine then reads the chunk from the host again.
  absl::StatusOr<Pin> Insert(const Chunk& chunk, DeviceStream& filler) ABSL_LOCKS_EXCLUDED(mu_);
  // Whether Find would find it; no use of it.
  bool Contains(const ChunkId& id) const ABSL_LOCKS_EXCLUDED(mu_);
  // Drops the chunk unless it is pinned; NotFound and FailedPrecondition say so.
  absl::Status Drop(const ChunkId& id) ABSL_LOCKS_EXCLUDED(mu_);

  // What is here and filled, most recently used first: what the engine reports to the store.
  std::vector<Chunk> Residency() const ABSL_LOCKS_EXCLUDED(mu_);
  Counters counters() const ABSL_LOCKS_EXCLUDED(mu_);
  size_t slot_count() const { return slot_count_; }
  uint64_t memory_bytes() const { return memory_.size(); }

 private:
  using EventPtr = std::shared_ptr<DeviceEvent>;  // shared by the slot and who waits for it
  struct Slot {
    Chunk chunk;
    uint32_t pins = 0;
    bool taken = false;   // holds a chunk, or is being filled
    bool filled = false;  // may be found
    EventPtr written;
    std::vector<EventPtr> uses;        // ends of uses that may still run; bounded by pruning
    std::list<size_t>::iterator used;  // in used_, when filled
  };

  explicit PagePool(Device& device) : device_(device) {}
  size_t FreeSlot() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Empty(Slot& slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddUse(size_t slot, EventPtr event) ABSL_LOCKS_EXCLUDED(mu_);
  void Unpin(size_t slot, bool inserting) ABSL_LOCKS_EXCLUDED(mu_);

  Device& device_;
  DeviceMemory memory_;
  uint64_t slot_bytes_ = 0;
  size_t slot_count_ = 0;

  mutable absl::Mutex mu_;
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<ChunkId, size_t> by_id_ ABSL_GUARDED_BY(mu_);
  std::list<size_t> used_ ABSL_GUARDED_BY(mu_);  // filled slots, most recently used first
  Counters counters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace turnkeep
