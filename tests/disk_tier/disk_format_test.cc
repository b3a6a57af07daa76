// The worked example of docs/disk_format.md is what the code writes, byte for byte.
//
// Size: Example prints the document's example from top to bottom, in the document's order.
#include <fstream>
#include <sstream>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/chunk_header.h"
#include "core/chunk_identity.h"
#include "core/layout.h"
#include "core/slot_access.h"
#include "disk_tier/aligned_buffer.h"
#include "disk_tier/extent_file_header.h"
#include "disk_tier/index_record.h"

namespace turnkeep {
namespace {

// Lines of 16 bytes; runs of lines that are all zero are one line "*".
std::string Dump(std::span<const std::byte> bytes, uint64_t base) {
  std::ostringstream out;
  bool in_zeros = false;
  for (size_t line = 0; line < bytes.size(); line += 16) {
    std::span<const std::byte> part =
        bytes.subspan(line, std::min<size_t>(16, bytes.size() - line));
    bool zero = true;
    for (std::byte b : part) zero = zero && b == std::byte{0};
    bool last = line + 16 >= bytes.size();
    if (zero && !last) {
      if (!in_zeros) out << "*\n";
      in_zeros = true;
      continue;
    }
    in_zeros = false;
    out << fmt::format("{:08x} ", base + line);
    for (std::byte b : part) out << fmt::format(" {:02x}", static_cast<unsigned>(b));
    out << "\n";
  }
  return out.str();
}
std::string Dump(const std::string& bytes) { return Dump(std::as_bytes(std::span(bytes)), 0); }

std::string Example() {
  KvLayout layout{.model = "m", .weights_revision = "r", .chunk_tokens = 16};
  layout.layers.assign(1, LayerSpec::Full(1, 2, DType::kFloat32));
  TenantKey key{};
  key[0] = 1;
  const std::vector<uint32_t> tokens = {5, 6, 7, 8};
  ChunkHasher hasher(key);
  Fingerprint fingerprint = FingerprintOf(layout);
  ChunkId parent = hasher.Root(fingerprint);
  ChunkId id = hasher.Tokens(parent, fingerprint, tokens);

  ChunkGeometry geometry = GeometryOf(layout, 4);
  AlignedBuffer slot(geometry.slot_bytes);
  std::span<std::byte> page = PageIn(slot.span(), geometry, 0);
  for (size_t i = 0; i < page.size(); ++i) page[i] = static_cast<std::byte>(i + 1);
  constexpr uint64_t kEpoch = 9;
  Digest digest = ComputeDigest({.chunk = id, .layer = 0, .epoch = kEpoch}, page);
  ChunkHeader header{.id = id,
                     .parent = parent,
                     .fingerprint = fingerprint,
                     .epoch = kEpoch,
                     .token_count = 4,
                     .position_base = 0,
                     .created_unix_s = 1'700'000'000,
                     .layer_digests = {digest},
                     .tokens = tokens};
  Digest root = EncodeChunkHeader(header, slot.span());

  StoreId store_id{};
  for (size_t i = 0; i < store_id.size(); ++i) store_id[i] = static_cast<uint8_t>(0xA0 + i);
  uint64_t slot_bytes = geometry.slot_bytes;
  AlignedBuffer block(kExtentHeaderBytes);
  EncodeExtentFileHeader({.file = 1,
                          .slot_count = 255,
                          .store_id = store_id,
                          .slot_bytes = slot_bytes,
                          .file_bytes = SlotOffset(255, slot_bytes),
                          .created_unix_s = 1'700'000'000},
                         block.span());
  ChunkRecord record{.id = id,
                     .parent = parent,
                     .layout = 1,
                     .tenant = 1,
                     .token_count = 4,
                     .position_base = 0,
                     .epoch = kEpoch,
                     .root = root,
                     .extent = {1, 0},
                     .slot_blocks = static_cast<uint32_t>(slot_bytes / kBlockBytes),
                     .created_unix_s = 1'700'000'000,
                     .last_used_unix_s = 1'700'000'060};
  SessionRecord session{.number = 3,
                        .name = "demo",
                        .generation = 1,
                        .token_count = 4,
                        .created_unix_s = 1'700'000'000,
                        .last_used_unix_s = 1'700'000'060,
                        .span_blocks = 1,
                        .tenant = 1,
                        .layout = 1};
  std::ostringstream out;
  out << "layouts, key:\n" << Dump(LayoutKey(1));
  out << "layouts, value:\n" << Dump(EncodeLayoutRecord({1, EncodeLayout(layout)}));
  out << "tenants, key:\n" << Dump(TenantKeyBytes(1));
  out << "tenants, value:\n" << Dump(EncodeTenantRecord({1, "local", key}));
  out << "chunks, key (the chunk id):\n" << Dump(ChunkKey(id));
  out << "chunks, value:\n" << Dump(EncodeChunkRecord(record));
  out << "sessions, key:\n" << Dump(SessionKey(3));
  out << "sessions, value:\n" << Dump(EncodeSessionRecord(session));
  out << "spans, key:\n" << Dump(SpanKey(3, 0));
  out << "spans, value:\n"
      << Dump(EncodeSpanBlock({.session = 3, .block_index = 0, .slices = {{id, 0, 4}}}));
  out << "default (meta), key of next epoch:\n" << Dump(MetaKeyBytes(MetaKey::kNextEpoch));
  out << "default (meta), value:\n" << Dump(EncodeMetaRecord({MetaKey::kNextEpoch, 10}));
  out << "extents/00000001.tkx, file header:\n" << Dump(block.span(), 0);
  out << "extents/00000001.tkx, slot 0:\n" << Dump(slot.span(), SlotOffset(0, slot_bytes));
  return out.str();
}

TEST(DiskFormat, TheDocumentsExampleIsWhatTheCodeWrites) {
  std::string example = Example();
  std::ifstream file(std::string(TURNKEEP_SOURCE_DIR) + "/docs/disk_format.md");
  std::stringstream document;
  document << file.rdbuf();
  EXPECT_NE(document.str().find("```text\n" + example + "```\n"), std::string::npos)
      << "docs/disk_format.md must hold:\n"
      << example;
}

}  // namespace
}  // namespace turnkeep
