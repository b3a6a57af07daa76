// One thread takes what waits in the queue, makes one RocksDB write of it, and tells
// those who asked. While it writes, the next group gathers.
#include "disk_tier/rocks_index.h"

#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <filesystem>
#include <thread>
#include <utility>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/synchronization/notification.h>

#include "core/check.h"
#include "core/status.h"
#include "disk_tier/data_directory.h"
#include "disk_tier/manifest_seal.h"
#include "disk_tier/rocks_loader.h"
#include "disk_tier/rocks_options.h"

namespace turnkeep {
namespace {

// A group stops growing here, so that the first in it does not wait for too many others.
constexpr uint64_t kMaxGroupBytes = 8 * kMiB;

uint64_t Half(const StoreId& id, size_t half) {
  uint64_t value = 0;
  std::memcpy(&value, id.data() + half * sizeof(value), sizeof(value));
  return value;
}

class RocksIndexImpl : public Index {
 public:
  explicit RocksIndexImpl(const RocksIndexOptions& options) : options_(options) {}

  absl::Status Open() {
    bool exists = std::filesystem::exists(options_.directory + "/CURRENT");
    TK_RETURN_IF_ERROR(CheckManifest(options_.directory));
    if (!exists && (!options_.create || options_.read_only)) {
      return NotFound("index {}: there is none", options_.directory);
    }
    TK_RETURN_IF_ERROR(OpenDb(!exists));
    if (!options_.read_only) SealManifest(options_.directory);
    TK_RETURN_IF_ERROR(exists ? CheckMeta() : WriteFirstMeta());
    if (!options_.read_only) thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }

  ~RocksIndexImpl() override {
    if (thread_.joinable()) {
      {
        absl::MutexLock lock(&mutex_);
        stopping_ = true;
      }
      thread_.join();
    }
    if (db_ == nullptr) return;
    for (rocksdb::ColumnFamilyHandle* handle : families_) db_->DestroyColumnFamilyHandle(handle);
    db_->Close();
    if (!options_.read_only) SealManifest(options_.directory);
  }

  bool FoundCleanShutdown() const override { return found_clean_; }

  uint32_t NextFile() const override {
    absl::MutexLock lock(&mutex_);
    return next_file_;
  }

  absl::StatusOr<IndexMeta> Load(IndexVisitor& visitor) override {
    TK_ASSIGN_OR_RETURN(IndexMeta meta, LoadFromRocks(db_.get(), families_, visitor));
    meta.store_id = options_.store_id;
    meta.clean_shutdown = found_clean_;
    absl::MutexLock lock(&mutex_);
    next_file_ = std::max(next_file_, meta.next_file);
    return meta;
  }

  absl::Status Apply(IndexBatch batch, SyncMode sync, IndexDone done) override {
    if (options_.read_only) return FailedPrecondition("index is open for reading only");
    absl::MutexLock lock(&mutex_);
    if (queue_.size() >= kMaxQueuedIndexBatches ||
        (!queue_.empty() && queued_bytes_ + batch.bytes() > kMaxQueuedIndexBytes)) {
      return ResourceExhausted("{} index batches with {} bytes are waiting, at most {} and {}",
                               queue_.size(), queued_bytes_, kMaxQueuedIndexBatches,
                               kMaxQueuedIndexBytes);
    }
    queued_bytes_ += batch.bytes();
    queue_.push_back({std::move(batch), sync, std::move(done)});
    return absl::OkStatus();
  }

  absl::Status Flush() override { return ApplyBlocking(*this, IndexBatch(), SyncMode::kSync); }

  IndexStats Stats() const override {
    uint64_t memory = 0;
    for (const char* property :
         {"rocksdb.cur-size-all-mem-tables", "rocksdb.estimate-table-readers-mem"}) {
      uint64_t value = 0;
      if (db_->GetAggregatedIntProperty(property, &value)) memory += value;
    }
    uint64_t cache = 0;  // shared by the families: counted once
    if (db_->GetIntProperty("rocksdb.block-cache-usage", &cache)) memory += cache;
    absl::MutexLock lock(&mutex_);
    IndexStats stats = stats_;
    stats.queued_batches = static_cast<uint32_t>(queue_.size());
    stats.memory_bytes = memory;
    return stats;
  }

 private:
  struct Waiting {
    IndexBatch batch;
    SyncMode sync;
    IndexDone done;
  };

