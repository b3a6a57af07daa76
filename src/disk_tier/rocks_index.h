// RocksIndex: the Index on RocksDB, one column family each for meta, tenants, layouts,
// chunks, sessions and spans.
//
// Thread-safe. Memory is bounded by small memtables and block cache (see rocks_index.cc).
#pragma once

#include <memory>
#include <string>

#include <absl/status/statusor.h>

#include "disk_tier/index.h"

namespace turnkeep {

struct RocksIndexOptions {
  std::string directory;
  StoreId store_id{};      // of a new index; must match an existing one
  bool create = true;      // false: NotFound when there is none
  bool read_only = false;  // for fsck; Apply is FailedPrecondition
};

class RocksIndex {
 public:
  // FailedPrecondition naming the directory when another process (or handle) has it open,
  // when its format is newer than ours, or when it belongs to another store.
  static absl::StatusOr<std::unique_ptr<Index>> Open(const RocksIndexOptions& options);
};

}  // namespace turnkeep
