// Saves and restores layer by layer through an embedded store: every byte of the engine's cache,
// under randomised delays, with small buffers, and with what goes wrong on the way.
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/status.h"
#include "gpu_tier/host_device.h"
#include "gpu_tier/layer_restore.h"
#include "gpu_tier/layer_save.h"
#include "store/store.h"
#include "testing/hooked_kv_store.h"
#include "testing/layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

constexpr uint32_t kLayers = 5;
constexpr uint64_t kMaxTokens = 1024;

#if defined(__SANITIZE_THREAD__)
constexpr bool kRacesAreErrors = true;
#else
constexpr bool kRacesAreErrors = false;
#endif

std::vector<uint32_t> Tokens(uint64_t seed, uint64_t count) {
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
  void Clear() {
    for (auto& rows : rows_) std::fill(rows.begin(), rows.end(), std::byte{0xEE});
  }

  absl::Status Scatter(DeviceStream& stream, uint32_t layer,
                       std::span<const StagedPage> pages) override {
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
};

// A store, a device and an engine of one context.
class Bench {
 public:
  explicit Bench(HostDeviceOptions device)
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
    TK_ASSIGN_OR_RETURN(auto ticket, hooked_->BeginSave({.session = "s",
                                                         .expected_generation = generation,
                                                         .layout = fingerprint_,
                                                         .prompt = {.tokens = tokens}}));
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
  };
  absl::StatusOr<Restored> Restore(const std::vector<uint32_t>& tokens, uint64_t salt,
                                   const LayerRestoreOptions& options) {
    TK_ASSIGN_OR_RETURN(
        auto ticket, hooked_->BeginRestore({.prompt = {.tokens = tokens}, .layout = fingerprint_}));
    TK_ASSIGN_OR_RETURN(auto restore,
                        LayerRestore::Start(device_, layout_, std::move(ticket), options));
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
constexpr LayerSaveOptions kSmallSave{.buffer_bytes = 12'288, .piece_bytes = 4096};
constexpr LayerRestoreOptions kSmallRestore{.buffer_bytes = 12'288, .piece_bytes = 4096};

TEST(LayerPipeline, EveryByteComesBackUnderRandomDelays) {
  constexpr uint64_t kSeed = 77;
  RecordProperty("seed", static_cast<int>(kSeed));
  Bench bench({.max_random_delay = absl::Microseconds(50), .seed = kSeed});
  std::mt19937_64 random(kSeed);
  uint64_t generation = 0;
  for (int round = 0; round < 60; ++round) {
    const auto tokens = Tokens(round, 1 + random() % 300);
    auto saved = bench.Save(tokens, generation, round, kSmallSave);
    ASSERT_TRUE(saved.ok()) << saved.status();
    ASSERT_EQ(saved->token_count, tokens.size());
    generation = saved->generation;
    bench.cache().Clear();
    auto restored = bench.Restore(tokens, round, kSmallRestore);
    ASSERT_TRUE(restored.ok()) << restored.status();
    ASSERT_EQ(restored->tokens, tokens.size()) << restored->report.trouble;
    ASSERT_EQ(restored->wrong, "") << "round " << round;
  }
}

// What the pipeline would do with its waits forgotten: the same rounds must see wrong bytes.
TEST(LayerPipeline, MissingWaitsAreCaughtInBothDirections) {
  if (kRacesAreErrors) GTEST_SKIP() << "races on purpose, which the thread sanitizer refuses";
  Bench good({});
  Bench bad({.max_random_delay = absl::Microseconds(50), .ignore_waits_for_test = true});
  bool save_caught = false;
  bool restore_caught = false;
  uint64_t good_generation = 0;
  uint64_t bad_generation = 0;
  for (int round = 0; round < 200 && !(save_caught && restore_caught); ++round) {
    const auto tokens = Tokens(round, 200);
    good.cache().Clear();
    bad.cache().Clear();
    // Saved without waits, read back by plain copies.
    auto saved = bad.Save(tokens, bad_generation, round, kSmallSave);
    ASSERT_TRUE(saved.ok()) << saved.status();
    bad_generation = saved->generation;
    auto ticket =
        bad.store().BeginRestore({.prompt = {.tokens = tokens}, .layout = bad.fingerprint()});
    ASSERT_TRUE(ticket.ok());
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_EQ((*ticket)->WaitLayer(layer).value(), 200u);
      const auto page = (*ticket)->Page(0, layer);
      good.cache().Compute(layer, 0, 1, round);
      const auto row = page.size() / 32;
      save_caught |= std::memcmp(page.data(), good.cache().Row(layer, 0), row) != 0;
    }
    // Restored without waits; the bytes in the store may be wrong too, so they are made right.
    auto right = good.Save(tokens, good_generation, round, kSmallSave);
    ASSERT_TRUE(right.ok()) << right.status();
    good_generation = right->generation;
    auto source =
        good.store().BeginRestore({.prompt = {.tokens = tokens}, .layout = good.fingerprint()});
    ASSERT_TRUE(source.ok());
    auto restore =
        LayerRestore::Start(bad.device(), bad.layout(), std::move(*source), kSmallRestore);
    ASSERT_TRUE(restore.ok());
    const auto compute = bad.device().NewStream().value();
    bad.cache().Clear();
    ASSERT_TRUE((*restore)->Bind(bad.cache()).ok());
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_EQ((*restore)->WaitLayer(layer, *compute).value(), 200u);
      std::string wrong;
      ASSERT_TRUE(compute->Launch([&] { wrong = bad.cache().FirstWrong(layer, 200, round); }).ok());
      ASSERT_TRUE(compute->Synchronize().ok());
      restore_caught |= !wrong.empty();
    }
  }
  EXPECT_TRUE(save_caught);
  EXPECT_TRUE(restore_caught);
}

TEST(LayerPipeline, OnlyNewTokensAreGathered) {
  Bench bench({});
  auto tokens = Tokens(1, 100);
  auto first = bench.Save(tokens, 0, 3, kSmallSave);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto more = Tokens(2, 60);
  tokens.insert(tokens.end(), more.begin(), more.end());
  auto second = bench.Save(tokens, first->generation, 3, kSmallSave);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->new_chunks, 4u);  // from the chunk border at 96 on
  auto restored = bench.Restore(tokens, 3, kSmallRestore);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->tokens, 160u);
  EXPECT_EQ(restored->wrong, "");
}

