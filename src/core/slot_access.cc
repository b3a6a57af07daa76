#include "core/slot_access.h"

#include <cstring>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep {

namespace {

absl::Status Mismatch(const ChunkHeader& header, uint32_t layer) {
  return DataLoss("read chunk {}: digest of layer {} does not match (epoch {})",
                  header.id.ShortHex(), layer, header.epoch);
}

}  // namespace

std::span<std::byte> PageIn(std::span<std::byte> image, const ChunkGeometry& geometry,
                            uint32_t layer) {
  TK_CHECK(layer < geometry.page_offset.size());
  return image.subspan(geometry.page_offset[layer], geometry.page_bytes[layer]);
}

void SealPage(std::span<std::byte> image, const ChunkGeometry& geometry, const ChunkId& id,
              uint64_t epoch, uint32_t layer) {
  const Digest digest =
      ComputeDigest({.chunk = id, .layer = layer, .epoch = epoch}, PageIn(image, geometry, layer));
  std::memcpy(image.data() + kLayerDigestOffset + sizeof(Digest) * layer, &digest, sizeof(digest));
}

absl::Status VerifyPage(std::span<const std::byte> image, const ChunkGeometry& geometry,
                        const ChunkHeader& header, uint32_t layer) {
  TK_CHECK(layer < geometry.page_offset.size() && layer < header.layer_digests.size());
  const auto page = image.subspan(geometry.page_offset[layer], geometry.page_bytes[layer]);
  const Digest digest =
      ComputeDigest({.chunk = header.id, .layer = layer, .epoch = header.epoch}, page);
  return digest == header.layer_digests[layer] ? absl::OkStatus() : Mismatch(header, layer);
}

absl::Status ReadPage(std::span<const std::byte> image, const ChunkGeometry& geometry,
                      const ChunkHeader& header, uint32_t layer, std::span<std::byte> destination) {
  TK_CHECK(layer < geometry.page_offset.size() && layer < header.layer_digests.size());
  if (destination.size() != geometry.page_bytes[layer]) {
    return InvalidArgument("read chunk {}: destination of layer {} has {} bytes, the page has {}",
                           header.id.ShortHex(), layer, destination.size(),
                           geometry.page_bytes[layer]);
  }
  const auto page = image.subspan(geometry.page_offset[layer], geometry.page_bytes[layer]);
  const Digest digest = CopyWithDigest({.chunk = header.id, .layer = layer, .epoch = header.epoch},
                                       page, destination);
  return digest == header.layer_digests[layer] ? absl::OkStatus() : Mismatch(header, layer);
}

}  // namespace turnkeep
