// The host tier's memory: shared-memory segments cut into slots, one slot a chunk image.
//
// A segment belongs to one tenant, because a client that maps it sees all of it, and has
// slots of one size. Segments are made when needed, up to a byte cap over all tenants. One whose
// last slot is freed is kept, one a class and otherwise up to an eighth of the cap, and beyond that
// given back: an eviction at a watermark empties many segments that are needed at once, and
// making memory costs as much as reading its content from disk. Allocation takes the fullest
// segment and in it the lowest free slot, so that a context's chunks lie side by side
// and other segments run empty.
//
// Thread-compatible: the owner serialises all calls except Memory(), which any thread may
// use for a slot that it holds. O(log segments) a call; system calls happen only when a
// segment is made or unmapped.
//
//   auto arena = HostArena::Open({.capacity_bytes = 8 * kGiB});
//   auto slot = (*arena)->Allocate(tenant, geometry.slot_bytes);
//   std::span<std::byte> image = (*arena)->Memory(*slot);
//   (*arena)->Free(*slot);
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <absl/container/flat_hash_map.h>
#include <absl/status/statusor.h>

#include "core/units.h"
#include "host_tier/shared_memory.h"

namespace turnkeep {

// Segments that exist at one time; each holds a descriptor.
inline constexpr uint32_t kMaxArenaSegments = 4096;
// Segments that one arena makes in its life. Ids are not reused: a client may still map
// what an old one meant.
inline constexpr uint32_t kMaxArenaSegmentIds = 1u << 26;
inline constexpr uint64_t kDefaultSegmentBytes = 64 * kMiB;
inline constexpr uint64_t kMaxSegmentBytes = 16 * kGiB;

struct SlotRef {
  uint32_t segment = 0;  // ids start at 1
  uint32_t slot = 0;     // index in the segment: offset ÷ slot_bytes

  bool is_null() const { return segment == 0; }
  bool operator==(const SlotRef&) const = default;
};
static_assert(sizeof(SlotRef) == 8);

struct SegmentInfo {
  uint32_t id = 0;
  uint32_t tenant = 0;
  int fd = -1;  // borrowed: the arena closes it
  uint64_t slot_bytes = 0;
  std::span<std::byte> memory;  // all of it; memory.size() is what a client maps
};

// Hears of segments as they come and go, so that clients can be granted them and devices can
// register their memory. Called inside Allocate, Free and the destructor, under whatever lock the
// caller holds: must not block and must not call the arena.
class SegmentObserver {
 public:
  virtual ~SegmentObserver() = default;
  virtual void OnSegmentCreated(const SegmentInfo& segment) = 0;
  // No slot of it is held. It is still mapped during the call, and may be unmapped right
  // after: a device's registration must end here, or it would outlive the mapping.
  virtual void OnSegmentDestroyed(const SegmentInfo& segment) = 0;
};

struct ArenaClassUsage {
  uint32_t tenant = 0;
  uint64_t slot_bytes = 0;
  uint32_t segment_count = 0;
  uint64_t segment_bytes = 0;
  uint64_t used_slots = 0;
  uint64_t free_slots = 0;
};

struct ArenaUsage {
  uint64_t capacity_bytes = 0;
  uint64_t segment_bytes = 0;  // all that exist, retired ones included; at most the capacity
  uint64_t retired_bytes = 0;  // of these, empty and waiting to be unmapped
  uint64_t used_bytes = 0;     // slots held
  uint32_t segment_count = 0;
  std::vector<ArenaClassUsage> classes;  // by tenant, then slot size
};

class HostArena {
 public:
  struct Options {
    uint64_t capacity_bytes = 0;  // hard cap on segments of all tenants; at least 4096
    // Size of a segment. Smaller under a small cap (1/64 of it), larger for slots that
    // would not fit four times, and whatever is left of the cap in the end.
    uint64_t segment_bytes = kDefaultSegmentBytes;
    bool huge_pages = false;              // from the system's pool; see page_notice()
    SegmentObserver* observer = nullptr;  // outlives the arena
  };

