#include "disk_tier/extent_file_header.h"

#include <array>
#include <cstring>
#include <type_traits>

#include "core/check.h"
#include "core/digest.h"
#include "core/status.h"

namespace turnkeep {
namespace {

constexpr std::array<char, 8> kMagic = {'T', 'K', 'E', 'X', 'T', 'E', 'N', 'T'};

// As it lies on disk, little-endian. Zeros follow up to the digest in the last 16 bytes;
// magic, version and digest keep their places in every format version.
struct HeaderBody {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t file;
  StoreId store_id;
  uint64_t slot_bytes;
  uint64_t file_bytes;
  uint32_t slot_count;
  uint32_t reserved;
  int64_t created_unix_s;
};
static_assert(sizeof(HeaderBody) == 64 && std::has_unique_object_representations_v<HeaderBody>);

constexpr size_t kDigestOffset = kExtentHeaderBytes - sizeof(Digest);

Digest DigestOf(std::span<const std::byte> block, uint32_t file) {
  return ComputeDigest({.layer = kHeaderLayer, .epoch = file}, block.first(kDigestOffset));
}

}  // namespace

void EncodeExtentFileHeader(const ExtentFileHeader& header, std::span<std::byte> block) {
  TK_CHECK(block.size() == kExtentHeaderBytes);
  HeaderBody body{.magic = kMagic,
                  .version = kExtentFormatVersion,
                  .file = header.file,
                  .store_id = header.store_id,
                  .slot_bytes = header.slot_bytes,
                  .file_bytes = header.file_bytes,
                  .slot_count = header.slot_count,
                  .created_unix_s = header.created_unix_s};
  std::memset(block.data(), 0, block.size());
  std::memcpy(block.data(), &body, sizeof(body));
  Digest digest = DigestOf(block, header.file);
  std::memcpy(block.data() + kDigestOffset, &digest, sizeof(digest));
}

absl::StatusOr<ExtentFileHeader> DecodeExtentFileHeader(std::span<const std::byte> block,
                                                        uint32_t file) {
  if (block.size() != kExtentHeaderBytes) return DataLoss("extent file {}: no header", file);
  HeaderBody body{};
  std::memcpy(&body, block.data(), sizeof(body));
  if (body.magic != kMagic) return DataLoss("extent file {}: no header", file);
  Digest stored;
  std::memcpy(&stored, block.data() + kDigestOffset, sizeof(stored));
  if (stored != DigestOf(block, file) || body.file != file) {
    return DataLoss("extent file {}: damaged header", file);
  }
  if (body.version > kExtentFormatVersion) {
    return FailedPrecondition("extent file {} has format {}, this program knows up to {}", file,
                              body.version, kExtentFormatVersion);
  }
  if (body.version == 0 || body.slot_bytes == 0 || body.slot_bytes % kBlockBytes != 0 ||
      body.slot_count > SlotsIn(body.file_bytes, body.slot_bytes)) {
    return DataLoss("extent file {}: impossible header", file);
  }
  return ExtentFileHeader{.file = body.file,
                          .slot_count = body.slot_count,
                          .store_id = body.store_id,
                          .slot_bytes = body.slot_bytes,
                          .file_bytes = body.file_bytes,
                          .created_unix_s = body.created_unix_s};
}

}  // namespace turnkeep
