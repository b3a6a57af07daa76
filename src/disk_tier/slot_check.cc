#include "disk_tier/slot_check.h"

#include <algorithm>

#include "core/slot_access.h"
#include "core/status.h"

namespace turnkeep {

SlotCheck CheckSlot(BlockDevice& device, const ChunkRecord& record, const ChunkGeometry& geometry,
                    AlignedBuffer* buffer) {
  SlotCheck check;
  if (buffer->size() < geometry.image_bytes) *buffer = AlignedBuffer(geometry.image_bytes);
  const std::span<std::byte> image = buffer->span().first(geometry.image_bytes);
  const absl::Status read = ReadBlocking(
      device, record.extent.file, SlotOffset(record.extent.slot, geometry.slot_bytes), image);
  if (!read.ok()) {
    check.reason = MessageOf(read);
    return check;
  }
  check.read = true;
  const absl::StatusOr<ChunkHeader> header =
      DecodeChunkHeader(image, record.id, record.epoch, record.root);
  if (!header.ok() || header->layer_digests.size() != geometry.page_offset.size()) {
    check.reason = header.ok() ? "other number of layers" : MessageOf(header.status());
    return check;
  }
  for (uint32_t layer = 0; layer < header->layer_digests.size(); ++layer) {
    if (!VerifyPage(image, geometry, *header, layer).ok()) check.layers.push_back(layer);
  }
  if (!check.layers.empty()) check.reason = "layer pages do not match their digests";
  return check;
}

std::optional<ChunkHeader> ReadAnyHeader(BlockDevice& device, ExtentRef extent, uint64_t slot_bytes,
                                         AlignedBuffer* buffer, Digest* root) {
  const uint64_t bytes = std::min(slot_bytes, kSlotFrontBytes);
  if (buffer->size() < bytes) *buffer = AlignedBuffer(bytes);
  const std::span<std::byte> front = buffer->span().first(bytes);
  if (!ReadBlocking(device, extent.file, SlotOffset(extent.slot, slot_bytes), front).ok())
    return std::nullopt;
  absl::StatusOr<ChunkHeader> header = DecodeAnyChunkHeader(front, root);
  if (!header.ok()) return std::nullopt;
  return *std::move(header);
}

absl::StatusOr<ExtentFileHeader> ReadExtentFileHeader(BlockDevice& device, uint32_t file,
                                                      AlignedBuffer* buffer) {
  if (buffer->size() < kExtentHeaderBytes) *buffer = AlignedBuffer(kExtentHeaderBytes);
  const std::span<std::byte> block = buffer->span().first(kExtentHeaderBytes);
  TK_RETURN_IF_ERROR(ReadBlocking(device, file, 0, block));
  return DecodeExtentFileHeader(block, file);
}

}  // namespace turnkeep
