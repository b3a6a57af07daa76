// Device memory cut into equal slots that a pipeline fills and empties in turn, and the cutting of
// layer pages into pieces that fit a slot.
//
// Not thread-safe: of one thread, or guarded by its owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <absl/status/statusor.h>

#include "gpu_tier/device.h"

namespace turnkeep {

// Two, so that one is filled while the other is emptied.
inline constexpr size_t kMinStagingSlots = 2;
inline constexpr size_t kMaxStagingSlots = 4096;

struct StagingSlot {
  std::byte* data = nullptr;
  std::unique_ptr<DeviceEvent> filled;
  std::unique_ptr<DeviceEvent> emptied;  // never recorded at first: Ready
};

class StagingRing {
 public:
  // As many slots as the budget holds, at least kMinStagingSlots and at most kMaxStagingSlots or
  // `useful_slots`. A slot has `piece_bytes`, or `largest_page_bytes` if that is more, so the
  // budget is passed when it is smaller than two pages.
  struct Options {
    uint64_t budget_bytes = 0;
    uint64_t piece_bytes = 0;
    uint64_t largest_page_bytes = 0;
    uint64_t total_bytes = 0;  // what passes through in all: more memory than this is no use
  };
  static absl::StatusOr<StagingRing> Make(Device& device, const Options& options);
  // What Make would take.
  static uint64_t SlotBytes(const Options& options);
  static uint64_t BytesFor(const Options& options);

  uint64_t slot_bytes() const { return slot_bytes_; }
  size_t slot_count() const { return slots_.size(); }
  uint64_t memory_bytes() const { return memory_.size(); }
  // The slot that was taken longest ago.
  StagingSlot& Next() {
    StagingSlot& slot = slots_[next_];
    next_ = (next_ + 1) % slots_.size();
    return slot;
  }

 private:
  uint64_t slot_bytes_ = 0;
  DeviceMemory memory_;
  std::vector<StagingSlot> slots_;
  size_t next_ = 0;
};

// A layer page on its way between host and device.
struct PageToMove {
  size_t index = 0;  // of its chunk in the ticket
  uint64_t bytes = 0;
  bool pooled = false;  // its place is in the page pool, not in the ring
};
// Pages of a layer that move together: into one slot, or to their places in the pool.
struct MovedPiece {
  std::vector<size_t> pages;  // indices
  uint64_t bytes = 0;         // with each page at a multiple of kStagedPageAlignment
  bool pooled = false;
};
inline constexpr uint64_t kStagedPageAlignment = 256;
// In the order of `pages`. Pieces have at most `slot_bytes`; so must every page.
std::vector<MovedPiece> CutIntoPieces(std::span<const PageToMove> pages, uint64_t slot_bytes);

}  // namespace turnkeep
