// Layouts from bytes and from JSON: refused, or valid and the same after another round.
#include "core/layout.h"
#include "fuzz/fuzz_target.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

// What a decoder gave must be usable everywhere.
void Use(const KvLayout& layout) {
  TK_CHECK(ValidateLayout(layout).ok());
  for (const uint32_t tokens : {1u, layout.chunk_tokens}) {
    const ChunkGeometry geometry = GeometryOf(layout, tokens);
    TK_CHECK(geometry.image_bytes >= geometry.payload_bytes + geometry.header_bytes);
    TK_CHECK(geometry.slot_bytes >= geometry.image_bytes);
  }
  const auto from_json = LayoutFromJson(LayoutToJson(layout));
  TK_CHECK(from_json.ok());
  TK_CHECK(FingerprintOf(*from_json) == FingerprintOf(layout));
  TK_CHECK(DiffLayouts(layout, *from_json).empty());
}

void Run(std::span<const std::byte> input) {
  const std::string_view text = TextOf(input);
  if (text.size() > (1 << 16)) return;
  if (const auto layout = DecodeLayout(text); layout.ok()) {
    TK_CHECK(EncodeLayout(*layout) == text);
    Use(*layout);
  } else {
    TK_CHECK(absl::IsInvalidArgument(layout.status()));
  }
  if (const auto layout = LayoutFromJson(text); layout.ok()) {
    Use(*layout);
    const auto decoded = DecodeLayout(EncodeLayout(*layout));
    TK_CHECK(decoded.ok());
    TK_CHECK(FingerprintOf(*decoded) == FingerprintOf(*layout));
  } else {
    TK_CHECK(absl::IsInvalidArgument(layout.status()));
  }
}

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds;
  for (const LayoutCase& c : StandardLayouts()) {
    if (c.layout.layers.size() < 20) seeds.push_back(EncodeLayout(c.layout));
    seeds.push_back(LayoutToJson(c.layout));
  }
  return seeds;
}

}  // namespace

const FuzzTarget kFuzzTarget = {"layout", Run, Seeds, 12000};

}  // namespace turnkeep::testing
