// One running save and one running restore, as the store's callers in this process
// hold them: the embedded tickets (embedded.h) and the server (src/api).
//
// Both are owned by the caller. Destroying one abandons it: pins and slots are given
// back as soon as no I/O of it is in flight. Both must be destroyed before the Store.
//
// Thread-safety: const accessors of values fixed at the beginning may be called from
// any thread; the rest as said per method. Callbacks run on a thread of the store or
// inside the call that caused them, never under the store's lock; they may call the
// store but must not block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/digest.h"
#include "core/ids.h"
#include "core/kv_types.h"
#include "core/layout.h"
#include "host_tier/arena.h"

namespace turnkeep {

// A chunk's slot image in the host arena and what it must verify against.
struct ChunkSlot {
  ChunkId id;
  uint64_t epoch = 0;
  Digest root;  // of the header; zero for a chunk that is being saved
  SlotRef slot;
  std::span<std::byte> memory;  // the slot's image: header and layer pages
  uint32_t token_count = 0;     // fixes the geometry
  // GeometryOf(layout, token_count); lives as long as the store.
  const ChunkGeometry* geometry = nullptr;
};

// An engine process, as far as its page pool goes. Destroying it forgets what it holds.
class GpuEngine {
 public:
  virtual ~GpuEngine() = default;
  // In place of the report before. InvalidArgument: more than kMaxGpuChunks. Any thread.
  virtual absl::Status Report(std::span<const GpuChunk> chunks) = 0;
};

class SaveOperation {
 public:
  virtual ~SaveOperation() = default;

  virtual const KvLayout& layout() const = 0;
  virtual uint64_t known_tokens() const = 0;
  virtual uint64_t accepted_tokens() const = 0;
  virtual std::span<const ChunkToSave> chunks() const = 0;
  // Parallel to chunks(). The saver writes the layer pages and, at
  // kLayerDigestOffset, their digests bound to (id, layer, epoch).
  virtual std::span<const ChunkSlot> slots() const = 0;

  // Publishes the chunks and commits the session. `done` is called exactly once, also
  // when the operation is destroyed or the store closes before (Unavailable). Call once.
  virtual void Commit(std::function<void(absl::StatusOr<CommitResult>)> done) = 0;
};

struct RestoreProgress {
  uint32_t layers_ready = 0;  // layers [0, layers_ready) of all valid tokens are in the arena
  uint64_t valid_tokens = 0;  // leading tokens that are, or may still be, restored
  bool finished = false;      // no layer is awaited any more
  std::string miss_reason;    // why the rest is a miss
};

class RestoreOperation {
 public:
  virtual ~RestoreOperation() = default;

  virtual const KvLayout& layout() const = 0;
  virtual uint64_t generation() const = 0;
  virtual std::span<const RestoredSpan> spans() const = 0;
  // Parallel to spans().
  virtual std::span<const ChunkSlot> slots() const = 0;

  virtual RestoreProgress progress() const = 0;
  // Calls `observer` with the progress now and after every change; after `finished` only
  // when damage shrinks the valid tokens. Call at most once.
  virtual void Observe(std::function<void(const RestoreProgress&)> observer) = 0;
  // Gives up what has not arrived: the valid tokens end at the first chunk that misses
  // `layer`. Used when a deadline passes.
  virtual void CutAtLayer(uint32_t layer) = 0;
  // The caller found that `layer` (or kHeaderLayer) of spans()[span] does not verify.
  // The store checks for itself, drops the host copy if so, and shrinks the valid tokens.
  virtual void ReportDamage(size_t span, uint32_t layer) = 0;
};

}  // namespace turnkeep
