#include "disk_tier/index_rebuild.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include "core/chunk_identity.h"
#include "core/layout.h"
#include "core/status.h"
#include "disk_tier/data_directory.h"
#include "disk_tier/index_salvage.h"
#include "disk_tier/rocks_index.h"
#include "disk_tier/slot_check.h"

namespace turnkeep {
namespace {

namespace fs = std::filesystem;

// What counters and generations may have come to after the last record that is left.
constexpr uint64_t kEpochJump = uint64_t{1} << 36;  // as at every opening
constexpr uint64_t kNumberJump = uint64_t{1} << 32;
constexpr uint64_t kProgressStepBytes = 16 * kMiB;
constexpr uint64_t kBatchBytes = kMiB;

absl::Status FromError(const std::error_code& error, const std::string& what) {
  return error ? ErrnoStatus(error.value(), what) : absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open " + path);
  const bool ok = fsync(fd) == 0;
  const int saved = errno;
  close(fd);
  return ok ? absl::OkStatus() : ErrnoStatus(saved, "sync " + path);
}

struct KnownLayout {
  uint16_t number = 0;
  KvLayout layout;
  Fingerprint fingerprint;
};

// Writes a new index in batches that its queue can take.
class Writer {
 public:
  explicit Writer(Index* index) : index_(index) {}
  IndexBatch& batch() { return batch_; }
  absl::Status MaybeApply() {
    return batch_.bytes() < kBatchBytes ? absl::OkStatus() : Apply(SyncMode::kNoSync);
  }
  absl::Status Apply(SyncMode sync) {
    return ApplyBlocking(*index_, std::exchange(batch_, IndexBatch()), sync);
  }

 private:
  Index* const index_;
  IndexBatch batch_;
};

class Rebuilder {
 public:
  Rebuilder(std::string directory, IndexRebuildOptions options)
      : directory_(std::move(directory)), options_(std::move(options)) {}
  absl::StatusOr<IndexRebuildReport> Run();

 private:
  struct File {
    uint64_t bytes = 0;
    uint64_t slot_bytes = 0;  // 0: its header is damaged
    std::set<uint32_t> used;
  };
  using Chunks = absl::flat_hash_map<ChunkId, ChunkRecord>;

  absl::Status FinishInterrupted();
  void LearnNames();
  absl::Status OpenFiles();
  // Chunks: by their records, then by their headers.
  void TakeChunks();
  bool TakeChunk(const ChunkRecord& record, std::string* why);
  void FindLostChunks();
  absl::flat_hash_map<ChunkId, uint64_t> NamedAndMissing() const;
  void TryFound(const ChunkHeader& header, const Digest& root, ExtentRef extent,
                const SessionRecord& session);
  // Sessions.
  std::vector<ChunkSlice> ViewOf(const SalvagedSession& session) const;
  bool IsJoined(const SessionRecord& session, const std::vector<ChunkSlice>& view) const;
  size_t ProvenSlices(const SessionRecord& session, const std::vector<ChunkSlice>& view) const;
  absl::Status PutSession(const SalvagedSession& session, Writer* writer);
  absl::Status WriteNew(const std::string& path);
  absl::Status Swap(const std::string& made);

  void AddProblem(std::string line) {
    if (report_.problems.size() < kMaxRebuildProblems) report_.problems.push_back(std::move(line));
  }
  void Progress(uint64_t bytes) {
    bytes_done_ += bytes;
    if (!options_.progress || bytes_done_ < next_progress_) return;
    next_progress_ = bytes_done_ + kProgressStepBytes;
    options_.progress(std::min(bytes_done_, bytes_total_), bytes_total_);
  }

