// How RocksDB is set up for the index.
#pragma once

#include <rocksdb/db.h>

#include <string>
#include <vector>

#include <absl/status/status.h>

#include "core/units.h"
#include "disk_tier/index_record.h"

namespace turnkeep {

// Memtables over all families, and the block cache: the index is read once at start and
// then only written, so neither has more to give.
inline constexpr uint64_t kIndexMemtableBytes = 16 * kMiB;
inline constexpr uint64_t kIndexBlockCacheBytes = 4 * kMiB;

rocksdb::DBOptions IndexDbOptions(bool create);
// One descriptor a family, in the order of IndexFamily.
std::vector<rocksdb::ColumnFamilyDescriptor> IndexFamilyDescriptors();

// A RocksDB result as one of ours; `what` is the operation and its object.
absl::Status FromRocks(const rocksdb::Status& status, const std::string& what);

}  // namespace turnkeep
