// The device side that the bridges of one engine share: the device, the lanes that restores and
// saves run on, the pool of chunks that stay hot between turns, and what was learned of their
// speed.
//
// Not thread-safe; one owner, which outlives the bridges.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "core/layout.h"
#include "core/units.h"
#include "gpu_tier/page_pool.h"
#include "gpu_tier/pipeline_lanes.h"
#include "gpu_tier/pipeline_rates.h"
#include "gpu_tier/pooled_contexts.h"
#include "llama/device_pages.h"
#include "llama/kv_side.h"

namespace turnkeep {
class KvStore;
}

namespace turnkeep::llama {

class KvDevice {
 public:
  struct Options {
    uint64_t pool_bytes = 0;             // of the page pool; 0: none
    uint64_t buffer_bytes = 128 * kMiB;  // of all lanes
    uint64_t restore_bytes = 32 * kMiB;  // most that one restore's read buffer takes
  };
  // Pages in host memory.
  KvDevice() : KvDevice(Options{}) {}
  explicit KvDevice(const Options& options)
      : KvDevice(options, HostSide({.memory_bytes = options.pool_bytes + options.buffer_bytes})) {}
  KvDevice(const Options& options, KvSide side)
      : options_(options),
        side_(std::move(side)),
        lanes_(*side_.device, {.budget_bytes = options.buffer_bytes}) {
    if (side_.attention != nullptr) pages_ = std::make_unique<DevicePages>(&side_);
  }

  const Options& options() const { return options_; }
  Device& device() { return *side_.device; }
  const KvSide& side() const { return side_; }
  // Where caches of this device have their pages; null: in host memory.
  DevicePages* pages() { return pages_.get(); }
  PipelineLanes& lanes() { return lanes_; }
  PipelineRates& rates() { return rates_; }
  // Null when there is none. Its slots hold chunks of the first layout that was asked for; larger
  // ones are not pooled, and smaller ones leave room.
  PagePool* PoolFor(const KvLayout& layout);
  // What is known of the contexts in the pool. Another store's (another tenant's) is forgotten.
  PooledContexts& ContextsOf(const KvStore* store);

 private:
  const Options options_;
  KvSide side_;  // before what lives on it
  std::unique_ptr<DevicePages> pages_;
  PipelineLanes lanes_;
  std::unique_ptr<PagePool> pool_;
  bool pool_made_ = false;
  const KvStore* store_ = nullptr;  // whose contexts_ are; never followed
  PooledContexts contexts_;
  PipelineRates rates_;
};

}  // namespace turnkeep::llama