  const std::string directory_;
  IndexRebuildOptions options_;
  IndexRebuildReport report_;
  std::unique_ptr<DataDirectory> data_;
  std::unique_ptr<BlockDevice> device_;
  SalvagedIndex salvaged_;
  std::map<uint16_t, ChunkHasher> hashers_;  // by tenant
  std::map<uint16_t, KnownLayout> layouts_;  // by number
  std::map<uint32_t, File> files_;
  Chunks chunks_;
  uint64_t top_epoch_ = 0;
  AlignedBuffer buffer_;
  uint64_t bytes_done_ = 0;
  uint64_t bytes_total_ = 0;
  uint64_t next_progress_ = 0;
};

// Between the two renames of a file system that cannot exchange names there is no index.
absl::Status Rebuilder::FinishInterrupted() {
  const std::string path = data_->IndexPath();
  if (fs::is_directory(path)) return absl::OkStatus();
  if (!fs::is_directory(path + ".new")) return NotFound("index {}: there is none", path);
  std::error_code error;
  fs::rename(path + ".new", path, error);
  return FromError(error, "rename " + path + ".new");
}

void Rebuilder::LearnNames() {
  for (const auto& [number, tenant] : salvaged_.tenants) hashers_.emplace(number, tenant.key);
  for (const auto& [number, record] : salvaged_.layouts) {
    absl::StatusOr<KvLayout> layout = DecodeLayout(record.encoding);
    if (!layout.ok()) {
      AddProblem(fmt::format("layout {}: {}", number, MessageOf(layout.status())));
      continue;
    }
    const Fingerprint fingerprint = FingerprintOf(*layout);
    layouts_.emplace(number, KnownLayout{number, *std::move(layout), fingerprint});
  }
  for (const std::string& reason : salvaged_.damaged) AddProblem(reason);
  for (const std::string& table : salvaged_.lost_files)
    AddProblem(fmt::format("table {} of the index cannot be read", table));
  report_.repaired_after = salvaged_.repaired_after;
  report_.damaged_records = salvaged_.damaged.size();
  report_.lost_tables = salvaged_.lost_files;
  report_.tenants = hashers_.size();
  report_.layouts = layouts_.size();
}

absl::Status Rebuilder::OpenFiles() {
  TK_ASSIGN_OR_RETURN(device_, OpenBestBlockDevice(data_->ExtentsPath(), options_.device));
  TK_ASSIGN_OR_RETURN(const std::vector<DeviceFile> files, device_->ListFiles());
  for (const DeviceFile& listed : files) {
    File& file = files_[listed.file];
    TK_ASSIGN_OR_RETURN(file.bytes, device_->OpenFile(listed.file));
    const auto header = ReadExtentFileHeader(*device_, listed.file, &buffer_);
    if (absl::IsFailedPrecondition(header.status())) return header.status();
    if (header.ok()) file.slot_bytes = header->slot_bytes;
    if (!header.ok()) AddProblem(MessageOf(header.status()));
    bytes_total_ += file.bytes;
  }
  return absl::OkStatus();
}

bool Rebuilder::TakeChunk(const ChunkRecord& record, std::string* why) {
  const auto layout = layouts_.find(record.layout);
  if (layout == layouts_.end() || !hashers_.contains(record.tenant)) {
    *why = "its tenant's or layout's record is lost";
    return false;
  }
  if (record.token_count < 1 || record.token_count > layout->second.layout.chunk_tokens) {
    *why = "its token count does not fit its layout";
    return false;
  }
  const ChunkGeometry geometry = GeometryOf(layout->second.layout, record.token_count);
  const auto file = files_.find(record.extent.file);
  if (geometry.slot_bytes != record.slot_blocks * kBlockBytes || file == files_.end() ||
      (file->second.slot_bytes != 0 && file->second.slot_bytes != geometry.slot_bytes) ||
      record.extent.slot >= SlotsIn(file->second.bytes, geometry.slot_bytes)) {
    *why = "slot of no file, of another size, or past the end";
    return false;
  }
  if (file->second.used.contains(record.extent.slot)) {
    *why = "its slot holds another chunk";
    return false;
  }
  const SlotCheck check = CheckSlot(*device_, record, geometry, &buffer_);
  Progress(geometry.slot_bytes);
  *why = check.reason;
  if (!check.reason.empty()) return false;
  const auto [known, added] = chunks_.try_emplace(record.id, record);
  if (!added && known->second.epoch >= record.epoch) return true;
  known->second = record;
  file->second.used.insert(record.extent.slot);
  return true;
}

void Rebuilder::TakeChunks() {
  // By place, so that the files are read from front to back; of two records in one slot the newer
  // comes first.
  std::sort(salvaged_.chunks.begin(), salvaged_.chunks.end(),
            [](const ChunkRecord& a, const ChunkRecord& b) {
              return a.extent != b.extent ? a.extent < b.extent : a.epoch > b.epoch;
            });
  for (const ChunkRecord& record : salvaged_.chunks) {
    top_epoch_ = std::max(top_epoch_, record.epoch);
    std::string why;
    if (TakeChunk(record, &why)) continue;
    ++report_.chunks_left_out;
    AddProblem(
        fmt::format("chunk {} at {}: {}", record.id.ShortHex(), ToString(record.extent), why));
  }
}

// Chunks that sessions name and no record leads to, each with one of those sessions.
absl::flat_hash_map<ChunkId, uint64_t> Rebuilder::NamedAndMissing() const {
  absl::flat_hash_map<ChunkId, uint64_t> missing;
  for (const auto& [number, session] : salvaged_.sessions) {
    for (const auto& [index, slices] : session.blocks) {
      if (index >= session.record.span_blocks) continue;
      for (const ChunkSlice& slice : slices)
        if (!chunks_.contains(slice.chunk)) missing.emplace(slice.chunk, number);
    }
  }
  return missing;
}

// Also finds the highest epoch that was ever given to what is still there.
void Rebuilder::FindLostChunks() {
  const auto missing = NamedAndMissing();
  for (auto& [number, file] : files_) {
    if (file.slot_bytes == 0) continue;
    const uint64_t slots = SlotsIn(file.bytes, file.slot_bytes);
    for (uint32_t slot = 0; slot < slots; ++slot) {
      if (file.used.contains(slot)) continue;
      const ExtentRef extent{.file = number, .slot = slot};
      Digest root;
      const auto header = ReadAnyHeader(*device_, extent, file.slot_bytes, &buffer_, &root);
      Progress(file.slot_bytes);
      if (!header.has_value()) continue;
      top_epoch_ = std::max(top_epoch_, header->epoch);
      const auto named = missing.find(header->id);
      if (named == missing.end()) continue;
      TryFound(*header, root, extent, salvaged_.sessions.at(named->second).record);
    }
  }
}

void Rebuilder::TryFound(const ChunkHeader& header, const Digest& root, ExtentRef extent,
                         const SessionRecord& session) {
  const auto layout = layouts_.find(session.layout);
  const auto hasher = hashers_.find(session.tenant);
  if (layout == layouts_.end() || hasher == hashers_.end()) return;
  const Fingerprint& fingerprint = layout->second.fingerprint;
  if (header.fingerprint != fingerprint) return;
  const ChunkId identity =
      header.block_hash.empty()
          ? hasher->second.Tokens(header.parent, fingerprint, header.tokens)
          : hasher->second.Block(header.parent, fingerprint, header.block_hash, header.token_count);
  if (identity != header.id) return;
  const bool known = chunks_.contains(header.id);
  const ChunkRecord record{
      .id = header.id,
      .parent = header.parent,
      .layout = session.layout,
      .tenant = session.tenant,
      .token_count = header.token_count,
      .position_base = header.position_base,
      .epoch = header.epoch,
      .root = root,
      .extent = extent,
      .slot_blocks = static_cast<uint32_t>(files_.at(extent.file).slot_bytes / kBlockBytes),
      .created_unix_s = header.created_unix_s,
      .last_used_unix_s = header.created_unix_s};
  std::string why;
  if (TakeChunk(record, &why) && !known) ++report_.chunks_found;
}

// The view up to the first block that is missing.
std::vector<ChunkSlice> Rebuilder::ViewOf(const SalvagedSession& session) const {
  std::vector<ChunkSlice> view;
  for (uint32_t i = 0; i < session.record.span_blocks; ++i) {
    const auto block = session.blocks.find(i);
    if (block == session.blocks.end()) break;
    view.insert(view.end(), block->second.begin(), block->second.end());
    if (block->second.size() != kSlicesPerSpanBlock) break;
  }
  return view;
}

// Whether blocks and record are of one time: the tokens are as many as the record says, and at each
// border between blocks (which are written whole) the next chunk follows on the last.
bool Rebuilder::IsJoined(const SessionRecord& session, const std::vector<ChunkSlice>& view) const {
  uint64_t tokens = 0;
  for (size_t i = 0; i < view.size(); ++i) {
    tokens += view[i].count;
    if (i == 0 || i % kSlicesPerSpanBlock != 0) continue;
    const ChunkSlice& last = view[i - 1];
    const auto before = chunks_.find(last.chunk);
    const auto next = chunks_.find(view[i].chunk);
    const bool follows = before != chunks_.end() && next != chunks_.end() && view[i].first == 0 &&
                         next->second.parent == last.chunk &&
                         last.first + last.count == before->second.token_count;
    if (!follows) return false;
  }
  return tokens == session.token_count;
}

// How many leading slices are certainly of one view: where the blocks are not joined, those up to
// the end of the last block of which a chunk, by its parent, follows on all that is before it (a
// chunk's id binds its parent, and the parent of what was appended to a view binds that view:
// BindingOf in src/store).
size_t Rebuilder::ProvenSlices(const SessionRecord& session,
                               const std::vector<ChunkSlice>& view) const {
  if (IsJoined(session, view)) return view.size();
  const ChunkHasher& hasher = hashers_.at(session.tenant);
  const Fingerprint& fingerprint = layouts_.at(session.layout).fingerprint;
  size_t proven = std::min<size_t>(view.size(), kSlicesPerSpanBlock);
  ChunkId binding = hasher.Root(fingerprint);
  for (size_t i = 0; i < view.size(); ++i) {
    const ChunkSlice& slice = view[i];
    const auto chunk = chunks_.find(slice.chunk);
    if (chunk == chunks_.end()) break;  // a miss from here on in any case
    const bool follows = slice.first == 0 && chunk->second.parent == binding;
    const size_t block_end = (i / kSlicesPerSpanBlock + 1) * kSlicesPerSpanBlock;
    if (follows) proven = std::max(proven, std::min(view.size(), block_end));
    if (follows && slice.count == chunk->second.token_count) {
      binding = slice.chunk;
      continue;
    }
    const std::array<ChunkSlice, 2> slices = {ChunkSlice{.chunk = binding}, slice};
    binding = hasher.View(fingerprint, slices);
  }
  return proven;
}

absl::Status Rebuilder::PutSession(const SalvagedSession& session, Writer* writer) {
  SessionRecord kept = session.record;
  std::vector<ChunkSlice> view;
  if (hashers_.contains(kept.tenant) && layouts_.contains(kept.layout)) view = ViewOf(session);
  const bool mixed = !salvaged_.repaired_after.empty();
  if (mixed && !view.empty()) view.resize(ProvenSlices(kept, view));
  if (view.empty() && kept.token_count > 0) {
    ++report_.sessions_lost;
    AddProblem(fmt::format("session '{}' (generation {}): nothing is left of its {} tokens",
                           kept.name, kept.generation, kept.token_count));
    return absl::OkStatus();
  }
  ++report_.sessions;
  kept.token_count = 0;
  for (const ChunkSlice& slice : view) {
    kept.token_count += slice.count;
    if (!chunks_.contains(slice.chunk)) ++report_.missing_chunks;
  }
  if (kept.token_count < session.record.token_count) {
    ++report_.sessions_cut;
    AddProblem(fmt::format("session '{}' (generation {}): {} of {} tokens are left", kept.name,
                           kept.generation, kept.token_count, session.record.token_count));
  }
  if (mixed) kept.generation += kNumberJump;
  kept.span_blocks =
      static_cast<uint32_t>((view.size() + kSlicesPerSpanBlock - 1) / kSlicesPerSpanBlock);
  writer->batch().PutSession(kept);
  for (uint32_t i = 0; i < kept.span_blocks; ++i) {
    const auto begin = view.begin() + static_cast<std::ptrdiff_t>(i * kSlicesPerSpanBlock);
    const auto end = std::min<size_t>((i + 1) * kSlicesPerSpanBlock, view.size());
    writer->batch().PutSpanBlock(
        {.session = kept.number,
         .block_index = i,
         .slices = {begin, view.begin() + static_cast<std::ptrdiff_t>(end)}});
  }
  return writer->MaybeApply();
}

absl::Status Rebuilder::WriteNew(const std::string& path) {
  TK_ASSIGN_OR_RETURN(const auto index,
                      RocksIndex::Open({.directory = path, .store_id = data_->store_id()}));
  Writer writer(index.get());
  for (const auto& [number, tenant] : salvaged_.tenants) writer.batch().PutTenant(tenant);
  for (const auto& [number, layout] : layouts_)
    writer.batch().PutLayout(salvaged_.layouts.at(number));
  for (const auto& [id, record] : chunks_) {
    writer.batch().PutChunk(record);
    TK_RETURN_IF_ERROR(writer.MaybeApply());
  }
  for (const auto& [number, session] : salvaged_.sessions) {
    // A block without its session's record leaves none, and numbers begin at 1.
    TK_RETURN_IF_ERROR(PutSession(session, &writer));
  }
  report_.chunks = chunks_.size();
  const uint64_t next_epoch = std::max(salvaged_.meta.next_epoch, top_epoch_);
  writer.batch().SetNextEpoch(next_epoch + kEpochJump);
  writer.batch().SetNextSession(salvaged_.meta.next_session + kNumberJump);
  writer.batch().SetCleanShutdown(false);
  return writer.Apply(SyncMode::kSync);
}

// The old index keeps a name at every moment, and there is always one in place where the file
// system can exchange two names.
absl::Status Rebuilder::Swap(const std::string& made) {
  const std::string path = data_->IndexPath();
  std::string kept = path + ".damaged";
  for (int i = 2; fs::exists(kept); ++i) kept = fmt::format("{}.damaged-{}", path, i);
  std::error_code ignored;
  fs::rename(path + ".seal", kept + ".seal", ignored);  // of the old MANIFEST
  if (renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) {
    if (rename(made.c_str(), kept.c_str()) != 0) return ErrnoStatus(errno, "rename " + made);
  } else {
    if (rename(path.c_str(), kept.c_str()) != 0) return ErrnoStatus(errno, "rename " + path);
    if (rename(made.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "rename " + made);
  }
  fs::rename(made + ".seal", path + ".seal", ignored);
  report_.kept_as = kept;
  return SyncDirectory(data_->path());
}

absl::StatusOr<IndexRebuildReport> Rebuilder::Run() {
  TK_ASSIGN_OR_RETURN(data_, DataDirectory::Open(directory_, DataDirectory::Mode::kExisting));
  TK_RETURN_IF_ERROR(FinishInterrupted());
  TK_RETURN_IF_ERROR(SalvageIndex(data_->IndexPath(), data_->store_id(),
                                  data_->IndexPath() + ".scratch", &salvaged_));
  LearnNames();
  TK_RETURN_IF_ERROR(OpenFiles());
  TakeChunks();
  FindLostChunks();
  if (options_.progress) options_.progress(bytes_total_, bytes_total_);
  const std::string made = data_->IndexPath() + ".new";
  std::error_code error;
  fs::remove_all(made, error);  // of a rebuilding that was cut short
  TK_RETURN_IF_ERROR(FromError(error, "remove " + made));
  TK_RETURN_IF_ERROR(WriteNew(made));
  TK_RETURN_IF_ERROR(Swap(made));
  return std::move(report_);
}

}  // namespace

bool IndexRebuildReport::Clean() const {
  return repaired_after.empty() && chunks_left_out == 0 && sessions_cut == 0 &&
         sessions_lost == 0 && damaged_records == 0;
}

absl::StatusOr<IndexRebuildReport> RebuildIndex(const std::string& directory,
                                                IndexRebuildOptions options) {
  return Rebuilder(directory, std::move(options)).Run();
}

}  // namespace turnkeep
