// The KV of the engine's cache as Turnkeep sees it: its layout, and where its planes lie.
#pragma once

#include <cstdint>

#include "core/layout.h"
#include "gpu_tier/page_mover_planes.h"
#include "llama/paged_kv_cache.h"

namespace turnkeep::llama {

class Engine;

// The layout of the KV of `engine`'s model in a cache of these options.
KvLayout LayoutOf(const Engine& engine, const PagedKvCache::Options& cache, uint32_t chunk_tokens);

// What a page mover needs to know of the sequence's pages as they are now.
PageMoverOptions MoverOptionsOf(const Engine& engine, const KvLayout& layout,
                                const Sequence& sequence);

}  // namespace turnkeep::llama
