#include "disk_tier/index_salvage.h"

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>

#include "core/status.h"
#include "disk_tier/rocks_index.h"
#include "disk_tier/rocks_options.h"

namespace turnkeep {
namespace {

namespace fs = std::filesystem;

// Of no family's length, so no record has it.
constexpr const char* kMarkerKey = "turnkeep-salvage-marker";

absl::Status FromError(const std::error_code& error, const std::string& what) {
  return error ? ErrnoStatus(error.value(), what) : absl::OkStatus();
}

// The number in "000123.sst", "000045.log" and "MANIFEST-000007"; 0 where there is none.
uint64_t NumberIn(const std::string& name) {
  uint64_t number = 0;
  for (const char c : name.starts_with("MANIFEST-") ? name.substr(9) : name) {
    if (c < '0' || c > '9') break;
    number = std::min<uint64_t>(number * 10 + static_cast<uint64_t>(c - '0'), UINT32_MAX);
  }
  return number;
}

absl::Status Load(const std::string& index, const StoreId& store_id, SalvagedIndex* salvaged) {
  TK_ASSIGN_OR_RETURN(
      const auto opened,
      RocksIndex::Open(
          {.directory = index, .store_id = store_id, .create = false, .read_only = true}));
  TK_ASSIGN_OR_RETURN(salvaged->meta, opened->Load(*salvaged));
  return absl::OkStatus();
}

// RocksDB's repair knows a family only by a table that names it, and passes over what a log has of
// others; a young index has logs alone. So a table of each family, with one record in it, is put
// beside them, made by a database that numbers its families like the index.
absl::Status PlantFamilies(const std::string& index, const std::string& nursery) {
  std::vector<rocksdb::ColumnFamilyHandle*> families;
  rocksdb::DB* raw = nullptr;
  TK_RETURN_IF_ERROR(FromRocks(
      rocksdb::DB::Open(IndexDbOptions(true), nursery, IndexFamilyDescriptors(), &families, &raw),
      "create " + nursery));
  const std::unique_ptr<rocksdb::DB> db(raw);
  absl::Status status;
  for (rocksdb::ColumnFamilyHandle* family : families) {
    if (status.ok())
      status = FromRocks(db->Put(rocksdb::WriteOptions(), family, kMarkerKey, ""), nursery);
    if (status.ok()) status = FromRocks(db->Flush(rocksdb::FlushOptions(), family), nursery);
  }
  std::vector<rocksdb::LiveFileMetaData> files;
  db->GetLiveFilesMetaData(&files);
  for (rocksdb::ColumnFamilyHandle* family : families) db->DestroyColumnFamilyHandle(family);
  TK_RETURN_IF_ERROR(status);
  std::error_code error;
  uint64_t number = 0;
  for (const auto& entry : fs::directory_iterator(index, error))
    number = std::max(number, NumberIn(entry.path().filename().string()));
  for (const rocksdb::LiveFileMetaData& file : files) {
    const std::string target = fmt::format("{}/{:06}.sst", index, ++number);
    fs::copy_file(file.db_path + file.name, target, error);
    TK_RETURN_IF_ERROR(FromError(error, "write " + target));
  }
  return absl::OkStatus();
}

// The repair puts what it cannot read into the folder "lost", and every log and MANIFEST that it
// has read.
void NoteLostTables(const std::string& copy, SalvagedIndex* salvaged) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(copy + "/lost", error)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".sst")) salvaged->lost_files.push_back(name);
  }
  std::sort(salvaged->lost_files.begin(), salvaged->lost_files.end());
}

absl::Status Repair(const std::string& index, const StoreId& store_id, const std::string& scratch,
                    SalvagedIndex* salvaged) {
  const std::string copy = scratch + "/index";
  std::error_code error;
  fs::create_directories(scratch, error);
  TK_RETURN_IF_ERROR(FromError(error, "create " + scratch));
  fs::permissions(scratch, fs::perms::owner_all, error);  // the copy holds the tenants' keys
  fs::copy(index, copy, fs::copy_options::recursive, error);
  TK_RETURN_IF_ERROR(FromError(error, "copy " + index + " to " + copy));
  TK_RETURN_IF_ERROR(PlantFamilies(copy, scratch + "/nursery"));
  TK_RETURN_IF_ERROR(FromRocks(
      rocksdb::RepairDB(copy, IndexDbOptions(false), IndexFamilyDescriptors()), "repair " + copy));
  NoteLostTables(copy, salvaged);
  return Load(copy, store_id, salvaged);
}

}  // namespace

void SalvagedIndex::OnSpanBlock(const SpanBlock& block) {
  const auto it = sessions.find(block.session);
  if (it != sessions.end()) it->second.blocks[block.block_index] = block.slices;
}

void SalvagedIndex::OnDamaged(const DamagedRecord& record) {
  if (record.key != kMarkerKey) damaged.push_back(record.reason);
}

absl::Status SalvageIndex(const std::string& index, const StoreId& store_id,
                          const std::string& scratch, SalvagedIndex* salvaged) {
  const absl::Status as_it_is = Load(index, store_id, salvaged);
  if (as_it_is.ok() || absl::IsFailedPrecondition(as_it_is)) return as_it_is;
  *salvaged = SalvagedIndex();
  salvaged->repaired_after = MessageOf(as_it_is);
  std::error_code ignored;
  fs::remove_all(scratch, ignored);
  const absl::Status repaired = Repair(index, store_id, scratch, salvaged);
  fs::remove_all(scratch, ignored);
  return repaired;
}

}  // namespace turnkeep
