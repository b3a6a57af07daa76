// The catalog: every chunk the store knows of, in memory. An entry lives while a session
// refers to it, an operation uses it, or a known chunk follows it; its KV may be in the
// host tier, on disk, in both or (evicted, lost) in none.
//
// Entries are addressed by ChunkIndex, which is stable for the entry's life and reused
// afterwards. About 140 bytes a chunk with the id map.
//
// Thread-compatible: guarded by the store's lock.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <absl/container/flat_hash_set.h>

#include "core/digest.h"
#include "core/ids.h"
#include "disk_tier/extent_ref.h"
#include "host_tier/arena.h"
#include "store/policy.h"

namespace turnkeep {

// Why no tier holds a chunk's KV.
enum class MissingReason : uint8_t {
  kNeverSaved = 0,
  kEvictedForRoom,     // left the last tier so that others fit
  kEvictedNoDiskTier,  // left host memory, and there is no disk tier
  kEvictedDiskFull,    // left host memory, and the disk tier could not take it
  kDiskWriteFailed,
  kDigestFailed,
  kReadFailed,
  kNotOnDiskAtRestart,  // was only in host memory when the process ended
};
std::string_view NameOf(MissingReason reason);  // a phrase for people

struct ChunkEntry {
  ChunkId id;
  Digest root;         // of the header of both copies
  uint64_t epoch = 0;  // of both copies
  SlotRef host;        // null: not in the host tier
  ExtentRef disk;      // null: not on disk
  ChunkIndex parent = kNoChunk;
  ChunkIndex first_child = kNoChunk;
  ChunkIndex next_sibling = kNoChunk;
  ChunkIndex previous_sibling = kNoChunk;
  uint32_t session_refs = 0;    // sessions whose view contains it
  uint32_t operation_refs = 0;  // running saves, restores, writes and loads that use it
  uint32_t slot_blocks = 0;     // slot bytes / kBlockBytes
  uint32_t position_base = 0;
  uint32_t created_unix_s = 0;
  uint32_t missing_since_unix_s = 0;
  uint32_t opening = 0;      // OpeningOf its tokens; 0: unknown
  uint16_t token_count = 0;  // 0: not a chunk but a root or a view, only a parent
  uint16_t layout = 0;
  uint16_t tenant = 0;
  MissingReason missing_reason = MissingReason::kNeverSaved;
  uint32_t host_pins = 0;         // spans of restores that read the host copy
  bool host_damaged : 1 = false;  // not given to anybody any more; freed with its last pin
  bool loading : 1 = false;       // being read from disk into the host tier
  bool hashed : 1 = false;        // identity from an engine's block hash
  bool in_use : 1 = false;

  bool HasData() const { return (!host.is_null() && !host_damaged) || !disk.IsNull(); }
  bool InHost() const { return !host.is_null() && !host_damaged; }
};

// Entries by index in blocks that never move: growth copies nothing, and an index costs a
// shift and a mask.
class ChunkEntries {
 public:
  static constexpr uint32_t kBlockShift = 10;

  ChunkEntry& operator[](ChunkIndex index) {
    return blocks_[index >> kBlockShift][index & (kPerBlock - 1)];
  }
  const ChunkEntry& operator[](ChunkIndex index) const {
    return blocks_[index >> kBlockShift][index & (kPerBlock - 1)];
  }
  ChunkIndex size() const { return size_; }
  void Add() {
    if ((size_ & (kPerBlock - 1)) == 0)
      blocks_.push_back(std::make_unique<ChunkEntry[]>(kPerBlock));
    ++size_;
  }

 private:
  static constexpr uint32_t kPerBlock = 1u << kBlockShift;
  std::vector<std::unique_ptr<ChunkEntry[]>> blocks_;
  ChunkIndex size_ = 0;
};

class Catalog {
 public:
  Catalog();

  ChunkEntry& operator[](ChunkIndex index) { return entries_[index]; }
  const ChunkEntry& operator[](ChunkIndex index) const { return entries_[index]; }

  // kNoChunk if there is no such entry.
  ChunkIndex Find(const ChunkId& id) const;
  // The entry of `id`, made with no data and no references if it is new. `parent`
  // (kNoChunk for roots and views) is set only on a new entry, or on one that was made
  // without knowing its parent.
  ChunkIndex FindOrCreate(const ChunkId& id, ChunkIndex parent, uint16_t tenant, uint16_t layout,
                          uint32_t token_count);
  // Erases the entry if nothing needs it any more (no references, no data, no children),
  // and then its parents likewise. Calls `erased` for each: its index will be another chunk's.
  void EraseIfUnneeded(ChunkIndex index, const std::function<void(ChunkIndex)>& erased);

  // One past the largest index in use; visit with in_use.
  ChunkIndex end() const { return entries_.size(); }

 private:
  struct HashById {
    using is_transparent = void;
    const ChunkEntries* entries;
    size_t operator()(ChunkIndex index) const { return (*entries)[index].id.Prefix64(); }
    size_t operator()(const ChunkId& id) const { return id.Prefix64(); }
  };
  struct EqualById {
    using is_transparent = void;
    const ChunkEntries* entries;
    bool operator()(ChunkIndex a, ChunkIndex b) const { return a == b; }
    bool operator()(ChunkIndex a, const ChunkId& b) const { return (*entries)[a].id == b; }
    bool operator()(const ChunkId& a, ChunkIndex b) const { return (*entries)[b].id == a; }
  };

  void LinkToParent(ChunkIndex index, ChunkIndex parent);
  void UnlinkFromParent(ChunkIndex index);

  ChunkEntries entries_;
  std::vector<ChunkIndex> free_;
  absl::flat_hash_set<ChunkIndex, HashById, EqualById> ids_;
};

}  // namespace turnkeep
