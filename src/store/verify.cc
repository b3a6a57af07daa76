// Online check of every byte: each copy of each chunk is read and compared with its
// digests while the store goes on serving.

#include <utility>

#include "core/slot_access.h"
#include "core/status.h"
#include "core/units.h"
#include "disk_tier/aligned_buffer.h"
#include "store/store_impl.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

namespace {

constexpr size_t kMaxProblems = 100;

absl::Status CheckImage(std::span<const std::byte> image, const ChunkEntry& entry,
                        const LayoutInfo& layout) {
  TK_ASSIGN_OR_RETURN(const ChunkHeader header,
                      DecodeChunkHeader(image, entry.id, entry.epoch, entry.root));
  const ChunkGeometry& geometry = layout.Geometry(entry.token_count);
  for (uint32_t layer = 0; layer < layout.layout.layers.size(); ++layer) {
    TK_RETURN_IF_ERROR(VerifyPage(image, geometry, header, layer));
  }
  return absl::OkStatus();
}

void AddProblem(VerifyReport* report, const ChunkEntry& entry, std::string_view where,
                const absl::Status& status) {
  if (report->problems.size() == kMaxProblems) return;
  report->problems.push_back(
      fmt::format("chunk {} in {}: {}", entry.id.ShortHex(), where, MessageOf(status)));
}

}  // namespace

absl::StatusOr<std::vector<ChunkIndex>> StoreImpl::ChunksToVerify(TenantNumber tenant,
                                                                  const VerifyRequest& request,
                                                                  uint64_t* total_bytes) {
  absl::MutexLock lock(&state_.mu);
  TK_RETURN_IF_ERROR(CheckOpen());
  std::vector<ChunkIndex> chunks;
  if (!request.session.empty()) {
    TK_ASSIGN_OR_RETURN(const Session* session, SessionOf(tenant, request.session));
    for (const Span& span : session->spans) chunks.push_back(span.chunk);
  } else {
    for (ChunkIndex i = 0; i < state_.catalog.end(); ++i) {
      const ChunkEntry& entry = state_.catalog[i];
      if (entry.in_use && entry.tenant == tenant && entry.HasData()) chunks.push_back(i);
    }
  }
  for (const ChunkIndex chunk : chunks) {
    const ChunkEntry& entry = state_.catalog[chunk];
    *total_bytes += ((entry.InHost() ? 1 : 0) + (entry.disk.IsNull() ? 0 : 1)) * entry.slot_blocks *
                    kBlockBytes;
    state_.AddOperationRef(chunk);  // keeps the index meaning this chunk
  }
  return chunks;
}

void StoreImpl::VerifyChunk(ChunkIndex chunk, bool repair, AlignedBuffer* buffer,
                            VerifyReport* report) {
  ChunkEntry entry;
  std::span<const std::byte> image;
  const LayoutInfo* layout = nullptr;
  {
    absl::MutexLock lock(&state_.mu);
    entry = state_.catalog[chunk];
    layout = state_.registry.LayoutAt(entry.layout);
    if (entry.InHost()) {
      state_.PinHost(chunk);
      image = state_.HostImage(entry);
    }
    if (!entry.disk.IsNull()) state_.Notify(Kind::kDiskPinned, chunk);
  }
  if (!entry.HasData()) return;
  const uint64_t slot_bytes = entry.slot_blocks * kBlockBytes;
  absl::Status host;
  absl::Status disk;
  ++report->chunks_checked;
  if (entry.InHost()) {
    host = CheckImage(image, entry, *layout);
    report->bytes_checked += slot_bytes;
  }
  if (!entry.disk.IsNull()) {
    if (buffer->size() < slot_bytes) *buffer = AlignedBuffer(slot_bytes);
    const uint64_t image_bytes = layout->Geometry(entry.token_count).image_bytes;
    const auto read = buffer->span().first(image_bytes);
    disk = ReadExtentBlocking(entry.disk, 0, read);
    if (disk.ok()) disk = CheckImage(read, entry, *layout);
    report->bytes_checked += slot_bytes;
  }
  absl::MutexLock lock(&state_.mu);
  if (entry.InHost()) {
    if (!host.ok()) {
      ++report->host_copies_damaged;
      AddProblem(report, entry, "host memory", host);
      if (repair) ++report->copies_dropped;
      if (repair) state_.DropDamagedHost(chunk);
    }
    state_.UnpinHost(chunk);
  }
  if (!entry.disk.IsNull()) {
    state_.Notify(Kind::kDiskUnpinned, chunk);
    if (!disk.ok()) {
      ++report->disk_copies_damaged;
      AddProblem(report, entry, "disk slot " + ToString(entry.disk), disk);
      // A load may be reading the same slot: it will find the same damage and drop it.
      const bool drop = repair && !state_.catalog[chunk].loading;
      if (drop) ++report->copies_dropped;
      if (drop) {
        state_.DropDamagedDisk(chunk, absl::IsDataLoss(disk) ? MissingReason::kDigestFailed
                                                             : MissingReason::kReadFailed);
      }
    }
  }
}

absl::StatusOr<VerifyReport> StoreImpl::Verify(
    TenantNumber tenant, const VerifyRequest& request,
    const std::function<void(uint64_t, uint64_t)>& progress,
    const std::function<bool()>& cancelled) {
  uint64_t total_bytes = 0;
  TK_ASSIGN_OR_RETURN(const std::vector<ChunkIndex> chunks,
                      ChunksToVerify(tenant, request, &total_bytes));
  VerifyReport report;
  AlignedBuffer buffer;
  absl::Status status;
  for (const ChunkIndex chunk : chunks) {
    if (status.ok() && cancelled && cancelled()) {
      status =
          Unavailable("verify: given up after {} of {} bytes", report.bytes_checked, total_bytes);
    }
    if (status.ok()) VerifyChunk(chunk, request.repair, &buffer, &report);
    {
      absl::MutexLock lock(&state_.mu);
      state_.DropOperationRef(chunk);
      writer_->WakeForWork();
      if (status.ok()) status = CheckOpen();
    }
    if (status.ok() && progress) progress(report.bytes_checked, total_bytes);
  }
  TK_RETURN_IF_ERROR(status);
  return report;
}

}  // namespace turnkeep
