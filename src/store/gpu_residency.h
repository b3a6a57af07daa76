// What engine processes say that their page pools hold. Advisory: shown with sessions and
// explanations, and never a source of bytes, a reason to skip a save or to drop a copy.
//
// An engine is forgotten when its handle goes, which a server does when the connection or the
// process behind it ends. A report takes the place of the one before.
//
// Thread-safe; nothing here does I/O. Its lock is taken after the store's, or alone.
//
//   std::unique_ptr<GpuEngine> engine = residency.Open(tenant, "vllm", pid);
//   TK_RETURN_IF_ERROR(engine->Report(chunks));
//   for (const auto& other : residency.EnginesOf(tenant)) … other->chunks.contains(id) …
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/synchronization/mutex.h>

#include "core/ids.h"
#include "core/kv_types.h"
#include "store/operations.h"

namespace turnkeep {

class GpuResidency {
 public:
  struct Engine {
    uint32_t tenant = 0;
    std::string name;
    int64_t pid = 0;
    absl::flat_hash_map<ChunkId, uint64_t> chunks;  // bytes
    uint64_t bytes = 0;
  };
  using Engines = std::vector<std::shared_ptr<const Engine>>;

  // This must outlive the handle.
  std::unique_ptr<GpuEngine> Open(uint32_t tenant, std::string name, int64_t pid)
      ABSL_LOCKS_EXCLUDED(mu_);
  // As they reported last; sharers are the table and who looks at it meanwhile.
  Engines EnginesOf(uint32_t tenant) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  class Handle;
  mutable absl::Mutex mu_;
  uint64_t last_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<uint64_t, std::shared_ptr<const Engine>> engines_ ABSL_GUARDED_BY(mu_);
};

}  // namespace turnkeep
