// Two passes when the last shutdown was not clean: after a crash, two records can
// name one slot (a deletion or a failed write whose log entry was not the last to survive).
// The first pass finds the newest epoch of every slot; its record wins.
#include "disk_tier/recovery.h"

#include <algorithm>
#include <chrono>
#include <unordered_map>
#include <utility>

#include "core/status.h"
#include "core/units.h"
#include "disk_tier/rocks_index.h"

namespace turnkeep {
namespace {

void AddProblem(RecoveryReport* report, std::string line) {
  if (report->problems.size() < kMaxReportedProblems) report->problems.push_back(std::move(line));
}

// First pass: the highest epoch that names each slot.
class SlotOwners : public IndexVisitor {
 public:
  explicit SlotOwners(const ExtentStore& extents) {
    for (const ExtentFileUsage& file : extents.Files()) slots_[file.file] = {};
  }
  bool IsOwner(const ChunkRecord& record) const {
    auto it = slots_.find(record.extent.file);
    return it == slots_.end() || record.extent.slot >= it->second.size() ||
           it->second[record.extent.slot] == record.epoch;
  }

  void OnTenant(const TenantRecord&) override {}
  void OnLayout(const LayoutRecord&) override {}
  void OnSession(const SessionRecord&) override {}
  void OnSpanBlock(const SpanBlock&) override {}
  void OnDamaged(const DamagedRecord&) override {}
  void OnChunk(const ChunkRecord& record) override {
    auto it = slots_.find(record.extent.file);
    if (it == slots_.end() || record.extent.slot >= kMaxSlotsPerFile) return;
    std::vector<uint64_t>& epochs = it->second;
    if (epochs.size() <= record.extent.slot) epochs.resize(record.extent.slot + 1);
    epochs[record.extent.slot] = std::max(epochs[record.extent.slot], record.epoch);
  }

 private:
  std::unordered_map<uint32_t, std::vector<uint64_t>> slots_;
};

// Second pass: claims slots and passes on what survives.
class Claimer : public IndexVisitor {
 public:
  Claimer(ExtentStore& extents, const SlotOwners* owners, IndexVisitor& visitor,
          RecoveryReport* report)
      : extents_(extents), owners_(owners), visitor_(visitor), report_(report) {}

  void OnTenant(const TenantRecord& record) override { visitor_.OnTenant(record); }
  void OnLayout(const LayoutRecord& record) override { visitor_.OnLayout(record); }
  void OnSession(const SessionRecord& record) override { visitor_.OnSession(record); }
  void OnSpanBlock(const SpanBlock& block) override { visitor_.OnSpanBlock(block); }

  void OnChunk(const ChunkRecord& record) override {
    uint64_t slot_bytes = record.slot_blocks * kBlockBytes;
    absl::Status claimed;
    if (owners_ != nullptr && !owners_->IsOwner(record)) {
      claimed = InvalidArgument("slot {}: written again later", ToString(record.extent));
    } else {
      claimed = extents_.MarkUsed(record.extent, slot_bytes);
    }
    if (claimed.ok()) {
      ++report_->chunks;
      report_->used_bytes += slot_bytes;
      visitor_.OnChunk(record);
      return;
    }
    ++report_->dropped_chunks;
    AddProblem(report_, fmt::format("chunk {}: {}", record.id.ShortHex(), MessageOf(claimed)));
    to_delete_.DeleteChunk(record.id);
    visitor_.OnDamaged({IndexFamily::kChunks, ChunkKey(record.id), MessageOf(claimed)});
  }

  void OnDamaged(const DamagedRecord& record) override {
    ++report_->damaged_records;
    AddProblem(report_, record.reason);
    if (!record.key.empty()) to_delete_.DeleteRaw(record.family, record.key);
    visitor_.OnDamaged(record);
  }

  IndexBatch TakeDeletions() { return std::move(to_delete_); }

 private:
  ExtentStore& extents_;
  const SlotOwners* const owners_;
  IndexVisitor& visitor_;
  RecoveryReport* const report_;
  IndexBatch to_delete_;
};

}  // namespace

absl::Status Recover(Index& index, ExtentStore& extents, IndexVisitor& visitor, IndexMeta* meta,
                     RecoveryReport* report) {
  auto start = std::chrono::steady_clock::now();
  report->clean_shutdown = index.FoundCleanShutdown();
  std::unique_ptr<SlotOwners> owners;
  if (!report->clean_shutdown) {
    owners = std::make_unique<SlotOwners>(extents);
    TK_RETURN_IF_ERROR(index.Load(*owners).status());
  }
  Claimer claimer(extents, owners.get(), visitor, report);
  TK_ASSIGN_OR_RETURN(*meta, index.Load(claimer));
  owners.reset();
  // A slot may be given again only when no record on disk names it any more.
  IndexBatch deletions = claimer.TakeDeletions();
  if (!deletions.empty()) {
    TK_RETURN_IF_ERROR(ApplyBlocking(index, std::move(deletions), SyncMode::kSync));
  }
  for (uint32_t file : extents.FilesWithDamagedHeaders()) {
    AddProblem(report, fmt::format("extent file {:08}: damaged header", file));
    if (extents.SlotBytes(file) != 0) ++report->repaired_headers;
  }
  TK_RETURN_IF_ERROR(extents.RepairHeaders());
  TK_ASSIGN_OR_RETURN(report->deleted_files, extents.DeleteFreeFiles());
  report->files = extents.Usage().files;
  report->elapsed_ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                           std::chrono::steady_clock::now() - start)
                           .count();
  return absl::OkStatus();
}

absl::StatusOr<DiskTier> OpenDiskTier(DiskTierOptions options, IndexVisitor& visitor) {
  DiskTier tier;
  TK_ASSIGN_OR_RETURN(tier.directory,
                      DataDirectory::Open(options.directory, DataDirectory::Mode::kCreate));
  TK_ASSIGN_OR_RETURN(tier.device,
                      OpenBestBlockDevice(tier.directory->ExtentsPath(), options.device));
  if (options.wrap_device) tier.device = options.wrap_device(std::move(tier.device));
  RocksIndexOptions index_options{.directory = tier.directory->IndexPath(),
                                  .store_id = tier.directory->store_id()};
  TK_ASSIGN_OR_RETURN(tier.index, RocksIndex::Open(index_options));
  if (options.wrap_index) tier.index = options.wrap_index(std::move(tier.index));
  options.extents.store_id = tier.directory->store_id();
  options.extents.first_file = tier.index->NextFile();
  TK_ASSIGN_OR_RETURN(tier.extents, ExtentStore::Open(tier.device.get(), options.extents));
  TK_RETURN_IF_ERROR(Recover(*tier.index, *tier.extents, visitor, &tier.meta, &tier.report));
  return tier;
}

}  // namespace turnkeep