  // InvalidArgument names the option. Makes no segment yet.
  static absl::StatusOr<std::unique_ptr<HostArena>> Open(const Options& options);
  // No slot's memory may be in use any more.
  ~HostArena();
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;

  // A slot of `slot_bytes` (a multiple of kBlockBytes) for `tenant`; its content is
  // undefined. ResourceExhausted, with numbers, when no segment of this tenant and size has a
  // free slot and the cap or the system allows no new one.
  absl::StatusOr<SlotRef> Allocate(uint32_t tenant, uint64_t slot_bytes);
  // `slot` was given by Allocate and not freed since.
  void Free(SlotRef slot);

  // The slot's memory, valid until Free. Thread-safe while the slot is held.
  std::span<std::byte> Memory(SlotRef slot) const;

  // Whether Allocate gave this slot and nobody freed it. For references from outside.
  bool IsHeld(SlotRef slot) const;
  // The segment, or nullopt when there is none of this id (any more).
  std::optional<SegmentInfo> FindSegment(uint32_t id) const;
  std::vector<SegmentInfo> SegmentsOf(uint32_t tenant) const;

  // An empty segment on its way out: the destructor unmaps it (milliseconds for a large one)
  // and gives its bytes back to the arena. From any thread, before the arena goes.
  class Retired {
   public:
    Retired(Retired&& other) noexcept;
    Retired& operator=(Retired&&) = delete;
    ~Retired();

   private:
    friend class HostArena;
    Retired(SharedMemory memory, std::atomic<uint64_t>* segment_bytes,
            std::atomic<uint64_t>* retired_bytes);
    SharedMemory memory_;
    std::atomic<uint64_t>* segment_bytes_;
    std::atomic<uint64_t>* retired_bytes_;
  };
  // Hands over the segments that ran empty, so that the caller can unmap them outside its
  // lock. Optional: Allocate unmaps them itself when it needs their bytes.
  std::vector<Retired> TakeRetired();

  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t used_bytes(uint32_t tenant) const;
  ArenaUsage Usage() const;
  // Which pages the segments have, for status: "huge pages" from the system's pool, or "4 KiB
  // pages" with the kernel's setting that would make them transparent huge ones, and, where huge
  // pages were asked for, why they are not.
  const std::string& page_notice() const { return page_notice_; }

 private:
  struct Segment;
  struct SizeClass;
  class SegmentTable;
  using ClassKey = std::pair<uint32_t, uint64_t>;  // tenant, slot_bytes

  explicit HostArena(const Options& options);

  absl::StatusOr<Segment*> NewSegment(const ClassKey& key);
  uint64_t SegmentBytesFor(uint64_t slot_bytes) const;
  uint64_t AvailableBytes() const;
  void MakeRoom(uint64_t bytes);
  absl::StatusOr<SharedMemory> CreateMemory(const ClassKey& key, uint64_t bytes);
  void Retire(Segment* segment);

  const uint64_t capacity_bytes_;
  const uint64_t segment_bytes_option_;
  SegmentObserver* const observer_;
  bool huge_pages_;  // cleared at the first failure
  std::string page_notice_;

  std::unique_ptr<SegmentTable> table_;
  uint32_t next_segment_id_ = 1;
  uint32_t segment_count_ = 0;
  // Ordered for Usage(); a class exists while it has a segment.
  std::map<ClassKey, std::unique_ptr<SizeClass>> classes_;
  std::set<uint32_t> empty_segments_;  // the classes' `empty`, all of them
  uint64_t empty_bytes_ = 0;           // of these
  std::vector<Retired> retired_;

  uint64_t used_bytes_ = 0;
  absl::flat_hash_map<uint32_t, uint64_t> used_bytes_by_tenant_;
  // Atomic because Retired subtracts from other threads. Relaxed: a late view only makes
  // Allocate see less room.
  std::atomic<uint64_t> segment_bytes_{0};
  std::atomic<uint64_t> retired_bytes_{0};
};

}  // namespace turnkeep