  absl::Status OpenDb(bool create) {
    std::vector<rocksdb::ColumnFamilyDescriptor> descriptors = IndexFamilyDescriptors();
    rocksdb::DB* db = nullptr;
    rocksdb::Status status;
    if (options_.read_only) {
      status = rocksdb::DB::OpenForReadOnly(IndexDbOptions(false), options_.directory, descriptors,
                                            &families_, &db);
    } else {
      std::error_code error;
      std::filesystem::create_directories(options_.directory, error);
      if (!error) {  // it holds the tenants' keys
        std::filesystem::permissions(options_.directory, std::filesystem::perms::owner_all, error);
      }
      if (error) return ErrnoStatus(error.value(), "create directory " + options_.directory);
      status = rocksdb::DB::Open(IndexDbOptions(create), options_.directory, descriptors,
                                 &families_, &db);
    }
    db_.reset(db);
    if (status.IsIOError() && status.ToString().find("lock") != std::string::npos) {
      return FailedPrecondition("index {} is in use by another process: {}", options_.directory,
                                status.ToString());
    }
    if (!create && (status.IsCorruption() || status.IsInvalidArgument() || status.IsPathNotFound()))
      return CannotOpenIndex(options_.directory, status.ToString());
    return FromRocks(status, "open index " + options_.directory);
  }

  absl::Status Put(rocksdb::WriteBatch& write, MetaKey key, uint64_t value) {
    return FromRocks(
        write.Put(Family(IndexFamily::kMeta), MetaKeyBytes(key), EncodeMetaRecord({key, value})),
        "index meta record");
  }

  absl::Status WriteFirstMeta() {
    rocksdb::WriteBatch write;
    TK_RETURN_IF_ERROR(Put(write, MetaKey::kFormatVersion, kDataFormatVersion));
    TK_RETURN_IF_ERROR(Put(write, MetaKey::kStoreIdLow, Half(options_.store_id, 0)));
    TK_RETURN_IF_ERROR(Put(write, MetaKey::kStoreIdHigh, Half(options_.store_id, 1)));
    TK_RETURN_IF_ERROR(Put(write, MetaKey::kCleanShutdown, 0));
    found_clean_ = true;  // nothing can be half-done in a new index
    return WriteSynced(write);
  }

  absl::Status WriteSynced(rocksdb::WriteBatch& write) {
    rocksdb::WriteOptions options;
    options.sync = true;
    return FromRocks(db_->Write(options, &write), "write index " + options_.directory);
  }

  // Format and owner, and the mark of the last shutdown, which is taken back.
  absl::Status CheckMeta() {
    TK_ASSIGN_OR_RETURN(uint64_t format, GetMeta(MetaKey::kFormatVersion, kDataFormatVersion));
    if (format > kDataFormatVersion) {
      return FailedPrecondition("index {} has format {}, this program knows up to {}",
                                options_.directory, format, kDataFormatVersion);
    }
    for (size_t half = 0; half < 2; ++half) {
      uint64_t ours = Half(options_.store_id, half);
      MetaKey key = half == 0 ? MetaKey::kStoreIdLow : MetaKey::kStoreIdHigh;
      TK_ASSIGN_OR_RETURN(uint64_t found, GetMeta(key, ours));
      if (found != ours) {
        return FailedPrecondition("index {} belongs to another store", options_.directory);
      }
    }
    TK_ASSIGN_OR_RETURN(uint64_t clean, GetMeta(MetaKey::kCleanShutdown, 0));
    found_clean_ = clean == 1;
    TK_ASSIGN_OR_RETURN(uint64_t next_file, GetMeta(MetaKey::kNextFile, 1));
    {
      absl::MutexLock lock(&mutex_);
      next_file_ = static_cast<uint32_t>(std::min<uint64_t>(next_file, UINT32_MAX));
    }
    if (options_.read_only || !found_clean_) return absl::OkStatus();
    rocksdb::WriteBatch write;
    TK_RETURN_IF_ERROR(Put(write, MetaKey::kCleanShutdown, 0));
    return WriteSynced(write);
  }

  // `fallback` when the record is missing or damaged (Load reports the damage).
  absl::StatusOr<uint64_t> GetMeta(MetaKey key, uint64_t fallback) {
    std::string value;
    rocksdb::Status status =
        db_->Get(rocksdb::ReadOptions(), Family(IndexFamily::kMeta), MetaKeyBytes(key), &value);
    if (status.IsNotFound() || status.IsCorruption()) return fallback;
    TK_RETURN_IF_ERROR(FromRocks(status, "read index " + options_.directory));
    MetaRecord record;
    if (!DecodeMetaRecord(MetaKeyBytes(key), value, &record).ok()) return fallback;
    return record.value;
  }

