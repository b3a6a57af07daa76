#include "disk_tier/rocks_loader.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "core/status.h"
#include "disk_tier/rocks_options.h"

namespace turnkeep {
namespace {

// Damaged blocks skipped in one family before the rest of it is given up.
constexpr int kMaxSkippedBlocks = 1000;
constexpr size_t kReadAheadBytes = 2 * kMiB;
// Counters that are lost with their meta record start this far past what the records show.
constexpr uint64_t kLostCounterJump = uint64_t{1} << 32;

size_t KeyBytesOf(IndexFamily family) {
  switch (family) {
    case IndexFamily::kMeta:
      return 1;
    case IndexFamily::kTenants:
    case IndexFamily::kLayouts:
      return 2;
    case IndexFamily::kChunks:
      return 32;
    case IndexFamily::kSessions:
      return 8;
    case IndexFamily::kSpans:
      return 12;
  }
  return 8;
}

// Walks one family. RocksDB's own checksum covers each block: a damaged one ends its iterator,
// which is then set behind the block, at the lowest key from which reading works again. Keys
// in between are skipped in every level, so no overwritten record comes back to light.
class FamilyScan {
 public:
  FamilyScan(rocksdb::DB* db, rocksdb::ColumnFamilyHandle* handle, IndexFamily family)
      : db_(db),
        handle_(handle),
        key_bytes_(KeyBytesOf(family)),
        prefix_bytes_(std::min<size_t>(8, key_bytes_)) {
    options_.verify_checksums = true;
    options_.fill_cache = false;
    options_.readahead_size = kReadAheadBytes;
    iterator_.reset(db->NewIterator(options_, handle));
  }

  // `record` gets each key and value. Returns the number of skipped blocks.
  uint64_t Run(const std::function<void(std::string_view, std::string_view)>& record,
               const std::function<void(std::string)>& skipped) {
    uint64_t blocks = 0;
    iterator_->SeekToFirst();
    while (true) {
      for (; iterator_->Valid(); iterator_->Next()) {
        rocksdb::Slice key = iterator_->key();
        last_prefix_ = PrefixOf(key);
        any_ = true;
        rocksdb::Slice value = iterator_->value();
        record({key.data(), key.size()}, {value.data(), value.size()});
      }
      if (iterator_->status().ok()) return blocks;
      skipped(iterator_->status().ToString());
      ++blocks;
      if (blocks >= kMaxSkippedBlocks || !SkipDamage()) return blocks;
    }
  }

 private:
  // The first bytes of a key (eight at most) as a number.
  uint64_t PrefixOf(rocksdb::Slice key) const {
    uint64_t prefix = 0;
    for (size_t i = 0; i < prefix_bytes_; ++i) {
      prefix = prefix << 8 | (i < key.size() ? static_cast<uint8_t>(key[i]) : 0);
    }
    return prefix;
  }

  bool Works(uint64_t prefix) {
    std::string key(key_bytes_, '\0');
    for (size_t i = 0; i < prefix_bytes_; ++i) {
      key[i] = static_cast<char>(prefix >> (8 * (prefix_bytes_ - 1 - i)));
    }
    // A new iterator: one that has met a damaged block can go on reporting it elsewhere.
    iterator_.reset(db_->NewIterator(options_, handle_));
    iterator_->Seek(key);
    return iterator_->Valid() || iterator_->status().ok();
  }

  // Doubles the step until a seek works, then halves back to the lowest prefix that does.
  bool SkipDamage() {
    const uint64_t last = prefix_bytes_ == 8 ? UINT64_MAX : (uint64_t{1} << 8 * prefix_bytes_) - 1;
    uint64_t bad = any_ ? last_prefix_ : 0;
    uint64_t good = bad;
    for (uint64_t step = 1; good == bad; step *= 2) {
      if (bad == last) return false;
      good = step != 0 && bad <= last - step ? bad + step : last;
      if (!Works(good)) bad = good;
    }
    while (good - bad > 1) {
      uint64_t middle = bad + (good - bad) / 2;
      (Works(middle) ? good : bad) = middle;
    }
    return Works(good);
  }

  rocksdb::DB* const db_;
  rocksdb::ColumnFamilyHandle* const handle_;
  const size_t key_bytes_;
  const size_t prefix_bytes_;
  rocksdb::ReadOptions options_;
  std::unique_ptr<rocksdb::Iterator> iterator_;
  uint64_t last_prefix_ = 0;
  bool any_ = false;
};

class Loader {
 public:
  Loader(rocksdb::DB* db, std::span<rocksdb::ColumnFamilyHandle* const> families,
         IndexVisitor& visitor)
      : db_(db), families_(families), visitor_(visitor) {}

