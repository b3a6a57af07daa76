#include "disk_tier/fsck.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <unordered_set>
#include <utility>

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include "core/layout.h"
#include "core/status.h"
#include "disk_tier/aligned_buffer.h"
#include "disk_tier/data_directory.h"
#include "disk_tier/index.h"
#include "disk_tier/rocks_index.h"
#include "disk_tier/slot_check.h"

namespace turnkeep {
namespace {

constexpr uint64_t kProgressStepBytes = 16 * kMiB;

struct SessionToCheck {
  SessionRecord record;
  uint32_t blocks = 0;
  uint64_t tokens = 0;
  bool broken = false;
};

// The whole index in memory, as fsck needs it: chunks by place, sessions by number.
class Contents : public IndexVisitor {
 public:
  void OnTenant(const TenantRecord& record) override { tenants[record.number] = record.name; }
  void OnLayout(const LayoutRecord& record) override {
    absl::StatusOr<KvLayout> layout = DecodeLayout(record.encoding);
    if (layout.ok()) layouts.emplace(record.number, *std::move(layout));
  }
  void OnChunk(const ChunkRecord& record) override { chunks.push_back(record); }
  void OnSession(const SessionRecord& record) override { sessions[record.number] = {record}; }
  void OnSpanBlock(const SpanBlock& block) override { blocks.push_back(block); }
  void OnDamaged(const DamagedRecord& record) override { damaged.push_back(record); }

  std::map<uint16_t, std::string> tenants;
  std::map<uint16_t, KvLayout> layouts;
  std::vector<ChunkRecord> chunks;
  std::map<uint64_t, SessionToCheck> sessions;
  std::vector<SpanBlock> blocks;
  std::vector<DamagedRecord> damaged;
};

struct FileState {
  uint64_t bytes = 0;
  std::optional<ExtentFileHeader> header;
  std::unordered_set<uint32_t> used;  // slots that a record owns
};

class Checker {
 public:
  Checker(const std::string& directory, FsckOptions options)
      : directory_(directory), options_(std::move(options)) {}

  absl::StatusOr<FsckReport> Run();

 private:
  absl::Status OpenAll();
  absl::Status ReadFileHeaders();
  void CheckChunks();
  void CheckChunk(const ChunkRecord& record);
  bool PlaceIsRight(const ChunkRecord& record);
  void CheckImage(const ChunkRecord& record, const ChunkGeometry& geometry);
  void CheckSessions();
  void CountOrphans();
  absl::Status Repair();

  void AddDamage(const ChunkRecord& record, std::vector<uint32_t> layers, std::string reason) {
    bad_chunks_.insert(record.id);
    if (report_.damaged.size() < options_.max_damaged_listed) {
      report_.damaged.push_back({record.id, record.extent, std::move(layers), std::move(reason)});
    }
  }
  void AddProblem(std::string line) {
    if (report_.problems.size() < options_.max_damaged_listed) {
      report_.problems.push_back(std::move(line));
    }
  }
  void Progress(uint64_t bytes) {
    bytes_done_ += bytes;
    if (!options_.progress || bytes_done_ < next_progress_) return;
    next_progress_ = bytes_done_ + kProgressStepBytes;
    options_.progress(bytes_done_, bytes_total_);
  }
  bool Wanted(const ChunkRecord& record) const {
    if (options_.tenant.empty()) return true;
    auto it = contents_.tenants.find(record.tenant);
    return it != contents_.tenants.end() && it->second == options_.tenant;
  }