TEST(LayerPipeline, LoadsUpToItsBufferBeforeItIsBound) {
  Bench bench({});
  const auto tokens = Tokens(5, 160);  // 10 pages a layer, 2 a slot
  ASSERT_TRUE(bench.Save(tokens, 0, 5, kSmallSave).ok());
  auto ticket =
      bench.store().BeginRestore({.prompt = {.tokens = tokens}, .layout = bench.fingerprint()});
  ASSERT_TRUE(ticket.ok());
  const auto compute = bench.device().NewStream().value();
  auto restore =
      LayerRestore::Start(bench.device(), bench.layout(), std::move(*ticket), kSmallRestore);
  ASSERT_TRUE(restore.ok());
  EXPECT_EQ((*restore)->WaitLayer(0, *compute).status().code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE((*restore)->Bind(bench.cache()).ok());
  EXPECT_FALSE((*restore)->Bind(bench.cache()).ok());
  for (uint32_t layer = 0; layer < kLayers; ++layer)
    ASSERT_EQ((*restore)->WaitLayer(layer, *compute).value(), 160u);
  ASSERT_TRUE(compute->Synchronize().ok());
  const auto report = (*restore)->Report();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LE(report->buffered_bytes, 12'288u);
  EXPECT_EQ(report->buffer_bytes, 12'288u);
  EXPECT_EQ(report->copied_bytes, 10u * 2048 * kLayers);
  for (uint32_t layer = 0; layer < kLayers; ++layer)
    EXPECT_EQ(bench.cache().FirstWrong(layer, 160, 5), "");
}

TEST(LayerPipeline, ALostStoreEndsThePrefixAndIsNoError) {
  Bench bench({});
  const auto tokens = Tokens(6, 160);
  ASSERT_TRUE(bench.Save(tokens, 0, 6, kSmallSave).ok());
  bench.store().hooks.before_wait_layer = [](uint32_t layer) {
    return layer < 2 ? absl::OkStatus() : Unavailable("the daemon is away");
  };
  auto restored = bench.Restore(tokens, 6, kSmallRestore);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->tokens, 0u);
  EXPECT_NE(restored->report.trouble.find("the daemon is away"), std::string::npos);
}

TEST(LayerPipeline, ADamagedPageNeverReachesTheEngine) {
  Bench bench({});
  const auto tokens = Tokens(8, 160);
  ASSERT_TRUE(bench.Save(tokens, 0, 8, kSmallSave).ok());
  {
    auto ticket =
        bench.store().BeginRestore({.prompt = {.tokens = tokens}, .layout = bench.fingerprint()});
    ASSERT_EQ((*ticket)->WaitLayer(2).value(), 160u);
    const auto page = (*ticket)->Page(3, 2);  // tokens 48..63 of layer 2
    const_cast<std::byte&>(page[100]) ^= std::byte{4};
  }
  bench.cache().Clear();
  auto restored = bench.Restore(tokens, 8, kSmallRestore);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->tokens, 48u);
  EXPECT_EQ(restored->wrong, "");
  EXPECT_NE(restored->report.trouble, "");
  EXPECT_EQ(bench.cache().Row(2, 48)[0], std::byte{0xEE});
}

TEST(LayerPipeline, ACommitWithoutAllLayersIsRefused) {
  Bench bench({});
  const auto tokens = Tokens(9, 40);
  auto ticket = bench.store().BeginSave(
      {.session = "s", .layout = bench.fingerprint(), .prompt = {.tokens = tokens}});
  ASSERT_TRUE(ticket.ok());
  auto save = LayerSave::Start(bench.device(), bench.layout(), std::move(*ticket), bench.cache(),
                               kSmallSave);
  ASSERT_TRUE(save.ok());
  const auto compute = bench.device().NewStream().value();
  ASSERT_TRUE((*save)->LayerComputed(0, *compute).ok());
  EXPECT_EQ((*save)->Commit(absl::Seconds(1)).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(LayerPipeline, AnAbandonedRestoreAndSaveLeaveNothing) {
  Bench bench({.to_device_bytes_per_s = 1e6, .to_host_bytes_per_s = 1e6});
  const auto tokens = Tokens(10, 64);
  ASSERT_TRUE(bench.Save(tokens, 0, 1, kSmallSave).ok());
  {
    auto ticket =
        bench.store().BeginRestore({.prompt = {.tokens = tokens}, .layout = bench.fingerprint()});
    // Never bound: the loader stands before its full buffer.
    auto restore =
        LayerRestore::Start(bench.device(), bench.layout(), std::move(*ticket), kSmallRestore);
    ASSERT_TRUE(restore.ok());
  }
  EXPECT_EQ(bench.device().allocated_bytes(), 0u);
}

}  // namespace
}  // namespace turnkeep::testing
