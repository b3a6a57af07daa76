// Fsck: the offline check of a data directory, byte by byte.
//
// Refused (FailedPrecondition) while a daemon has the directory open. Blocks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/functional/any_invocable.h>
#include <absl/status/statusor.h>

#include "core/ids.h"
#include "disk_tier/block_device.h"
#include "disk_tier/extent_ref.h"

namespace turnkeep {

struct FsckOptions {
  bool repair = false;  // removes the index entries of damaged chunks and damaged records
  std::string tenant;   // only this tenant's chunks; empty: all
  BlockDeviceOptions device;
  size_t max_damaged_listed = 1000;
  // Called now and then on the calling thread.
  absl::AnyInvocable<void(uint64_t bytes_done, uint64_t bytes_total)> progress;
};

struct FsckDamage {
  ChunkId chunk;
  ExtentRef extent;
  // Layers whose page does not match its digest; empty when the header itself is damaged,
  // cannot be read, or its slot is not the chunk's.
  std::vector<uint32_t> layers;
  std::string reason;
};

struct FsckReport {
  uint64_t chunks_ok = 0;
  uint64_t chunks_damaged = 0;         // header or a layer page
  uint64_t chunks_out_of_range = 0;    // slot of no file, of another class, or past the end
  uint64_t chunks_doubly_used = 0;     // slot of an earlier record
  uint64_t chunks_unknown_layout = 0;  // layout missing or damaged: cannot be checked
  uint64_t orphan_slots = 0;  // hold a whole chunk header that no index entry names: harmless
  uint64_t damaged_file_headers = 0;
  uint64_t damaged_records = 0;  // index records of any family
  uint64_t sessions = 0;
  // Sessions that name a chunk that is not on disk, or is damaged; they are restored up to there.
  uint64_t incomplete_sessions = 0;
  uint64_t files = 0;
  uint64_t bytes_read = 0;
  uint64_t removed_entries = 0;       // by repair
  std::vector<FsckDamage> damaged;    // the first max_damaged_listed
  std::vector<std::string> problems;  // damaged files and records, same limit

  bool Clean() const;
};

absl::StatusOr<FsckReport> Fsck(const std::string& directory, FsckOptions options);

}  // namespace turnkeep
