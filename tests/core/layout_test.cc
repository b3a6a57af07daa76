// Fingerprint, encodings, JSON and differences of layouts.
#include "core/layout.h"

#include <functional>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "testing/layouts.h"

namespace turnkeep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using turnkeep::testing::LayoutOfAllKinds;
using turnkeep::testing::SmallLayout;

struct FieldChange {
  std::string field;
  std::function<void(KvLayout&)> change;
};

// Every field alone; the changed layout need not be valid.
std::vector<FieldChange> EveryField() {
  const auto layer = [](auto change) { return [change](KvLayout& l) { change(l.layers[3]); }; };
  return {
      {"layout_version", [](KvLayout& l) { l.layout_version = 2; }},
      {"model", [](KvLayout& l) { l.model = "other"; }},
      {"weights_revision", [](KvLayout& l) { l.weights_revision = "2"; }},
      {"adapter", [](KvLayout& l) { l.adapter = ""; }},
      {"chunk_tokens", [](KvLayout& l) { l.chunk_tokens = 128; }},
      {"parallel_rank", [](KvLayout& l) { l.parallel_rank = 0; }},
      {"parallel_width", [](KvLayout& l) { l.parallel_width = 3; }},
      {"rope.pairing", [](KvLayout& l) { l.rope.pairing = RopePairing::kAdjacent; }},
      {"rope.rotary_dim", [](KvLayout& l) { l.rope.rotary_dim = 6; }},
      {"rope.inv_freq[1]", [](KvLayout& l) { l.rope.inv_freq[1] *= 1.0000001f; }},
      {"rope.inv_freq.length", [](KvLayout& l) { l.rope.inv_freq.pop_back(); }},
      {"rope.attention_scale", [](KvLayout& l) { l.rope.attention_scale = 1.1f; }},
      {"rope.key_state", [](KvLayout& l) { l.rope.key_state = KeyState::kRaw; }},
      {"layers.length", [](KvLayout& l) { l.layers.pop_back(); }},
      {"layers[3].kind", layer([](LayerSpec& s) { s.kind = LayerKind::kFull; })},
      {"layers[3].dtype", layer([](LayerSpec& s) { s.dtype = DType::kFloat16; })},
      {"layers[3].kv_heads", layer([](LayerSpec& s) { s.kv_heads++; })},
      {"layers[3].key_dim", layer([](LayerSpec& s) { s.key_dim++; })},
      {"layers[3].value_dim", layer([](LayerSpec& s) { s.value_dim++; })},
      {"layers[3].key_source_layer", layer([](LayerSpec& s) { s.key_source_layer = 1; })},
      {"layers[3].latent_dim", layer([](LayerSpec& s) { s.latent_dim = 1; })},
      {"layers[3].latent_rope_dim", layer([](LayerSpec& s) { s.latent_rope_dim = 1; })},
      {"layers[3].key_rank", layer([](LayerSpec& s) { s.key_rank++; })},
      {"layers[3].value_rank", layer([](LayerSpec& s) { s.value_rank++; })},
      {"layers[3].basis_hash", layer([](LayerSpec& s) { s.basis_hash.bytes[31] = 1; })},
      {"layers[3].window_tokens", layer([](LayerSpec& s) { s.window_tokens = 1; })},
      {"layers[3].state_bytes", layer([](LayerSpec& s) { s.state_bytes = 1; })},
      {"layers[3].scale_kind", layer([](LayerSpec& s) { s.scale_kind = ScaleKind::kPerTensor; })},
      {"layers[3].key_scale", layer([](LayerSpec& s) { s.key_scale = -0.0f; })},
      {"layers[3].value_scale", layer([](LayerSpec& s) { s.value_scale = 1; })},
  };
}

TEST(Layout, EachFieldAloneChangesTheFingerprintAndIsNamedByDiff) {
  const KvLayout base = LayoutOfAllKinds();
  ASSERT_TRUE(ValidateLayout(base).ok()) << MessageOf(ValidateLayout(base));
  const Fingerprint fingerprint = FingerprintOf(base);
  for (const FieldChange& change : EveryField()) {
    SCOPED_TRACE(change.field);
    KvLayout changed = base;
    change.change(changed);
    EXPECT_NE(FingerprintOf(changed), fingerprint);
    const auto differences = DiffLayouts(base, changed);
    ASSERT_EQ(differences.size(), 1u);
    EXPECT_EQ(differences[0].field, change.field);
    EXPECT_NE(differences[0].left, differences[0].right);
  }
  EXPECT_EQ(FingerprintOf(LayoutOfAllKinds()), fingerprint);
  EXPECT_TRUE(DiffLayouts(base, LayoutOfAllKinds()).empty());
}

