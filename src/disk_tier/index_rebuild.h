// RebuildIndex: the way on when RocksDB cannot open the index (CURRENT, MANIFEST, a table lost or
// damaged). What can be salvaged becomes a new index; the old one is renamed and kept.
//
// Nothing is believed unseen. A chunk is taken when its slot holds it, every page of it verified;
// one whose record is lost is looked for in the data files' chunk headers, and taken when the
// tenant's key confirms its identity. A session is taken as far as its parts belong together: of
// records of different times (an older one may come to light when a table is lost) the chain of
// chunk ids tells. Its generation jumps then, so that no engine takes an older state for the one
// it knows. What is lost is counted and named: sessions whose record is lost cannot be, and without
// a tenant's record, which has its key, or a layout's, nothing of that tenant or layout can be
// kept.
//
// Refused (FailedPrecondition) while a daemon has the directory open. Blocks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/functional/any_invocable.h>
#include <absl/status/statusor.h>

#include "disk_tier/block_device.h"

namespace turnkeep {

struct IndexRebuildOptions {
  BlockDeviceOptions device;
  // Called now and then on the calling thread.
  absl::AnyInvocable<void(uint64_t bytes_done, uint64_t bytes_total)> progress;
};

struct IndexRebuildReport {
  std::string kept_as;         // the old index, renamed
  std::string repaired_after;  // why the old one did not open; empty: it did
  uint64_t tenants = 0;
  uint64_t layouts = 0;
  uint64_t chunks = 0;           // in the new index, verified
  uint64_t chunks_found = 0;     // of them: by their headers, their records being lost
  uint64_t chunks_left_out = 0;  // records whose slot does not hold the chunk, whole
  uint64_t sessions = 0;         // in the new index, whole or in part
  uint64_t sessions_cut = 0;     // of them: shorter than their record says
  uint64_t sessions_lost = 0;    // records of which nothing could be kept
  uint64_t missing_chunks = 0;   // that sessions name and no slot holds: lost, or evicted before
  uint64_t damaged_records = 0;  // records and blocks that could not be read
  std::vector<std::string> lost_tables;  // RocksDB's, of which nothing could be read
  std::vector<std::string> problems;     // the first kMaxRebuildProblems

  // Whether nothing was wrong with the old one.
  bool Clean() const;
};

inline constexpr size_t kMaxRebuildProblems = 1000;

absl::StatusOr<IndexRebuildReport> RebuildIndex(const std::string& directory,
                                                IndexRebuildOptions options);

}  // namespace turnkeep
