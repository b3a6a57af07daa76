// Opening a data directory: device, index and extents together, with the accounting
// rebuilt from the chunk records.
//
// After it, every slot in use belongs to exactly one chunk record that the visitor has seen,
// files that no record uses are gone, and ExtentStore::Usage() equals what a full
// scan of the records gives. Not thread-safe; blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <absl/functional/any_invocable.h>
#include <absl/status/statusor.h>

#include "disk_tier/block_device.h"
#include "disk_tier/data_directory.h"
#include "disk_tier/extent_store.h"
#include "disk_tier/index.h"

namespace turnkeep {

struct DiskTierOptions {
  std::string directory;
  BlockDeviceOptions device;
  ExtentStoreOptions extents;  // store_id and first_file are filled in
  // Tests: puts something around the device or the index. Null: as they are.
  absl::AnyInvocable<std::unique_ptr<BlockDevice>(std::unique_ptr<BlockDevice>)> wrap_device;
  absl::AnyInvocable<std::unique_ptr<Index>(std::unique_ptr<Index>)> wrap_index;
};

struct RecoveryReport {
  uint64_t chunks = 0;           // records kept
  uint64_t dropped_chunks = 0;   // records that named a slot wrongly, or one already taken
  uint64_t damaged_records = 0;  // of any family
  uint32_t files = 0;
  uint32_t deleted_files = 0;
  uint32_t repaired_headers = 0;
  uint64_t used_bytes = 0;
  bool clean_shutdown = false;
  int64_t elapsed_ms = 0;
  std::vector<std::string> problems;  // the first kMaxReportedProblems, one line each
};
inline constexpr size_t kMaxReportedProblems = 64;

// The parts, destroyed from the last to the first.
struct DiskTier {
  std::unique_ptr<DataDirectory> directory;
  std::unique_ptr<BlockDevice> device;
  std::unique_ptr<ExtentStore> extents;
  std::unique_ptr<Index> index;
  IndexMeta meta;
  RecoveryReport report;
};

// Opens or makes the data directory. `visitor` receives the records that survive (chunks
// only when their slot is theirs); damaged and dropped ones go to OnDamaged and are
// deleted from the index. Errors: see DataDirectory::Open, RocksIndex::Open, ExtentStore::Open.
absl::StatusOr<DiskTier> OpenDiskTier(DiskTierOptions options, IndexVisitor& visitor);

// The same over parts that exist, for tests.
absl::Status Recover(Index& index, ExtentStore& extents, IndexVisitor& visitor, IndexMeta* meta,
                     RecoveryReport* report);

}  // namespace turnkeep
