#include "disk_tier/rocks_options.h"

#include <rocksdb/cache.h>
#include <rocksdb/table.h>

#include <memory>

#include "core/status.h"

namespace turnkeep {
namespace {

rocksdb::ColumnFamilyOptions FamilyOptions(IndexFamily family,
                                           const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::ColumnFamilyOptions options;
  options.write_buffer_size = family == IndexFamily::kChunks ? 8 * kMiB : 4 * kMiB;
  options.max_write_buffer_number = 2;
  options.target_file_size_base = 32 * kMiB;
  options.max_bytes_for_level_base = 64 * kMiB;
  options.level_compaction_dynamic_level_bytes = true;
  // Ids and digests are random bytes; only layouts have anything to compress.
  options.compression =
      family == IndexFamily::kLayouts ? rocksdb::kLZ4Compression : rocksdb::kNoCompression;
  rocksdb::BlockBasedTableOptions table;
  table.block_size = 16 * kKiB;
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  // shared_ptr: RocksDB's tables of all families share the one cache.
  table.block_cache = cache;
  table.cache_index_and_filter_blocks = true;  // counted in the cache, hence bounded
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

}  // namespace

rocksdb::DBOptions IndexDbOptions(bool create) {
  rocksdb::DBOptions options;
  options.create_if_missing = create;
  options.create_missing_column_families = create;
  options.db_write_buffer_size = kIndexMemtableBytes;
  options.max_total_wal_size = 64 * kMiB;
  options.max_background_jobs = 2;
  options.max_open_files = 256;
  options.table_cache_numshardbits = 2;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.max_log_file_size = 1 * kMiB;
  options.keep_log_file_num = 2;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.skip_stats_update_on_db_open = true;
  // A torn tail of the log is an unfinished write; what is behind damage is not replayed.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  return options;
}

std::vector<rocksdb::ColumnFamilyDescriptor> IndexFamilyDescriptors() {
  std::shared_ptr<rocksdb::Cache> cache = rocksdb::NewLRUCache(kIndexBlockCacheBytes, 2);
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (int i = 0; i < kIndexFamilyCount; ++i) {
    auto family = static_cast<IndexFamily>(i);
    // RocksDB insists on a family called "default".
    std::string name =
        family == IndexFamily::kMeta ? rocksdb::kDefaultColumnFamilyName : NameOf(family);
    families.emplace_back(name, FamilyOptions(family, cache));
  }
  return families;
}

absl::Status FromRocks(const rocksdb::Status& status, const std::string& what) {
  if (status.ok()) return absl::OkStatus();
  std::string text = what + ": " + status.ToString();
  if (status.IsCorruption()) return absl::DataLossError(text);
  if (status.IsNoSpace() || status.IsMemoryLimit()) return absl::ResourceExhaustedError(text);
  if (status.IsInvalidArgument()) return absl::FailedPreconditionError(text);
  if (status.IsNotFound() || status.IsPathNotFound()) return absl::NotFoundError(text);
  return absl::UnavailableError(text);
}

}  // namespace turnkeep
