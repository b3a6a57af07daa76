// The forward pass: from tokens and a paged KV cache to logits.
//
// A batch is a list of rows, each one token of one sequence at one position: prefill is
// consecutive positions of one sequence, decode is one row a sequence. A row's KV and logits
// depend on its token and on what its sequence's cache holds before it, and on nothing
// else: bit for bit the same in any batch, any split of a prompt, any thread count.
//
// Thread-safety: one Forward at a time.
//
//   TK_ASSIGN_OR_RETURN(auto engine, Engine::Create(model, {.threads = 2}));
//   TK_ASSIGN_OR_RETURN(auto cache, engine->NewCache(…));
//   Sequence sequence(cache.get());
//   std::vector<float> logits(model->config().vocab);
//   TK_RETURN_IF_ERROR(engine->Prefill(&sequence, tokens, 0, nullptr, logits));
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/attention_cpu.h"
#include "kernels/rope.h"
#include "llama/gemm.h"
#include "llama/model.h"
#include "llama/paged_kv_cache.h"
#include "llama/vector_math.h"

namespace turnkeep::llama {

// Told where a forward pass is. Called on the thread that runs Forward.
class LayerObserver {
 public:
  virtual ~LayerObserver() = default;
  // Before anything of `layer` is read from the cache. An error ends the pass, and
  // Forward returns it; the rows' KV of earlier layers stays written.
  virtual absl::Status BeforeLayer(uint32_t layer) = 0;
  // The KV of all rows is in the cache for `layer`, and the layer is done.
  virtual void AfterLayer(uint32_t layer) = 0;
};

class Engine {
 public:
  struct Options {
    uint32_t threads = 2;  // 1..kMaxThreads
    // For tests only: rotated keys stay as they were stored when their tokens move, as if positions
    // were baked into the cache. What a truncation leaves is then wrong.
    bool bake_positions = false;
  };
  struct Row {
    const Sequence* sequence = nullptr;
    uint32_t token = 0;
    uint32_t position = 0;
  };
  struct CacheOptions {
    DType dtype = DType::kFloat32;
    bool keep_raw_keys = false;
    uint32_t page_tokens = 16;
    uint32_t token_count = 0;      // of all sequences; 0: the model's context
    DevicePages* pages = nullptr;  // null: in host memory
  };

  // `model` outlives the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const Model* model, const Options& options);

  const Model& model() const { return *model_; }
  const Rope& rope() const { return rope_; }
  uint32_t tile_tokens() const { return gemm_.tile_tokens(); }

  absl::StatusOr<std::unique_ptr<PagedKvCache>> NewCache(const CacheOptions& options) const;

  // Writes the KV of all rows and gives the logits of the rows in `logit_rows`
  // ([logit_rows.size(), vocab]). Rows of one sequence come in the order of their
  // positions, and their sequences have room for them (FailedPrecondition if not). Tokens
  // outside the vocabulary and positions outside the context are InvalidArgument. Blocks.
  // Of a cache whose pages are a device's: rows are consecutive tokens of one sequence, else
  // InvalidArgument; errors are also the device's.
  absl::Status Forward(std::span<const Row> rows, LayerObserver* observer,
                       std::span<const uint32_t> logit_rows, std::span<float> logits);

  // Forward of consecutive tokens of one sequence from index `first` on, making room for
  // them. Gives the logits of the last token.
  absl::Status Prefill(Sequence* sequence, std::span<const uint32_t> tokens, uint64_t first,
                       LayerObserver* observer, std::span<float> logits);

  // One decode step of many sequences, one row each, of one float32 cache: Forward with the
  // attention of `plan`, whose rows are `rows`. Equal to Forward but for the order of float32 sums.
  // At most kMaxBatchRows rows, of a cache in host memory. Gives the logits of all rows.
  absl::Status Decode(std::span<const Row> rows, const AttentionPlan& plan,
                      std::span<float> logits);

  // Takes tokens [drop_begin, drop_end) out of a context of `token_count`; what follows
  // moves down and its keys get their new positions (raw keys: rotated anew; rotated
  // keys: shifted by the difference).
  // An error is the device's; the sequence must then be given up.
  absl::Status Truncate(Sequence* sequence, uint64_t token_count, uint64_t drop_begin,
                        uint64_t drop_end) const;

  // How keys of a cache of these options are rotated and stored.
  RopeSpec RopeOf(const PagedKvCache::Options& cache) const;
  // For tests; see Options.
  bool bake_positions() const { return bake_positions_; }

  // Rows that go through a layer's matrices together; bounds the scratch memory.
  static constexpr size_t kMaxBatchRows = 256;
  // What attention plans for a cache are made for.
  AttentionShape ShapeOf(const PagedKvCache& cache) const;

 private:
  Engine(const Model* model, const Options& options);
  absl::Status Validate(std::span<const Row> rows) const;
  // Of a pass over a cache whose pages are a device's.
  absl::Status BeginDevicePass(std::span<const Row> rows, DevicePages* pages) const;
  absl::Status RunLayer(uint32_t layer, std::span<const Row> rows, float* x);
  void Project(uint32_t layer, size_t count, const float* x);
  void StoreKv(uint32_t layer, const Row& row, float* key, const float* value, float* query);
  absl::Status AttendOnDevice(uint32_t layer, std::span<const Row> rows, DevicePages* pages);
  // The key of `token` that attention reads, of the raw one as it is stored.
  void RotateRaw(const PagedKvCache::Options& cache, uint64_t token, const std::byte* raw,
                 std::byte* key) const;
  void RunAttention(uint32_t layer, std::span<const Row> rows);
  void RunPlan(uint32_t layer, const PagedKvCache& cache);
  void RunFeedForward(uint32_t layer, size_t count, float* x);

  const Model* model_;
  const bool bake_positions_;
  ThreadPool pool_;
  Gemm gemm_;
  Rope rope_;
  // Raw keys of every position of the context, rotated by src/kernels so that a restore gives the
  // same bits.
  const Rotation raw_rotation_;
  std::vector<std::vector<float>> angles_;  // of every position of the context

  CpuAttention attention_;
  const AttentionPlan* plan_ = nullptr;  // during Decode

  // Scratch of one batch, [rows, …].
  std::vector<float> normed_, query_, key_, value_, attended_, projected_, gate_, up_, lse_;
  std::vector<std::vector<float>> scores_;  // of each worker, [context]
};

// The token with the highest logit; the lowest id of equals.
uint32_t Greedy(std::span<const float> logits);

}  // namespace turnkeep::llama
