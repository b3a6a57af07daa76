// Data directories with real chunks in them, for the tests of recovery and fsck.
#pragma once

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <absl/synchronization/notification.h>
#include <gtest/gtest.h>

#include "core/chunk_header.h"
#include "core/slot_access.h"
#include "core/status.h"
#include "disk_tier/aligned_buffer.h"
#include "disk_tier/collecting_visitor.h"
#include "disk_tier/recovery.h"

namespace turnkeep::testing {

// Three layers of 16 KiB pages a chunk of 16 tokens.
inline KvLayout SmallLayout() {
  KvLayout layout{.model = "m", .weights_revision = "r", .chunk_tokens = 16};
  layout.layers.assign(3, LayerSpec::Full(4, 64, DType::kFloat16));
  return layout;
}

inline DiskTierOptions SmallTier(const std::string& directory) {
  DiskTierOptions options;
  options.directory = directory;
  options.extents = {.capacity_bytes = 64 * kMiB, .file_bytes = kMiB};
  return options;
}

inline absl::Status WriteAndWait(ExtentStore& extents, ExtentRef ref,
                                 std::span<const std::byte> image) {
  absl::Notification finished;
  absl::Status result;
  TK_RETURN_IF_ERROR(extents.Write(ref, image, [&](const absl::Status& status, uint64_t) {
    result = status;
    finished.Notify();
  }));
  finished.WaitForNotification();
  return result;
}

// A chunk image with random pages; fills in the record's root.
inline AlignedBuffer MakeImage(const KvLayout& layout, ChunkRecord* record) {
  ChunkGeometry geometry = GeometryOf(layout, record->token_count);
  AlignedBuffer image(geometry.slot_bytes);
  std::mt19937_64 random(record->epoch);
  for (size_t i = 0; i < geometry.page_offset.size(); ++i) {
    for (uint64_t j = 0; j < geometry.page_bytes[i]; j += 8) {
      uint64_t value = random();
      std::memcpy(image.data() + geometry.page_offset[i] + j, &value, sizeof(value));
    }
    SealPage(image.span(), geometry, record->id, record->epoch, static_cast<uint32_t>(i));
  }
  ChunkHeader header{.id = record->id,
                     .parent = record->parent,
                     .fingerprint = FingerprintOf(layout),
                     .epoch = record->epoch,
                     .token_count = record->token_count,
                     .position_base = record->position_base};
  for (size_t i = 0; i < geometry.page_offset.size(); ++i) {
    Digest digest;
    std::memcpy(&digest, image.data() + kLayerDigestOffset + sizeof(Digest) * i, sizeof(digest));
    header.layer_digests.push_back(digest);
  }
  for (uint32_t t = 0; t < record->token_count; ++t) {
    header.tokens.push_back(static_cast<uint32_t>(record->epoch * 100 + t));
  }
  record->root = EncodeChunkHeader(header, image.span());
  record->slot_blocks = static_cast<uint32_t>(geometry.slot_bytes / kBlockBytes);
  return image;
}

// Writes chunks number first .. first + count - 1, payload before index, as the store does.
inline std::vector<ChunkRecord> WriteChunks(DiskTier& tier, uint64_t first, uint64_t count,
                                            uint32_t token_count = 16) {
  KvLayout layout = SmallLayout();
  std::vector<ChunkRecord> records;
  IndexBatch batch;
  batch.PutTenant({.number = 1, .name = "alice", .key = {1}});
  batch.PutLayout({.number = 1, .encoding = EncodeLayout(layout)});
  for (uint64_t number = first; number < first + count; ++number) {
    ChunkRecord record = TestChunk(number);
    record.token_count = token_count;
    AlignedBuffer image = MakeImage(layout, &record);
    auto ref = tier.extents->Allocate(image.size(), WritePurpose::kDurability);
    EXPECT_TRUE(ref.ok()) << ref.status();
    if (!ref.ok()) return records;
    record.extent = *ref;
    absl::Status written = WriteAndWait(*tier.extents, *ref, image.span());
    EXPECT_TRUE(written.ok()) << written;
    batch.PutChunk(record);
    records.push_back(record);
  }
  absl::Status applied = ApplyBlocking(*tier.index, std::move(batch), SyncMode::kSync);
  EXPECT_TRUE(applied.ok()) << applied;
  return records;
}

}  // namespace turnkeep::testing
