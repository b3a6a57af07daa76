// Writing and reading the layer pages of one slot image with their digests. What the
// embedded tickets and the client's tickets do to a slot is this.
//
// Thread-safety: different layers of one slot may be worked on in parallel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/chunk_header.h"
#include "core/digest.h"
#include "core/layout.h"

namespace turnkeep {

// The page of `layer` in a slot image.
std::span<std::byte> PageIn(std::span<std::byte> image, const ChunkGeometry& geometry,
                            uint32_t layer);

// Digests the page of `layer` and writes the digest to the header's table.
void SealPage(std::span<std::byte> image, const ChunkGeometry& geometry, const ChunkId& id,
              uint64_t epoch, uint32_t layer);

// Compares the page with the digest in `header` (a decoded, verified one). DataLoss names
// the chunk and the layer.
absl::Status VerifyPage(std::span<const std::byte> image, const ChunkGeometry& geometry,
                        const ChunkHeader& header, uint32_t layer);

// The same while copying; the digest is over the bytes that arrived.
absl::Status ReadPage(std::span<const std::byte> image, const ChunkGeometry& geometry,
                      const ChunkHeader& header, uint32_t layer, std::span<std::byte> destination);

}  // namespace turnkeep
