// Sizes and places of layer pages in a slot.
#include <set>

#include <gtest/gtest.h>

#include "core/chunk_header.h"
#include "core/layout.h"
#include "core/units.h"
#include "testing/layouts.h"

namespace turnkeep {
namespace {

using turnkeep::testing::LayoutOfAllKinds;
using turnkeep::testing::SmallLayout;

std::vector<KvLayout> Layouts() {
  std::vector<KvLayout> layouts = {LayoutOfAllKinds(), SmallLayout(1, 16), SmallLayout(4, 64),
                                   SmallLayout(3, 17), SmallLayout(2, 21), SmallLayout(32, 512)};
  KvLayout large = SmallLayout(8);
  large.layers.assign(8, LayerSpec::Full(8, 128, DType::kBFloat16));
  layouts.push_back(large);
  KvLayout mixed = large;
  mixed.layers[3] = LayerSpec::Full(1, 16, DType::kFloat16);
  layouts.push_back(mixed);
  return layouts;
}

TEST(Geometry, PageBytesFollowTheShapes) {
  const KvLayout layout = LayoutOfAllKinds();
  const uint64_t expected[] = {
      10 * 2 * (16 + 16) * 2,        // full, float16
      10 * 2 * 16 * 2,               // value_only, bfloat16
      10 * (64 + 4) + 10 * (8 + 4),  // latent, fp8 with float32 scales
      10 * 2 * (12 + 10) * 4,        // low_rank, float32
      10 * 4 * (64 + 32) * 1,        // window, int8, per-tensor scale
      5000,                          // state
  };
  uint64_t per_token = 0;
  for (size_t i = 0; i < layout.layers.size(); ++i) {
    EXPECT_EQ(LayerPageBytes(layout.layers[i], 10), expected[i]) << i;
    if (layout.layers[i].kind != LayerKind::kState) per_token += expected[i] / 10;
  }
  EXPECT_EQ(BytesPerToken(layout), per_token);
}

TEST(Geometry, PagesAreAlignedAndDoNotOverlapAtAnyTokenCount) {
  for (const KvLayout& layout : Layouts()) {
    const auto layer_count = static_cast<uint32_t>(layout.layers.size());
    for (uint32_t tokens = 1; tokens <= layout.chunk_tokens; ++tokens) {
      const ChunkGeometry geometry = GeometryOf(layout, tokens);
      EXPECT_GE(geometry.header_bytes, EncodedChunkHeaderBytes(layer_count, tokens, 0));
      EXPECT_GE(geometry.header_bytes,
                EncodedChunkHeaderBytes(layer_count, tokens, kMaxBlockHashBytes));
      uint64_t end = geometry.header_bytes;
      uint64_t payload_bytes = 0;
      bool all_alone = true;
      for (uint32_t layer = 0; layer < layer_count; ++layer) {
        const uint64_t bytes = geometry.page_bytes[layer];
        ASSERT_EQ(bytes, LayerPageBytes(layout.layers[layer], tokens));
        ASSERT_GE(geometry.page_offset[layer], end);
        const bool alone = bytes >= kBlockBytes;
        ASSERT_EQ(geometry.page_offset[layer] % (alone ? kBlockBytes : kCacheLineBytes), 0u);
        end = geometry.page_offset[layer] + bytes;
        if (alone) end = RoundUp(end, kBlockBytes);  // nothing shares its blocks
        payload_bytes += bytes;
        all_alone = all_alone && alone;
      }
      ASSERT_EQ(geometry.pages_readable_alone, all_alone);
      ASSERT_EQ(geometry.payload_bytes, payload_bytes);
      ASSERT_GE(geometry.image_bytes, end);
      ASSERT_LT(geometry.image_bytes, end + kBlockBytes);
      ASSERT_EQ(geometry.image_bytes % kBlockBytes, 0u);
      ASSERT_GE(geometry.slot_bytes, geometry.image_bytes);
      ASSERT_EQ(geometry.slot_bytes % kBlockBytes, 0u);
    }
  }
}

TEST(Geometry, ALayoutNeedsAtMostFourSlotClasses) {
  for (const KvLayout& layout : Layouts()) {
    std::set<uint64_t> classes;
    for (uint32_t tokens = 1; tokens <= layout.chunk_tokens; ++tokens) {
      classes.insert(GeometryOf(layout, tokens).slot_bytes);
    }
    EXPECT_LE(classes.size(), 4u);
    const ChunkGeometry full = GeometryOf(layout, layout.chunk_tokens);
    EXPECT_EQ(full.slot_bytes, full.image_bytes);
  }
  std::set<uint64_t> classes;
  const KvLayout large = Layouts()[6];
  for (uint32_t tokens = 1; tokens <= 64; ++tokens) {
    classes.insert(GeometryOf(large, tokens).slot_bytes);
  }
  EXPECT_EQ(classes.size(), 4u);
}

TEST(Geometry, ATailHoldsOnlyItsTokens) {
  const KvLayout layout = Layouts()[6];
  const ChunkGeometry tail = GeometryOf(layout, 3);
  EXPECT_EQ(tail.payload_bytes, 3 * BytesPerToken(layout));
  EXPECT_LT(tail.slot_bytes, GeometryOf(layout, 64).slot_bytes / 3);
}

}  // namespace
}  // namespace turnkeep