  IndexMeta Load() {
    LoadMeta();
    Scan<TenantRecord>(IndexFamily::kTenants, DecodeTenantRecord,
                       [&](const TenantRecord& r) { visitor_.OnTenant(r); });
    Scan<LayoutRecord>(IndexFamily::kLayouts, DecodeLayoutRecord,
                       [&](const LayoutRecord& r) { visitor_.OnLayout(r); });
    Scan<ChunkRecord>(IndexFamily::kChunks, DecodeChunkRecord, [&](const ChunkRecord& r) {
      top_epoch_ = std::max(top_epoch_, r.epoch);
      top_file_ = std::max(top_file_, r.extent.file);
      visitor_.OnChunk(r);
    });
    Scan<SessionRecord>(IndexFamily::kSessions, DecodeSessionRecord, [&](const SessionRecord& r) {
      top_session_ = std::max(top_session_, r.number);
      visitor_.OnSession(r);
    });
    Scan<SpanBlock>(IndexFamily::kSpans, DecodeSpanBlock,
                    [&](const SpanBlock& b) { visitor_.OnSpanBlock(b); });
    SettleCounters();
    return meta_;
  }

 private:
  template <typename Record>
  void Scan(IndexFamily family, absl::Status (*decode)(std::string_view, std::string_view, Record*),
            const std::function<void(const Record&)>& visit) {
    FamilyScan scan(db_, families_[static_cast<size_t>(family)], family);
    Record record;
    scan.Run(
        [&](std::string_view key, std::string_view value) {
          absl::Status status = decode(key, value, &record);
          if (status.ok()) {
            visit(record);
          } else {
            Report(family, std::string(key), MessageOf(status));
          }
        },
        [&](std::string reason) { Report(family, "", reason); });
  }

  void LoadMeta() {
    Scan<MetaRecord>(IndexFamily::kMeta, DecodeMetaRecord, [&](const MetaRecord& r) {
      switch (r.key) {
        case MetaKey::kFormatVersion:
          break;
        case MetaKey::kNextEpoch:
          meta_.next_epoch = r.value;
          break;
        case MetaKey::kNextSession:
          meta_.next_session = r.value;
          break;
        case MetaKey::kNextFile:
          meta_.next_file = static_cast<uint32_t>(std::min<uint64_t>(r.value, UINT32_MAX));
          break;
        case MetaKey::kCleanShutdown:
          meta_.clean_shutdown = r.value == 1;
          break;
        case MetaKey::kStoreIdLow:
          std::memcpy(meta_.store_id.data(), &r.value, sizeof(r.value));
          break;
        case MetaKey::kStoreIdHigh:
          std::memcpy(meta_.store_id.data() + sizeof(r.value), &r.value, sizeof(r.value));
          break;
      }
    });
    meta_damaged_ = meta_.damaged_records > 0;
  }

  // Counters never run behind the records; when meta records were lost, well ahead of them.
  void SettleCounters() {
    uint64_t jump = meta_damaged_ ? kLostCounterJump : 1;
    meta_.next_epoch = std::max(meta_.next_epoch, top_epoch_ + jump);
    meta_.next_session = std::max(meta_.next_session, top_session_ + jump);
    meta_.next_file = std::max(meta_.next_file, top_file_ + 1);
  }

  void Report(IndexFamily family, std::string key, std::string reason) {
    ++meta_.damaged_records;
    visitor_.OnDamaged({family, std::move(key), std::move(reason)});
  }

  rocksdb::DB* const db_;
  const std::span<rocksdb::ColumnFamilyHandle* const> families_;
  IndexVisitor& visitor_;
  IndexMeta meta_;
  bool meta_damaged_ = false;
  uint64_t top_epoch_ = 0;
  uint64_t top_session_ = 0;
  uint32_t top_file_ = 0;
};

}  // namespace

absl::StatusOr<IndexMeta> LoadFromRocks(rocksdb::DB* db,
                                        std::span<rocksdb::ColumnFamilyHandle* const> families,
                                        IndexVisitor& visitor) {
  return Loader(db, families, visitor).Load();
}

}  // namespace turnkeep
