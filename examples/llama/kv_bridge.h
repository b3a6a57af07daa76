// Between the engine and a KvStore: restores a context's KV layer by layer while the
// forward pass runs (LayerRestore), and saves every layer as it finishes (LayerSave). The engine
// computes on its own threads, so its side of the device is a stream that only waits; where the
// pages are a device's (DevicePages), it is the stream that attention runs on.
//
// A turn whose tokens are all in the device's page pool is restored from there, and the store first
// hears of it with the save that follows, which touches what is used. Where the store is away, or
// has less, the pool's tokens are used as well (PooledContexts tells which may be).
//
// Whatever the store does, the engine's output stays the same: what is missing, damaged,
// late or lost with the daemon is computed. A save that fails is reported to
// Options::log and changes nothing else.
//
// Thread-safety: one call at a time. The store and the engine outlive the bridge, and a
// sequence given to Prefill or Save stays unchanged until Finish (Prefill and Save
// call it first).
//
//   KvBridge bridge(store, engine, {.session = "alice"});
//   TK_ASSIGN_OR_RETURN(auto report, bridge.Prefill(&sequence, context, logits));
//   … decode, appending to context …
//   bridge.Save(sequence, context_with_kv);  // the answer is kept as well
//   bridge.Finish();
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "core/kv_store.h"
#include "core/layout.h"
#include "gpu_tier/layer_mover.h"
#include "gpu_tier/layer_restore.h"
#include "gpu_tier/layer_save.h"
#include "llama/engine.h"
#include "llama/kv_device.h"
#include "llama/kv_planes.h"

namespace turnkeep::llama {

class KvBridge {
 public:
  struct Options {
    std::string session;
    uint32_t chunk_tokens = kDefaultChunkTokens;
    // Layers that are later than this after the restore began are computed instead.
    absl::Duration restore_deadline = absl::Seconds(30);
    absl::Duration commit_deadline = absl::Seconds(30);
    // How long a save may wait for room.
    absl::Duration space_deadline = absl::Seconds(2);
    // Shared with other bridges; outlives this. Null: one of its own, without a page pool.
    KvDevice* device = nullptr;
    // Gets one line for every failure that was worked around.
    std::function<void(const std::string&)> log = [](const std::string&) {};
  };
  struct Report {
    uint64_t pooled_tokens = 0;  // were in the page pool
    uint64_t restored_host_tokens = 0;
    uint64_t restored_disk_tokens = 0;
    uint64_t computed_tokens = 0;
    uint32_t restarts = 0;    // passes begun again because restored tokens were lost
    std::string miss_reason;  // why not all but the last token were restored
    // Of the last pass: waits for layers, and the memory of the read buffer. Predicted before the
    // restore from what earlier ones took (CachedAttention §3.2); unset at first.
    double stall_s = 0;
    uint64_t buffer_bytes = 0;
    std::optional<PipelineRates::Prediction> predicted;
  };

  KvBridge(KvStore* store, Engine* engine, Options options);
  // Waits for a running save.
  ~KvBridge();

  // Brings the KV of `context` into `sequence` (what was in it does not count) and gives
  // the logits of the last token. The save of `context` runs on after the return. Errors
  // are the engine's own (InvalidArgument, ResourceExhausted); the store's never are.
  absl::StatusOr<Report> Prefill(Sequence* sequence, std::span<const uint32_t> context,
                                 std::span<float> logits);

  // Begins to save `context`, whose KV is all in `sequence`, as the session's state.
  void Save(const Sequence& sequence, std::span<const uint32_t> context);

  // Waits for the running save, if there is one, and tells the store what the page pool holds. The
  // error of a save that failed.
  absl::Status Finish();

  // Takes tokens [drop_begin, drop_end) out of the session and out of `sequence`, which
  // holds `token_count`. The sequence is always truncated; when the store could not do the
  // same, the session is not saved until the next Prefill, since the truncated KV
  // would otherwise pass for KV of the shorter context. An error of the engine's (a device's) is
  // returned as well.
  absl::Status Truncate(Sequence* sequence, uint64_t token_count, uint64_t drop_begin,
                        uint64_t drop_end);

  // The session's generation as last seen; 0 when there is none.
  uint64_t generation() const { return generation_; }

 private:
  class LayerPass;
  // A save on its way, with what it reads from.
  struct Saving {
    std::unique_ptr<LayerMover> mover;
    std::unique_ptr<LayerSave> save;
    std::vector<uint32_t> tokens;
  };

  // The turn's layout, and a compute stream.
  absl::Status BeginTurn(const Sequence& sequence);
  // Makes the layout known and learns the session's generation.
  absl::Status Greet();
  // What the page pool has of the context, where that may be used without asking the store.
  std::optional<PooledContexts::Found> FindPooled(std::span<const uint32_t> context) const;
  // Restores from the pool and the store, whatever has more.
  void BeginRestoring(const Sequence& sequence, std::span<const uint32_t> context);
  void RestorePooled(const Sequence& sequence, const PooledContexts::Found& found,
                     uint64_t context_tokens);
  absl::StatusOr<std::unique_ptr<LayerMover>> MakeMover(const Sequence& sequence) const;
  LayerRestoreOptions RestoreOptions(const ContextSpans& spans, uint64_t context_tokens);
  absl::Status StartRestore(const Sequence& sequence, std::unique_ptr<RestoreTicket> ticket,
                            uint64_t context_tokens);
  absl::Status StartSave(const Sequence& sequence, std::span<const uint32_t> context,
                         std::unique_ptr<SaveTicket> ticket);
  void EndRestore(uint64_t tokens, Report* report);
  // What the next restore of these tokens will take, as far as is known.
  std::optional<PipelineRates::Prediction> PredictRestore(const ContextSpans& spans,
                                                          uint64_t context_tokens) const;
  void BeginCommit();
  // Tells the store what the page pool holds now.
  void ReportResidency();
  // Null: an error, which is logged. `held` stays in the page pool meanwhile.
  std::unique_ptr<RestoreTicket> BeginLoad(std::span<const uint32_t> context,
                                           std::span<const ChunkId> held);
  std::unique_ptr<RestoreTicket> BeginRestore(const std::string& session,
                                              std::span<const uint32_t> context,
                                              std::span<const ChunkId> held);
  void BeginSave(const Sequence& sequence, std::span<const uint32_t> context);
  void SaveFailed(const absl::Status& status);
  absl::Status RunPasses(Sequence* sequence, std::span<const uint32_t> context,
                         std::span<float> logits, uint64_t* start, Report* report);

  KvStore* const store_;
  Engine* const engine_;
  const Options options_;
  std::unique_ptr<KvDevice> own_device_;  // before all that runs on it
  KvDevice* const device_;
  std::unique_ptr<DeviceStream> own_compute_;  // where the pages are in host memory
  DeviceStream* compute_ = nullptr;            // that, or the pages'
  KvLayout kv_layout_;
  Fingerprint layout_;   // of kv_layout_
  bool usable_ = false;  // the store answered when this turn began
  uint64_t generation_ = 0;
  uint64_t saved_tokens_ = 0;  // of this turn's context, known to be the session's content
  ContextSpans spans_;         // of this turn's context, as far as the store has told
  std::string miss_reason_;
  std::unique_ptr<LayerMover> restore_mover_;
  std::unique_ptr<LayerRestore> restore_;  // during Prefill
  std::optional<PipelineRates::Prediction> predicted_;
  std::optional<Saving> saving_;  // until Finish
};

}  // namespace turnkeep::llama
