// What one restore or save has in the page pool: which chunks were found there, which are being
// put there, and where their layer pages lie.
//
// A chunk's slot holds its layer pages in order, each at a multiple of kStagedPageAlignment.
// Chunks whose id is zero (a store that names none) are never pooled.
//
// Not thread-safe: used by its restore's or save's loading thread, after Find and Insert.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include <absl/status/status.h>

#include "core/layout.h"
#include "gpu_tier/page_pool.h"

namespace turnkeep {

// Bytes of the slot that holds a chunk of `token_count` tokens; PagePool::Options::slot_bytes is
// that of a full one.
uint64_t PooledChunkBytes(const KvLayout& layout, uint32_t token_count);

class PooledChunks {
 public:
  // `pool` may be null: then nothing is pooled. Both outlive this.
  PooledChunks(PagePool* pool, const KvLayout& layout) : pool_(pool), layout_(layout) {}

  // One entry a chunk, in the ticket's order.
  void Resize(size_t count) { entries_.resize(count); }
  // Takes chunk `index` from the pool; `reader` waits until its bytes are there. False: not there.
  bool Find(size_t index, const ChunkId& id, uint32_t token_count, DeviceStream& reader);
  // Makes room for it, to be written by `filler`. False: the pool has none to spare.
  bool Insert(size_t index, const ChunkId& id, uint32_t token_count, uint64_t position,
              DeviceStream& filler);

  bool found(size_t index) const { return entries_[index].state == State::kFound; }
  bool filling(size_t index) const { return entries_[index].state == State::kFilling; }
  std::byte* Page(size_t index, uint32_t layer) const {
    return entries_[index].pin.data() + (*entries_[index].offsets)[layer];
  }
  // Of the first token of a found chunk.
  uint64_t position(size_t index) const { return entries_[index].pin.position(); }

  // Every byte of the chunk is right once `filler` has done what it was given: others may find it.
  absl::Status Filled(size_t index, DeviceStream& filler);
  // Unpins. The streams that used the chunks must be empty. What was not Filled vanishes.
  void Clear() { entries_.clear(); }

 private:
  enum class State : uint8_t { kNone, kFound, kFilling, kFilled };
  struct Entry {
    State state = State::kNone;
    PagePool::Pin pin;
    const std::vector<uint64_t>* offsets = nullptr;  // in offsets_
  };
  // Of the layers' pages, by the chunk's tokens. At most two sizes a ticket: full ones and a tail.
  const std::vector<uint64_t>& OffsetsFor(uint32_t token_count);

  PagePool* const pool_;
  const KvLayout& layout_;
  std::map<uint32_t, std::vector<uint64_t>> offsets_;
  std::vector<Entry> entries_;
};

}  // namespace turnkeep