  const std::string directory_;
  FsckOptions options_;
  FsckReport report_;
  std::unique_ptr<DataDirectory> data_;
  std::unique_ptr<BlockDevice> device_;
  std::unique_ptr<Index> index_;
  Contents contents_;
  std::map<uint32_t, FileState> files_;
  absl::flat_hash_set<ChunkId> bad_chunks_;
  AlignedBuffer buffer_;
  uint64_t bytes_done_ = 0;
  uint64_t bytes_total_ = 0;
  uint64_t next_progress_ = 0;
};

absl::Status Checker::OpenAll() {
  TK_ASSIGN_OR_RETURN(data_, DataDirectory::Open(directory_, DataDirectory::Mode::kExisting));
  TK_ASSIGN_OR_RETURN(index_, RocksIndex::Open({.directory = data_->IndexPath(),
                                                .store_id = data_->store_id(),
                                                .create = false,
                                                .read_only = !options_.repair}));
  TK_ASSIGN_OR_RETURN(device_, OpenBestBlockDevice(data_->ExtentsPath(), options_.device));
  TK_RETURN_IF_ERROR(index_->Load(contents_).status());
  report_.damaged_records = contents_.damaged.size();
  for (const DamagedRecord& record : contents_.damaged) AddProblem(record.reason);
  for (const ChunkRecord& record : contents_.chunks) {
    if (Wanted(record)) bytes_total_ += record.slot_blocks * kBlockBytes;
  }
  // By place, so that the files are read from front to back; of two records in one slot
  // the newer comes first and owns it.
  std::sort(contents_.chunks.begin(), contents_.chunks.end(),
            [](const ChunkRecord& a, const ChunkRecord& b) {
              return a.extent != b.extent ? a.extent < b.extent : a.epoch > b.epoch;
            });
  return absl::OkStatus();
}

absl::Status Checker::ReadFileHeaders() {
  TK_ASSIGN_OR_RETURN(std::vector<DeviceFile> files, device_->ListFiles());
  report_.files = files.size();
  for (const DeviceFile& file : files) {
    FileState& state = files_[file.file];
    TK_ASSIGN_OR_RETURN(state.bytes, device_->OpenFile(file.file));
    const absl::StatusOr<ExtentFileHeader> header =
        ReadExtentFileHeader(*device_, file.file, &buffer_);
    if (absl::IsFailedPrecondition(header.status())) return header.status();
    if (header.ok()) {
      state.header = *header;
    } else {
      ++report_.damaged_file_headers;
      AddProblem(MessageOf(header.status()));
    }
  }
  return absl::OkStatus();
}

bool Checker::PlaceIsRight(const ChunkRecord& record) {
  uint64_t slot_bytes = record.slot_blocks * kBlockBytes;
  auto it = files_.find(record.extent.file);
  bool right = it != files_.end();
  if (right) {
    const FileState& file = it->second;
    // A damaged header is rewritten from the records at the next start.
    right = (!file.header || file.header->slot_bytes == slot_bytes) &&
            record.extent.slot < SlotsIn(file.bytes, slot_bytes);
  }
  if (!right) {
    ++report_.chunks_out_of_range;
    AddDamage(record, {}, "slot of no file, of another size, or past the end");
    return false;
  }
  if (!it->second.used.insert(record.extent.slot).second) {
    ++report_.chunks_doubly_used;
    AddDamage(record, {}, "slot of a later record");
    return false;
  }
  return true;
}

void Checker::CheckChunk(const ChunkRecord& record) {
  if (!PlaceIsRight(record)) return;
  if (!Wanted(record)) return;
  auto layout = contents_.layouts.find(record.layout);
  if (layout == contents_.layouts.end() || record.token_count > layout->second.chunk_tokens) {
    ++report_.chunks_unknown_layout;
    AddProblem(
        fmt::format("chunk {}: layout {} is not known", record.id.ShortHex(), record.layout));
    return;
  }
  ChunkGeometry geometry = GeometryOf(layout->second, record.token_count);
  if (geometry.slot_bytes != record.slot_blocks * kBlockBytes) {
    ++report_.chunks_damaged;
    AddDamage(record, {}, "slot size does not follow from the layout");
    return;
  }
  CheckImage(record, geometry);
}

void Checker::CheckImage(const ChunkRecord& record, const ChunkGeometry& geometry) {
  SlotCheck check = CheckSlot(*device_, record, geometry, &buffer_);
  Progress(geometry.slot_bytes);
  if (check.read) report_.bytes_read += geometry.image_bytes;
  if (check.reason.empty()) {
    ++report_.chunks_ok;
  } else {
    ++report_.chunks_damaged;
    AddDamage(record, std::move(check.layers), std::move(check.reason));
  }
}

void Checker::CheckChunks() {
  for (const ChunkRecord& record : contents_.chunks) CheckChunk(record);
  if (options_.progress) options_.progress(bytes_total_, bytes_total_);
}

// A slot that no record owns may still hold a whole chunk: one whose record was never
// written, or has been deleted. That is how space looks before it is used again.
void Checker::CountOrphans() {
  if (!options_.tenant.empty()) return;
  for (const auto& [number, file] : files_) {
    if (!file.header) continue;
    uint64_t slot_bytes = file.header->slot_bytes;
    uint64_t slots = std::min<uint64_t>(file.header->slot_count, SlotsIn(file.bytes, slot_bytes));
    for (uint32_t slot = 0; slot < slots; ++slot) {
      if (file.used.contains(slot)) continue;
      Digest root;
      const ExtentRef extent{.file = number, .slot = slot};
      const bool whole = ReadAnyHeader(*device_, extent, slot_bytes, &buffer_, &root).has_value();
      report_.bytes_read += std::min(slot_bytes, kSlotFrontBytes);
      if (whole) ++report_.orphan_slots;
    }
  }
}

void Checker::CheckSessions() {
  absl::flat_hash_map<ChunkId, uint32_t> tokens;  // of the chunks that are whole
  for (const ChunkRecord& record : contents_.chunks) {
    if (!bad_chunks_.contains(record.id)) tokens[record.id] = record.token_count;
  }
  for (const SpanBlock& block : contents_.blocks) {
    auto it = contents_.sessions.find(block.session);
    if (it == contents_.sessions.end()) continue;  // left behind by a dropped session
    SessionToCheck& session = it->second;
    if (block.block_index >= session.record.span_blocks) continue;  // left behind by a truncation
    ++session.blocks;
    for (const ChunkSlice& slice : block.slices) {
      session.tokens += slice.count;
      auto chunk = tokens.find(slice.chunk);
      if (chunk == tokens.end() || slice.first + slice.count > chunk->second) session.broken = true;
    }
  }
  for (const auto& [number, session] : contents_.sessions) {
    ++report_.sessions;
    bool whole = session.blocks == session.record.span_blocks &&
                 session.tokens == session.record.token_count && !session.broken;
    if (!whole) ++report_.incomplete_sessions;
  }
}

absl::Status Checker::Repair() {
  IndexBatch batch;
  for (const ChunkId& id : bad_chunks_) batch.DeleteChunk(id);
  for (const DamagedRecord& record : contents_.damaged) {
    if (!record.key.empty()) batch.DeleteRaw(record.family, record.key);
  }
  report_.removed_entries = batch.size();
  if (batch.empty()) return absl::OkStatus();
  return ApplyBlocking(*index_, std::move(batch), SyncMode::kSync);
}

absl::StatusOr<FsckReport> Checker::Run() {
  TK_RETURN_IF_ERROR(OpenAll());
  TK_RETURN_IF_ERROR(ReadFileHeaders());
  CheckChunks();
  CheckSessions();
  CountOrphans();
  if (options_.repair) TK_RETURN_IF_ERROR(Repair());
  return std::move(report_);
}

}  // namespace

bool FsckReport::Clean() const {
  return chunks_damaged == 0 && chunks_out_of_range == 0 && chunks_doubly_used == 0 &&
         chunks_unknown_layout == 0 && damaged_file_headers == 0 && damaged_records == 0;
}

absl::StatusOr<FsckReport> Fsck(const std::string& directory, FsckOptions options) {
  return Checker(directory, std::move(options)).Run();
}

}  // namespace turnkeep
