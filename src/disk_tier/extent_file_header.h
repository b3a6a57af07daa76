// The first block of every extent file (docs/disk_format.md).
//
// Thread-safe: plain values and pure functions. The decoder is total on arbitrary bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <absl/status/statusor.h>

#include "core/units.h"
#include "disk_tier/extent_ref.h"

namespace turnkeep {

inline constexpr uint32_t kExtentFormatVersion = 1;
inline constexpr uint64_t kExtentHeaderBytes = kBlockBytes;

struct ExtentFileHeader {
  uint32_t file = 0;
  uint32_t slot_count = 0;
  StoreId store_id{};
  uint64_t slot_bytes = 0;
  uint64_t file_bytes = 0;
  int64_t created_unix_s = 0;
  bool operator==(const ExtentFileHeader&) const = default;
};

// Slots of `slot_bytes` in a file of `file_bytes`.
constexpr uint64_t SlotsIn(uint64_t file_bytes, uint64_t slot_bytes) {
  return file_bytes < kExtentHeaderBytes ? 0 : (file_bytes - kExtentHeaderBytes) / slot_bytes;
}
constexpr uint64_t SlotOffset(uint32_t slot, uint64_t slot_bytes) {
  return kExtentHeaderBytes + slot * slot_bytes;
}

// `block` has kExtentHeaderBytes.
void EncodeExtentFileHeader(const ExtentFileHeader& header, std::span<std::byte> block);

// DataLoss: damaged or no header at all, or that of another file. FailedPrecondition: whole,
// but of a newer format.
absl::StatusOr<ExtentFileHeader> DecodeExtentFileHeader(std::span<const std::byte> block,
                                                        uint32_t file);

}  // namespace turnkeep