  rocksdb::ColumnFamilyHandle* Family(IndexFamily family) const {
    return families_[static_cast<size_t>(family)];
  }

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !queue_.empty() || stopping_;
  }

  void Run() {
    while (true) {
      std::vector<Waiting> group;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &RocksIndexImpl::HasWork));
        if (queue_.empty()) return;
        TakeGroup(&group);
      }
      absl::Status status = Write(group);
      {
        absl::MutexLock lock(&mutex_);
        stats_.batches += group.size();
        ++stats_.groups;
        if (!status.ok()) ++stats_.errors;
      }
      for (Waiting& waiting : group) waiting.done(status);
    }
  }

  void TakeGroup(std::vector<Waiting>* group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    uint64_t bytes = 0;
    while (!queue_.empty() && bytes < kMaxGroupBytes) {
      bytes += queue_.front().batch.bytes();
      group->push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
    queued_bytes_ -= bytes;
  }

  absl::Status Write(const std::vector<Waiting>& group) {
    rocksdb::WriteBatch write;
    bool sync = false;
    uint32_t next_file = 0;
    for (const Waiting& waiting : group) {
      sync = sync || waiting.sync == SyncMode::kSync;
      next_file = std::max(next_file, waiting.batch.highest_file() + 1);
      for (const IndexBatch::Operation& op : waiting.batch.operations()) {
        rocksdb::Status added = op.is_delete ? write.Delete(Family(op.family), op.key)
                                             : write.Put(Family(op.family), op.key, op.value);
        TK_RETURN_IF_ERROR(FromRocks(added, "index batch"));
      }
    }
    bool new_file = next_file > NextFile();
    if (new_file) TK_RETURN_IF_ERROR(Put(write, MetaKey::kNextFile, next_file));
    TK_RETURN_IF_ERROR(WriteGroup(write, sync));
    if (new_file) {
      absl::MutexLock lock(&mutex_);
      next_file_ = next_file;
    }
    return absl::OkStatus();
  }

  absl::Status WriteGroup(rocksdb::WriteBatch& write, bool sync) {
    // After an error RocksDB refuses writes until it has put its memtables in new files,
    // which Resume does; it does not rely on what the failed write left behind.
    if (failed_) {
      absl::Status resumed = FromRocks(db_->Resume(), "resume index " + options_.directory);
      if (!resumed.ok()) return resumed;
      failed_ = false;
    }
    absl::Status status;
    if (write.Count() == 0) {
      if (sync) status = FromRocks(db_->SyncWAL(), "sync index " + options_.directory);
    } else {
      rocksdb::WriteOptions options;
      options.sync = sync;
      status = FromRocks(db_->Write(options, &write), "write index " + options_.directory);
    }
    failed_ = !status.ok();
    absl::MutexLock lock(&mutex_);
    if (sync) ++stats_.syncs;
    if (status.ok()) stats_.bytes += write.GetDataSize();
    return status;
  }

  const RocksIndexOptions options_;
  std::unique_ptr<rocksdb::DB> db_;                     // set in Open
  std::vector<rocksdb::ColumnFamilyHandle*> families_;  // set in Open, owned through db_
  bool found_clean_ = false;                            // set in Open
  bool failed_ = false;                                 // the thread's own
  std::thread thread_;

  mutable absl::Mutex mutex_;
  std::deque<Waiting> queue_ ABSL_GUARDED_BY(mutex_);
  uint64_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t next_file_ ABSL_GUARDED_BY(mutex_) = 1;
  IndexStats stats_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Index>> RocksIndex::Open(const RocksIndexOptions& options) {
  auto index = std::make_unique<RocksIndexImpl>(options);
  TK_RETURN_IF_ERROR(index->Open());
  return std::unique_ptr<Index>(std::move(index));
}

absl::Status ApplyBlocking(Index& index, IndexBatch batch, SyncMode sync) {
  absl::Notification finished;
  absl::Status result;
  TK_RETURN_IF_ERROR(index.Apply(std::move(batch), sync, [&](const absl::Status& status) {
    result = status;
    finished.Notify();
  }));
  finished.WaitForNotification();
  return result;
}

}  // namespace turnkeep
