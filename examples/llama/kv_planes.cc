#include "llama/kv_planes.h"

#include "llama/engine.h"

namespace turnkeep::llama {

namespace {

PagedPlane PlaneOf(PagedKvCache* cache, Plane plane, uint32_t layer) {
  const PagedKvCache::Options& o = cache->options();
  const uint64_t token = uint64_t{o.kv_heads} * o.head_dim;
  return {.base = cache->Page(plane, layer, 0),
          .element_bytes = DTypeBytes(o.dtype),
          .page_tokens = o.page_tokens,
          .heads = o.kv_heads,
          .dim = o.head_dim,
          .page_stride = token * o.page_tokens,
          .token_stride = token,
          .head_stride = o.head_dim,
          .block_dim = o.head_dim};
}

}  // namespace

KvLayout LayoutOf(const Engine& engine, const PagedKvCache::Options& cache, uint32_t chunk_tokens) {
  KvLayout layout;
  layout.model = engine.model().name();
  layout.weights_revision = engine.model().revision();
  layout.chunk_tokens = chunk_tokens;
  layout.rope = engine.RopeOf(cache);
  layout.layers.assign(cache.layers, LayerSpec::Full(cache.kv_heads, cache.head_dim, cache.dtype));
  return layout;
}

PageMoverOptions MoverOptionsOf(const Engine& engine, const KvLayout& layout,
                                const Sequence& sequence) {
  PagedKvCache* const cache = sequence.cache();
  const bool raw = cache->options().keep_raw_keys;
  PageMoverOptions options{.layout = layout, .pages = sequence.table().pages};
  if (engine.bake_positions() && !raw) options.layout.rope.pairing = RopePairing::kNone;
  for (uint32_t layer = 0; layer < cache->options().layers; ++layer) {
    EngineLayer planes{.planes = {.keys = PlaneOf(cache, Plane::kKeys, layer),
                                  .values = PlaneOf(cache, Plane::kValues, layer)}};
    if (raw) planes.raw_keys = PlaneOf(cache, Plane::kRawKeys, layer);
    options.layers.push_back(planes);
  }
  return options;
}

}  // namespace turnkeep::llama
