// Reading one chunk from its slot and checking every byte of it: what fsck and the rebuilding of an
// index do, with no store around them.
//
// Thread-compatible: pure but for the device and the buffer. Blocks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/chunk_header.h"
#include "core/layout.h"
#include "disk_tier/aligned_buffer.h"
#include "disk_tier/block_device.h"
#include "disk_tier/extent_file_header.h"
#include "disk_tier/index_record.h"

namespace turnkeep {

struct SlotCheck {
  bool read = false;             // the device gave the bytes
  std::vector<uint32_t> layers;  // whose page does not match its digest
  std::string reason;            // empty: whole
};

// Whether the slot of `record` holds the chunk that it names, byte by byte: header against the
// root digest, pages against the header. `geometry` is that of the record's layout and token
// count, its slot bytes the record's. `buffer` grows as needed.
SlotCheck CheckSlot(BlockDevice& device, const ChunkRecord& record, const ChunkGeometry& geometry,
                    AlignedBuffer* buffer);

// The header that the slot begins with, whichever chunk's it is; nothing when there is no whole
// one. `root` gets its digest. Not more than `kSlotFrontBytes` are read, which hold all but the
// longest headers.
inline constexpr uint64_t kSlotFrontBytes = 4 * kBlockBytes;
std::optional<ChunkHeader> ReadAnyHeader(BlockDevice& device, ExtentRef extent, uint64_t slot_bytes,
                                         AlignedBuffer* buffer, Digest* root);

// The file's first block. DataLoss: damaged; FailedPrecondition: of a newer format.
absl::StatusOr<ExtentFileHeader> ReadExtentFileHeader(BlockDevice& device, uint32_t file,
                                                      AlignedBuffer* buffer);

}  // namespace turnkeep
