// What the tests of restores and saves share: an engine's cache of one context, whose every byte is
// known, and a store, a device and a compute stream around it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/status.h"
#include "gpu_tier/host_device.h"
#include "gpu_tier/layer_restore.h"
#include "gpu_tier/layer_save.h"
#include "store/store.h"
#include "testing/hooked_kv_store.h"
#include "testing/layouts.h"

namespace turnkeep::testing {

inline constexpr uint32_t kLayers = 5;
inline constexpr uint64_t kMaxTokens = 1024;

inline std::vector<uint32_t> Tokens(uint64_t seed, uint64_t count) {
  std::mt19937_64 random(seed);
  std::vector<uint32_t> tokens(count);
  for (uint32_t& token : tokens) token = static_cast<uint32_t>(random() % 32'000);
  return tokens;
}

// The engine's cache of one context: for each layer rows of tokens, K beside V.
class EngineCache : public LayerMover {
 public:
  explicit EngineCache(const KvLayout& layout) {
    for (const LayerSpec& layer : layout.layers) {
      key_bytes_.push_back(layer.kv_heads * layer.key_dim * DTypeBytes(layer.dtype));
      rows_.emplace_back(kMaxTokens * 2 * key_bytes_.back());
    }
  }
  std::byte* Row(uint32_t layer, uint64_t token) {
    return rows_[layer].data() + token * 2 * key_bytes_[layer];
  }
  // What layer, token and `salt` give; as a kernel would write it.
  void Compute(uint32_t layer, uint64_t first, uint64_t end, uint64_t salt) {
    for (uint64_t token = first; token < end; ++token)
      for (uint64_t i = 0; i < 2 * key_bytes_[layer]; ++i)
        Row(layer, token)[i] = Expected(layer, token, i, salt);
  }
  // The first byte that is not what Compute would give; empty if all are.
  std::string FirstWrong(uint32_t layer, uint64_t end, uint64_t salt) {
    for (uint64_t token = 0; token < end; ++token)
      for (uint64_t i = 0; i < 2 * key_bytes_[layer]; ++i)
        if (Row(layer, token)[i] != Expected(layer, token, i, salt))
          return fmt::format("layer {} token {} byte {}", layer, token, i);
    return "";
  }
  // Scattered pages whose keys were not stored for their place plus `offset`, from now on.
  void ExpectPositions(uint64_t offset) { expected_offset_ = offset; }
  uint32_t wrong_positions() const { return wrong_positions_; }
  void Clear() {
    for (auto& rows : rows_) std::fill(rows.begin(), rows.end(), std::byte{0xEE});
  }

  absl::Status Scatter(DeviceStream& stream, uint32_t layer,
                       std::span<const StagedPage> pages) override {
    for (const StagedPage& page : pages)
      if (page.stored_position != page.token_begin + expected_offset_) ++wrong_positions_;
    return Move(stream, layer, pages, [](std::byte* row, std::byte* staged, uint64_t bytes) {
      std::memcpy(row, staged, bytes);
    });
  }
  absl::Status Gather(DeviceStream& stream, uint32_t layer,
                      std::span<const StagedPage> pages) override {
    return Move(stream, layer, pages, [](std::byte* row, std::byte* staged, uint64_t bytes) {
      std::memcpy(staged, row, bytes);
    });
  }

 private:
  static std::byte Expected(uint32_t layer, uint64_t token, uint64_t i, uint64_t salt) {
    return static_cast<std::byte>((layer * 131 + token * 31 + i * 7 + salt * 1009) >> 1);
  }
  template <typename Copy>
  absl::Status Move(DeviceStream& stream, uint32_t layer, std::span<const StagedPage> pages,
                    Copy copy) {
    return stream.Launch(
        [this, layer, copy, all = std::vector<StagedPage>(pages.begin(), pages.end())] {
          const uint64_t bytes = key_bytes_[layer];
          for (const StagedPage& page : all) {
            for (uint32_t i = 0; i < page.token_count; ++i) {
              const uint64_t at = page.first_in_chunk + i;
              copy(Row(layer, page.token_begin + i), page.data + at * bytes, bytes);
              copy(Row(layer, page.token_begin + i) + bytes,
                   page.data + (page.chunk_token_count + at) * bytes, bytes);
            }
          }
        });
  }

  std::vector<uint64_t> key_bytes_;
  std::vector<std::vector<std::byte>> rows_;
  uint64_t expected_offset_ = 0;
  std::atomic<uint32_t> wrong_positions_ = 0;
};

// A store, a device and an engine of one context.
class PipelineRig {
 public:
  explicit PipelineRig(HostDeviceOptions device)
      : layout_(SmallLayout(kLayers, 16)), device_(device), cache_(layout_) {
    store_ = Store::Open({.host_bytes = 64 * kMiB, .host_segment_bytes = 4 * kMiB}).value();
    inner_ = store_->ForTenant("test").value();
    hooked_ = std::make_unique<HookedKvStore>(inner_.get());
    fingerprint_ = hooked_->RegisterLayout(layout_).value();
    compute_ = device_.NewStream().value();
  }

  // Computes and saves tokens [first, tokens.size()); what is known already stays in the cache.
  absl::StatusOr<CommitResult> Save(const std::vector<uint32_t>& tokens, uint64_t generation,
                                    uint64_t salt, const LayerSaveOptions& options) {
    TK_ASSIGN_OR_RETURN(auto ticket,
                        hooked_->BeginSave({.session = "s",
                                            .expected_generation = generation,
                                            .layout = fingerprint_,
                                            .prompt = {.tokens = tokens},
                                            .position_offset = options.position_offset}));
    TK_ASSIGN_OR_RETURN(auto save,
                        LayerSave::Start(device_, layout_, std::move(ticket), cache_, options));
    const uint64_t end = tokens.size();
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      TK_RETURN_IF_ERROR(compute_->Launch([=, this] { cache_.Compute(layer, 0, end, salt); }));
      TK_RETURN_IF_ERROR(save->LayerComputed(layer, *compute_));
    }
    TK_RETURN_IF_ERROR(save->LetReuse(*compute_));
    // The next job: writes the same pages at once.
    TK_RETURN_IF_ERROR(compute_->Launch([this] { cache_.Clear(); }));
    auto committed = save->Commit(absl::Seconds(60));
    TK_RETURN_IF_ERROR(compute_->Synchronize());
    return committed;
  }

  struct Restored {
    uint64_t tokens = 0;
    std::string wrong;  // first wrong byte that a layer's kernel read
    LayerRestoreReport report;
    uint64_t pooled_tokens = 0;
  };
  absl::StatusOr<Restored> Restore(const std::vector<uint32_t>& tokens, uint64_t salt,
                                   const LayerRestoreOptions& options) {
    TK_ASSIGN_OR_RETURN(
        auto ticket, hooked_->BeginRestore({.prompt = {.tokens = tokens}, .layout = fingerprint_}));
    TK_ASSIGN_OR_RETURN(auto restore,
                        LayerRestore::Start(device_, layout_, std::move(ticket), options));
    return Follow(std::move(restore), salt);
  }
  // The same from the pool alone.
  absl::StatusOr<Restored> RestorePooled(const ContextSpans& spans, uint64_t salt,
                                         const LayerRestoreOptions& options) {
    TK_ASSIGN_OR_RETURN(auto restore, LayerRestore::StartPooled(device_, layout_, spans, options));
    return Follow(std::move(restore), salt);
  }
  absl::StatusOr<Restored> Follow(std::unique_ptr<LayerRestore> restore, uint64_t salt) {
    TK_RETURN_IF_ERROR(restore->Bind(cache_));
    Restored out;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      TK_ASSIGN_OR_RETURN(out.tokens, restore->WaitLayer(layer, *compute_));
      TK_RETURN_IF_ERROR(compute_->Launch([=, &out, this] {
        if (out.wrong.empty()) out.wrong = cache_.FirstWrong(layer, out.tokens, salt);
      }));
      // The kernel above reads out.tokens.
      TK_RETURN_IF_ERROR(compute_->Synchronize());
    }
    TK_ASSIGN_OR_RETURN(out.report, restore->Report());
    for (const RestoredSpan& span : restore->spans())
      if (span.tier == Tier::kGpu) out.pooled_tokens += span.token_count;
    return out;
  }

  HookedKvStore& store() { return *hooked_; }
  EngineCache& cache() { return cache_; }
  HostDevice& device() { return device_; }
  const KvLayout& layout() const { return layout_; }
  const Fingerprint& fingerprint() const { return fingerprint_; }

 private:
  const KvLayout layout_;
  HostDevice device_;
  EngineCache cache_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<KvStore> inner_;
  std::unique_ptr<HookedKvStore> hooked_;
  Fingerprint fingerprint_;
  std::unique_ptr<DeviceStream> compute_;
};

// Pages are 2 KiB: a few in a slot, a few slots.
inline constexpr LayerSaveOptions kSmallSave{.buffer_bytes = 12'288, .piece_bytes = 4096};
inline constexpr LayerRestoreOptions kSmallRestore{.buffer_bytes = 12'288, .piece_bytes = 4096};

}  // namespace turnkeep::testing
