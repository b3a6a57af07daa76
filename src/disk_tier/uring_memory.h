// UringMemory: the ring's table of registered buffers.
//
// Memory offered with Add is cut into pieces of kPieceBytes; a piece is pinned at the first
// operation that touches it, so that offering a terabyte costs nothing until it is used and no
// single call pins for long (64 MiB of 4 KiB pages: some ten milliseconds).
//
// Used by the ring's thread only, except Describe.
#pragma once

#include <liburing.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "core/units.h"

namespace turnkeep {

class UringMemory {
 public:
  static constexpr uint64_t kPieceBytes = 64 * kMiB;
  static constexpr uint32_t kMaxPieces = 8192;  // the kernel's bound is 16384

  struct Region {
    std::span<std::byte> memory;
    uint32_t first_index = 0;  // of its pieces in the ring's table
    std::vector<bool> pinned;  // by piece; empty when the table had no room
    uint32_t users = 0;        // operations taken from the queue and not finished
    bool removed = false;
  };

  // Makes the empty table; `enabled` false or a refusal means plain buffers.
  void Init(io_uring* ring, bool enabled);

  void Add(std::span<std::byte> memory);
  // No operation finds the region any more; it is forgotten with its last user.
  void Remove(std::span<std::byte> memory);

  // The region that holds all of `buffer`, its user count raised; null if none.
  Region* Acquire(std::span<std::byte> buffer);
  void Release(Region* region);

  // Table index of the registered piece at `address` and how many bytes of it follow; -1
  // when plain I/O must be used.
  int FixedIndex(Region* region, const std::byte* address, uint64_t* bytes_left);

  std::string Describe() const;

 private:
  bool TakeIndices(uint32_t count, uint32_t* first);
  bool Pin(Region* region, size_t piece);
  void Forget(const Region& region);
  void Publish();

  io_uring* ring_ = nullptr;
  bool usable_ = false;
  std::string refusal_;  // why plain buffers are used, empty when they are not
  std::map<const std::byte*, std::unique_ptr<Region>> regions_;  // by start
  std::vector<std::unique_ptr<Region>> leaving_;                 // removed, with users left
  std::map<uint32_t, uint32_t> taken_;                           // first index -> count

  mutable absl::Mutex mutex_;
  std::string description_ ABSL_GUARDED_BY(mutex_) = "no memory registered";
};

}  // namespace turnkeep