TEST(Layout, DiffStopsAtItsLimit) {
  const KvLayout left = SmallLayout(40);
  KvLayout right = left;
  for (LayerSpec& layer : right.layers) layer.kv_heads = 3;
  EXPECT_EQ(DiffLayouts(left, right).size(), 16u);
  EXPECT_EQ(DiffLayouts(left, right, 3).size(), 3u);
  EXPECT_EQ(DiffLayouts(left, right, 1)[0].field, "layers[0].kv_heads");
  EXPECT_EQ(DiffLayouts(left, right, 1)[0].right, "3");
}

TEST(Layout, EncodingRoundTrips) {
  for (const KvLayout& layout : {LayoutOfAllKinds(), SmallLayout()}) {
    const auto decoded = DecodeLayout(EncodeLayout(layout));
    ASSERT_TRUE(decoded.ok()) << MessageOf(decoded.status());
    EXPECT_EQ(*decoded, layout);
    EXPECT_EQ(EncodeLayout(*decoded), EncodeLayout(layout));
  }
}

TEST(Layout, DecodingAcceptsOnlyWhatEncodingGives) {
  const std::string good = EncodeLayout(LayoutOfAllKinds());
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(DecodeLayout(good.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(DecodeLayout(good + '\0').ok());
  const unsigned seed = 20240607;
  std::mt19937 random(seed);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < changes; ++i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    const auto decoded = DecodeLayout(bytes);
    if (decoded.ok()) {
      EXPECT_EQ(EncodeLayout(*decoded), bytes) << "seed " << seed << " round " << round;
    } else {
      EXPECT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

TEST(Layout, JsonRoundTripsToTheSameBits) {
  KvLayout layout = LayoutOfAllKinds();
  layout.rope.inv_freq = {0.1f, -0.0f, 1.17549435e-38f, 3.0e38f};
  layout.layers.insert(layout.layers.end(), 5, layout.layers[0]);
  const std::string json = LayoutToJson(layout);
  const auto read = LayoutFromJson(json);
  ASSERT_TRUE(read.ok()) << MessageOf(read.status()) << json;
  EXPECT_EQ(FingerprintOf(*read), FingerprintOf(layout)) << json;
  EXPECT_THAT(json, HasSubstr("\"repeat\": 5"));
  EXPECT_THAT(json, HasSubstr("0.1,")) << "floats are written with the fewest digits";
}

TEST(Layout, JsonErrorsNameTheField) {
  const std::string good = LayoutToJson(SmallLayout());
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  const struct {
    std::string json;
    std::string message;
  } cases[] = {
      {"", "parse error"},
      {"[]", "layout: \"[]\" is not an object"},
      {"{\"model\": ", "parse error"},
      {replaced("\"model\"", "\"modell\""), "model: is missing"},
      {replaced("\"kv_heads\"", "\"kv_head\""), "layers[0]: unknown key \"kv_head\""},
      {replaced("\"chunk_tokens\": 64", "\"chunk_tokens\": 64.0"), "chunk_tokens: \"64.0\" is not"},
      {replaced("\"chunk_tokens\": 64", "\"chunk_tokens\": -1"), "chunk_tokens: \"-1\" is not"},
      {replaced("\"chunk_tokens\": 64", "\"chunk_tokens\": 4294967296"), "is too large"},
      {replaced("\"chunk_tokens\": 64", "\"chunk_tokens\": 8"), "chunk_tokens: 8 is not in"},
      {replaced("\"float16\"", "\"half\""), "layers[0].dtype: \"half\" is none of float32,"},
      {replaced("\"halves\"", "3"), "rope.pairing: \"3\" is not a text"},
      {replaced("\"repeat\": 4", "\"repeat\": 0"), "layers[0].repeat"},
      {replaced("\"repeat\": 4", "\"repeat\": 1025"), "more than 1024 layers"},
      {replaced("\"repeat\": 4", "\"repeat\": 4, \"kv_heads\": 3"), "kv_heads\" is given twice"},
      {replaced("\"small\"", "\"\\ud800\""), "parse error"},
  };
  for (const auto& test : cases) {
    const auto read = LayoutFromJson(test.json);
    ASSERT_FALSE(read.ok()) << test.json;
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(MessageOf(read.status()), HasSubstr(test.message)) << test.json;
  }
}

TEST(Layout, NamesAreTheFieldsTerms) {
  EXPECT_EQ(NameOf(DType::kBFloat16), "bfloat16");
  EXPECT_EQ(NameOf(DType::kFp8E4M3), "fp8_e4m3");
  EXPECT_EQ(NameOf(LayerKind::kLowRank), "low_rank");
  EXPECT_EQ(NameOf(ScaleKind::kPerTokenHead), "per_token_head");
  EXPECT_EQ(NameOf(static_cast<RopePairing>(9)), "unknown");
}

}  // namespace
}  // namespace turnkeep
