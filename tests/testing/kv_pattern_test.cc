// The tests' own oracle must notice every wrong byte, or the suites built on it prove nothing.
#include "testing/kv_pattern.h"

#include <random>

#include <gtest/gtest.h>

#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

TEST(StandardLayouts, AreValid) {
  for (const LayoutCase& c : StandardLayouts()) {
    EXPECT_TRUE(ValidateLayout(c.layout).ok()) << c.name << ": " << ValidateLayout(c.layout);
  }
}

TEST(StandardLayouts, EveryOneFieldChangeIsValidAndHasAFingerprintOfItsOwn) {
  const KvLayout base = EveryKindLayout();
  for (const FieldChange& change : OneFieldChanges(base)) {
    EXPECT_TRUE(ValidateLayout(change.layout).ok())
        << change.field << ": " << ValidateLayout(change.layout);
    EXPECT_NE(FingerprintOf(change.layout), FingerprintOf(base)) << change.field;
  }
}

TEST(KvPattern, FindsEveryFlippedBitOfEveryLayout) {
  std::mt19937_64 random(1);
  for (const LayoutCase& c : StandardLayouts()) {
    const KvPattern pattern(c.layout, c.hashed);
    KvContext context;
    context.Append(MakeTokens(3, 16));
    for (uint32_t layer = 0; layer < std::min(pattern.layer_count(), 8u); ++layer) {
      std::vector<std::byte> page(LayerPageBytes(c.layout.layers[layer], 16));
      pattern.FillPage(layer, context.identities(), page);
      ASSERT_EQ(pattern.CheckPage(layer, 16, 0, context.identities(), page), std::nullopt);
      for (int i = 0; i < 64; ++i) {
        const size_t bit = random() % (page.size() * 8);
        page[bit / 8] ^= std::byte(1 << bit % 8);
        EXPECT_NE(pattern.CheckPage(layer, 16, 0, context.identities(), page), std::nullopt)
            << c.name << " layer " << layer << " bit " << bit;
        page[bit / 8] ^= std::byte(1 << bit % 8);
      }
    }
  }
}

TEST(KvPattern, RowsInsideAChunkAreCheckedAgainstTheirOwnTokens) {
  const KvPattern pattern(TinyLayout());
  KvContext context;
  context.Append(MakeTokens(3, 16));
  std::vector<std::byte> page(LayerPageBytes(pattern.layout().layers[0], 16));
  pattern.FillPage(0, context.identities(), page);
  const std::span<const uint64_t> all = context.identities();
  EXPECT_EQ(pattern.CheckPage(0, 16, 5, all.subspan(5, 4), page), std::nullopt);
  EXPECT_NE(pattern.CheckPage(0, 16, 5, all.subspan(6, 4), page), std::nullopt);
  EXPECT_NE(pattern.CheckPage(1, 16, 5, all.subspan(5, 4), page), std::nullopt);
}

TEST(KvContext, TokensAfterATruncationHaveKvOfTheirOwn) {
  KvContext full;
  full.Append(MakeTokens(1, 40));
  KvContext truncated = full;
  truncated.Drop(0, 20);
  KvContext fresh;
  fresh.Append(std::span(full.tokens()).subspan(20));
  EXPECT_EQ(truncated.tokens(), fresh.tokens());
  EXPECT_NE(truncated.identities(), fresh.identities());
  const auto more = MakeTokens(2, 1);
  full.Append(more);
  truncated.Append(more);
  EXPECT_NE(full.identities().back(), truncated.identities().back());
  EXPECT_EQ(full.positions().back(), truncated.positions().back());
}

TEST(KvContext, DroppingTheEndIsAsIfItHadNeverBeen) {
  KvContext rewound;
  rewound.Append(MakeTokens(1, 40));
  rewound.Resize(25);
  KvContext fresh;
  fresh.Append(MakeTokens(1, 25));
  rewound.Append(MakeTokens(2, 3));
  fresh.Append(MakeTokens(2, 3));
  EXPECT_EQ(rewound.identities(), fresh.identities());
  EXPECT_EQ(rewound.BlockHashes(16), fresh.BlockHashes(16));
}

}  // namespace
}  // namespace turnkeep::testing
