#include "llama/kv_device.h"

#include <utility>

#include "gpu_tier/pooled_chunks.h"

namespace turnkeep::llama {

PagePool* KvDevice::PoolFor(const KvLayout& layout) {
  if (!pool_made_ && options_.pool_bytes > 0) {
    pool_made_ = true;
    auto pool =
        PagePool::Make(device(), {.budget_bytes = options_.pool_bytes,
                                  .slot_bytes = PooledChunkBytes(layout, layout.chunk_tokens)});
    if (pool.ok()) pool_ = *std::move(pool);  // else not one chunk fits: as without a pool
  }
  return pool_.get();
}

PooledContexts& KvDevice::ContextsOf(const KvStore* store) {
  if (store_ != store) contexts_ = PooledContexts();
  store_ = store;
  return contexts_;
}

}  // namespace turnkeep::llama
