// ExtentStore: slots for chunk images in large preallocated files.
//
// A file holds slots of one size class behind a one-block header (extent_file_header.h).
// Slots are given lowest first from the fullest file, so that chunks written together lie
// together. The cap counts whole files, headers included, and is checked before a file is
// made; an entirely free file is deleted when another class needs its space.
//
// The store promises, and this class relies on it: a slot is freed only after its
// index entry is durably gone and no I/O uses it.
//
// Thread-safe. Allocate and DeleteFreeFiles may block on I/O (a file is made or removed);
// no other call does. Completions run on the device's thread (block_device.h).
//
//   TK_ASSIGN_OR_RETURN(ExtentRef ref, extents->Allocate(slot_bytes, WritePurpose::kDemotion));
//   TK_RETURN_IF_ERROR(extents->Write(ref, image, [](const absl::Status& s, uint64_t) {...}));
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/clock.h"
#include "disk_tier/block_device.h"
#include "disk_tier/extent_ref.h"

namespace turnkeep {

// Merged I/O of adjacent slots and adjacent memory stops at this size.
inline constexpr uint64_t kMaxMergedIoBytes = 16 * kMiB;
inline constexpr uint64_t kMinExtentFileBytes = 4 * kMiB;
inline constexpr uint32_t kMaxExtentFiles = 1u << 16;
inline constexpr uint32_t kMaxSlotsPerFile = 1u << 20;

struct ExtentStoreOptions {
  uint64_t capacity_bytes = 0;  // hard cap over whole files
  // Size of a new file; 0 derives it from the cap: 1/64 of it, 256 MiB at most while that
  // gives no more than 512 files, kMinExtentFileBytes at least. A slot larger than a
  // quarter of it gets a file of four slots, or of what fits.
  uint64_t file_bytes = 0;
  uint64_t write_budget_bytes_per_day = 0;  // 0: no budget
  StoreId store_id{};
  uint32_t first_file = 1;  // no new file gets a lower number
  Clock* clock = Clock::System();
};

enum class WritePurpose : uint8_t {
  kDurability = 1,  // asked for by the user's durability setting: charged, never refused
  kDemotion,        // refused when the day's write budget is used up
};

struct ExtentWrite {
  ExtentRef ref;
  std::span<const std::byte> image;  // block multiple, at most the slot
  IoDone done;
};
struct ExtentRead {
  ExtentRef ref;
  uint64_t offset = 0;  // in the slot, block multiple
  std::span<std::byte> buffer;
  IoDone done;
};

struct ExtentClassUsage {
  uint64_t slot_bytes = 0;
  uint32_t files = 0;
  uint64_t slots = 0;
  uint64_t used_slots = 0;
  bool operator==(const ExtentClassUsage&) const = default;
};
struct ExtentFileUsage {
  uint32_t file = 0;
  uint64_t slot_bytes = 0;
  uint64_t file_bytes = 0;
  uint32_t slots = 0;
  uint32_t used_slots = 0;
  uint32_t quarantined_slots = 0;
  bool poisoned = false;
  bool operator==(const ExtentFileUsage&) const = default;
};
struct ExtentUsage {
  uint64_t capacity_bytes = 0;
  uint64_t file_bytes = 0;  // all files, headers included; never above the cap
  uint64_t used_bytes = 0;  // used slots, whole
  uint64_t quarantined_bytes =
      0;  // slots out of use after a write error, and free slots of poisoned files
  uint32_t files = 0;
  uint32_t poisoned_files = 0;
  uint64_t budget_left_bytes = 0;         // of the write budget now; 0 when there is none
  std::vector<ExtentClassUsage> classes;  // by slot_bytes
  bool operator==(const ExtentUsage&) const = default;
};

class ExtentStore {
 public:
  // Reads the header of every file of the device. Files are then known and wholly free:
  // recovery.h marks the used slots. Fails when a file is of a newer format, or of another
  // store; a damaged header is kept for MarkUsed to repair (see FilesWithDamagedHeaders).
  // InvalidArgument for impossible options. `device` must outlive the store.
  static absl::StatusOr<std::unique_ptr<ExtentStore>> Open(BlockDevice* device,
                                                           const ExtentStoreOptions& options);
  // All I/O must have completed.
  ~ExtentStore();
  ExtentStore(const ExtentStore&) = delete;
  ExtentStore& operator=(const ExtentStore&) = delete;

  // A free slot of the class. May make a file, so blocks. ResourceExhausted says which:
  // the cap (evict and retry), the file system being full, or the write budget; then
  // nothing has changed. InvalidArgument: not a positive multiple of kBlockBytes.
  absl::StatusOr<ExtentRef> Allocate(uint64_t slot_bytes, WritePurpose purpose);
  // Gives a used slot back.
  void Free(ExtentRef ref);
  // A used slot whose write failed: gone from use until the file is deleted.
  void Quarantine(ExtentRef ref);
  // Recovery: claims the slot a chunk record names. InvalidArgument says what is wrong:
  // no such file, other class, out of range, or used already.
  absl::Status MarkUsed(ExtentRef ref, uint64_t slot_bytes);

  // Writes the front of a slot. OK: `done` will run once. Otherwise (arguments, poisoned
  // file: Unavailable, queue full: ResourceExhausted) it never runs.
  absl::Status Write(ExtentRef ref, std::span<const std::byte> image, IoDone done);
  // As Write for each, all started or none. Neighbours in the list that fill their slots
  // and are adjacent on disk and in memory become one I/O of up to kMaxMergedIoBytes; if that
  // fails all of them fail. `writes` are moved from on success.
  absl::Status WriteMany(std::span<ExtentWrite> writes);
  // Reads part of a slot. Errors as Write; a poisoned file can still be read.
  absl::Status Read(ExtentRef ref, uint64_t offset, std::span<std::byte> buffer, IoDone done);
  // All started or none; neighbours that are adjacent on disk and in memory are merged.
  absl::Status ReadMany(std::span<ExtentRead> reads);
  // Makes completed writes to `files` durable. `done` runs once with the first error; before
  // Sync returns when nothing is left to sync. InvalidArgument, ResourceExhausted: never.
  // A file whose sync fails is poisoned: nothing is written there any more, and
  // everything written since its last good sync must be taken as lost.
  absl::Status Sync(std::span<const uint32_t> files,
                    absl::AnyInvocable<void(const absl::Status&)> done);

  // Deletes every entirely free file. Returns how many went; a file that cannot be
  // deleted stays and is an error.
  absl::StatusOr<uint32_t> DeleteFreeFiles();

  // Files whose header could not be read. MarkUsed adopts the slot size of the first record
  // that names such a file; RepairHeaders then writes the header again (blocks). A
  // file that no record named is free and DeleteFreeFiles removes it.
  std::vector<uint32_t> FilesWithDamagedHeaders() const;
  absl::Status RepairHeaders();

  ExtentUsage Usage() const;
  std::vector<ExtentFileUsage> Files() const;  // by number
  // The file of another class that would take the fewest evictions to free, 0 if none:
  // what to empty when a class is starved under the cap.
  uint32_t CheapestFileToEmpty(uint64_t slot_bytes) const;
  bool IsPoisoned(uint32_t file) const;
  uint64_t SlotBytes(uint32_t file) const;  // 0: no such file

 private:
  class Impl;
  explicit ExtentStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace turnkeep
