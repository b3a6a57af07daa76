// The free slots of a segment: a tree of 64-bit words in which a set bit means "something free
// below", so that the lowest free slot is found in one step a level (three for 262,144 slots).
//
// Thread-compatible.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/check.h"
#include "core/units.h"

namespace turnkeep {

class SlotBitmap {
 public:
  // All of `slot_count` (at least 1) free.
  explicit SlotBitmap(uint32_t slot_count) : slot_count_(slot_count), free_count_(slot_count) {
    uint64_t bits = slot_count;
    do {
      std::vector<uint64_t> words(DivideRoundUp(bits, 64), ~uint64_t{0});
      if (bits % 64 != 0) words.back() = (uint64_t{1} << bits % 64) - 1;
      bits = words.size();
      levels_.push_back(std::move(words));
    } while (bits > 1);
  }

  uint32_t slot_count() const { return slot_count_; }
  uint32_t free_count() const { return free_count_; }
  bool IsFree(uint32_t slot) const { return (levels_[0][slot / 64] >> slot % 64 & 1) != 0; }

  // Takes the lowest free slot. At least one must be free.
  uint32_t Take() {
    TK_CHECK(free_count_ > 0);
    uint64_t index = 0;
    for (size_t level = levels_.size(); level-- > 0;) {
      index = index * 64 + static_cast<uint64_t>(std::countr_zero(levels_[level][index]));
    }
    const auto slot = static_cast<uint32_t>(index);
    for (std::vector<uint64_t>& words : levels_) {
      words[index / 64] &= ~(uint64_t{1} << index % 64);
      if (words[index / 64] != 0) break;
      index /= 64;
    }
    --free_count_;
    return slot;
  }

  // Gives back a slot that was taken.
  void Return(uint32_t slot) {
    TK_CHECK(slot < slot_count_ && !IsFree(slot));
    uint64_t index = slot;
    for (std::vector<uint64_t>& words : levels_) {
      const bool had_free = words[index / 64] != 0;
      words[index / 64] |= uint64_t{1} << index % 64;
      if (had_free) break;
      index /= 64;
    }
    ++free_count_;
  }

 private:
  const uint32_t slot_count_;
  uint32_t free_count_;
  std::vector<std::vector<uint64_t>> levels_;  // slots first, the single root word last
};

}  // namespace turnkeep
