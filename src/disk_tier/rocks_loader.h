// Reading the whole index out of RocksDB, past damaged records and damaged blocks.
#pragma once

#include <rocksdb/db.h>

#include <span>

#include <absl/status/statusor.h>

#include "disk_tier/index.h"

namespace turnkeep {

// `families` in the order of IndexFamily. Fails only when nothing can be read at all;
// damage is counted in `damaged_records` and told to the visitor. The caller keeps
// writes away. Not thread-safe; blocks.
absl::StatusOr<IndexMeta> LoadFromRocks(rocksdb::DB* db,
                                        std::span<rocksdb::ColumnFamilyHandle* const> families,
                                        IndexVisitor& visitor);

}  // namespace turnkeep
