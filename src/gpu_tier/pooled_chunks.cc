#include "gpu_tier/pooled_chunks.h"

#include <utility>

#include "core/units.h"
#include "gpu_tier/staging_ring.h"

namespace turnkeep {

uint64_t PooledChunkBytes(const KvLayout& layout, uint32_t token_count) {
  uint64_t bytes = 0;
  for (const LayerSpec& layer : layout.layers)
    bytes += RoundUp(LayerPageBytes(layer, token_count), kStagedPageAlignment);
  return bytes;
}

const std::vector<uint64_t>& PooledChunks::OffsetsFor(uint32_t token_count) {
  std::vector<uint64_t>& offsets = offsets_[token_count];
  if (!offsets.empty()) return offsets;
  uint64_t at = 0;
  for (const LayerSpec& layer : layout_.layers) {
    offsets.push_back(at);
    at += RoundUp(LayerPageBytes(layer, token_count), kStagedPageAlignment);
  }
  return offsets;
}

bool PooledChunks::Find(size_t index, const ChunkId& id, uint32_t token_count,
                        DeviceStream& reader) {
  if (pool_ == nullptr || id.IsZero()) return false;
  absl::StatusOr<PagePool::Pin> pin = pool_->Find(id);
  if (!pin.ok() || !pin->ReadOn(reader).ok()) return false;
  entries_[index] = {State::kFound, *std::move(pin), &OffsetsFor(token_count)};
  return true;
}

bool PooledChunks::Insert(size_t index, const ChunkId& id, uint32_t token_count, uint64_t position,
                          DeviceStream& filler) {
  if (pool_ == nullptr || id.IsZero()) return false;
  absl::StatusOr<PagePool::Pin> pin = pool_->Insert(
      {.id = id, .bytes = PooledChunkBytes(layout_, token_count), .position = position}, filler);
  if (!pin.ok()) return false;
  entries_[index] = {State::kFilling, *std::move(pin), &OffsetsFor(token_count)};
  return true;
}

absl::Status PooledChunks::Filled(size_t index, DeviceStream& filler) {
  entries_[index].state = State::kFilled;
  return entries_[index].pin.FilledOn(filler);
}

}  // namespace turnkeep
