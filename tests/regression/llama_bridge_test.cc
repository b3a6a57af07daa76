// KvBridge against a store in plain memory: what it saves and restores, and that no
// failure of the store changes the engine's output.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "core/status.h"
#include "llama/kv_bridge.h"
#include "regression/llama_testing.h"
#include "testing/hooked_kv_store.h"
#include "testing/memory_kv_store.h"

namespace turnkeep::llama {
namespace {

using testing::RandomModel;
using testing::RandomTokens;
using turnkeep::testing::HookedKvStore;
using turnkeep::testing::MemoryKvStore;

// A model of 4 layers, a store, and the logits that computing from nothing gives.
class KvBridgeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = RandomModel("dim=64,layers=4,heads=8,kv_heads=4,hidden=172,vocab=300,context=256");
    engine_ = std::move(*Engine::Create(model_.get(), {.threads = 2}));
    tokens_ = RandomTokens(&random_, 300, 256);
  }

  KvBridge MakeBridge(const std::string& session = "s") {
    return KvBridge(&hooked_, engine_.get(),
                    {.session = session,
                     .chunk_tokens = 16,
                     .log = [this](const std::string& line) { log_.push_back(line); }});
  }
  std::unique_ptr<PagedKvCache> NewCache() {
    return std::move(*engine_->NewCache({.dtype = dtype_, .keep_raw_keys = raw_}));
  }
  std::vector<float> Recompute(std::span<const uint32_t> context) {
    const auto cache = NewCache();
    Sequence sequence(cache.get());
    std::vector<float> logits(300);
    EXPECT_TRUE(engine_->Prefill(&sequence, context, 0, nullptr, logits).ok());
    return logits;
  }
  // One turn in a fresh cache; expects the logits of computing from nothing.
  KvBridge::Report Turn(KvBridge* bridge, std::span<const uint32_t> context) {
    const auto cache = NewCache();
    Sequence sequence(cache.get());
    std::vector<float> logits(300);
    auto report = bridge->Prefill(&sequence, context, logits);
    EXPECT_TRUE(report.ok()) << report.status();
    finished_ = bridge->Finish();
    const std::vector<float> expected = Recompute(context);
    EXPECT_EQ(0, std::memcmp(logits.data(), expected.data(), 1200)) << "logits differ";
    return *report;
  }
  std::span<const uint32_t> First(size_t count) { return std::span(tokens_).first(count); }

  std::mt19937_64 random_{3};
  DType dtype_ = DType::kFloat32;
  bool raw_ = false;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Engine> engine_;
  std::vector<uint32_t> tokens_;
  MemoryKvStore store_;
  HookedKvStore hooked_{&store_};
  std::vector<std::string> log_;
  absl::Status finished_;
};

TEST_F(KvBridgeTest, RestoresWhatItSavedForEveryTypeAndKeyState) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const bool raw : {false, true}) {
      dtype_ = dtype;
      raw_ = raw;
      const std::string session = fmt::format("{}-{}", NameOf(dtype), raw);
      KvBridge bridge = MakeBridge(session);
      EXPECT_EQ(Turn(&bridge, First(100)).computed_tokens, 100u);
      const KvBridge::Report second = Turn(&bridge, First(150));
      EXPECT_EQ(second.restored_host_tokens, 100u);
      EXPECT_EQ(second.computed_tokens, 50u);
      const KvBridge::Report third = Turn(&bridge, First(151));
      EXPECT_EQ(third.restored_host_tokens, 150u);
      EXPECT_EQ(bridge.generation(), store_.StatSession(session)->generation);
      EXPECT_THAT(log_, ::testing::IsEmpty());
    }
  }
}

TEST_F(KvBridgeTest, GeneratedTokensAreSavedWithTheirKv) {
  KvBridge bridge = MakeBridge();
  const auto cache = NewCache();
  std::vector<float> logits(300);
  {
    Sequence sequence(cache.get());
    ASSERT_TRUE(bridge.Prefill(&sequence, First(40), logits).ok());
    for (size_t i = 40; i < 75; ++i) {
      ASSERT_TRUE(engine_->Prefill(&sequence, {&tokens_[i], 1}, i, nullptr, logits).ok());
    }
    bridge.Save(sequence, First(75));
    ASSERT_TRUE(bridge.Finish().ok());
  }
  EXPECT_EQ(Turn(&bridge, First(90)).restored_host_tokens, 75u);
}

// Layer 2 of the span at token 48 is damaged: what was computed on top is computed again.
TEST_F(KvBridgeTest, DamageInTheMiddleCostsTheTokensFromThere) {
  KvBridge bridge = MakeBridge();
  Turn(&bridge, First(128));
  hooked_.hooks.before_read_page = [](size_t span, uint32_t layer) {
    return span == 3 && layer == 2 ? DataLoss("damaged") : absl::OkStatus();
  };
  const KvBridge::Report report = Turn(&bridge, First(140));
  EXPECT_EQ(report.restored_host_tokens, 48u);
  EXPECT_EQ(report.computed_tokens, 92u);
  EXPECT_LE(report.restarts, 1u);  // none if the loader was at layer 2 before the engine began
  EXPECT_THAT(report.miss_reason, ::testing::HasSubstr("damaged"));
  EXPECT_TRUE(finished_.ok()) << finished_;  // the second pass saved
  hooked_.hooks = {};
  EXPECT_EQ(Turn(&bridge, First(141)).computed_tokens, 1u);
}

TEST_F(KvBridgeTest, DamageThatGrowsFromLayerToLayerStillEnds) {
  KvBridge bridge = MakeBridge();
  Turn(&bridge, First(128));
  hooked_.hooks.before_read_page = [](size_t span, uint32_t layer) {
    return span + 2 * layer == 7 ? DataLoss("damaged") : absl::OkStatus();
  };
  // How often the engine starts again depends on how far it was when each damage showed.
  const KvBridge::Report report = Turn(&bridge, First(130));
  EXPECT_EQ(report.restored_host_tokens, 16u);  // layer 3, span 1
}

TEST_F(KvBridgeTest, AStoreThatGoesAwayAtAnyLayerChangesNothing) {
  for (uint32_t at = 0; at < 4; ++at) {
    KvBridge bridge = MakeBridge(fmt::format("away-{}", at));
    Turn(&bridge, First(100));
    hooked_.hooks.before_wait_layer = [at](uint32_t layer) {
      return layer >= at ? Unavailable("connection lost") : absl::OkStatus();
    };
    hooked_.hooks.before_finish_layer = hooked_.hooks.before_wait_layer;
    hooked_.hooks.before_commit = [] { return Unavailable("connection lost"); };
    const KvBridge::Report report = Turn(&bridge, First(120));
    EXPECT_EQ(report.computed_tokens, 120u);
    EXPECT_EQ(finished_.code(), absl::StatusCode::kUnavailable);
    hooked_.hooks = {};
    EXPECT_EQ(Turn(&bridge, First(121)).restored_host_tokens, 100u);
  }
}

TEST_F(KvBridgeTest, AStoreThatIsAwayAltogetherChangesNothing) {
  KvBridge bridge = MakeBridge();
  Turn(&bridge, First(50));
  hooked_.hooks.before_begin = [] { return Unavailable("no daemon"); };
  EXPECT_EQ(Turn(&bridge, First(60)).computed_tokens, 60u);
  EXPECT_THAT(log_, ::testing::Contains(::testing::HasSubstr("no daemon")));
  hooked_.hooks = {};
  EXPECT_EQ(Turn(&bridge, First(61)).restored_host_tokens, 50u);
}

// The other writer keeps the session; this turn's later saves do not overwrite it.
TEST_F(KvBridgeTest, AConflictLeavesTheOtherWritersSession) {
  KvBridge bridge = MakeBridge();
  Turn(&bridge, First(50));
  int commits = 0;
  hooked_.hooks.before_commit = [&commits] {
    return ++commits == 1 ? FailedPrecondition("generation 7, expected 6") : absl::OkStatus();
  };
  const auto cache = NewCache();
  Sequence sequence(cache.get());
  std::vector<float> logits(300);
  ASSERT_TRUE(bridge.Prefill(&sequence, First(60), logits).ok());
  bridge.Save(sequence, First(60));
  EXPECT_TRUE(bridge.Finish().ok());
  EXPECT_EQ(commits, 1);
  EXPECT_THAT(log_, ::testing::ElementsAre(::testing::HasSubstr("generation 7")));
  EXPECT_EQ(store_.TokensOf("s").size(), 50u);
  EXPECT_EQ(Turn(&bridge, First(61)).restored_host_tokens, 50u);
}

struct TruncationCase {
  const char* name;
  DType dtype;
  bool raw;
};

class KvBridgeTruncation : public KvBridgeTest,
                           public ::testing::WithParamInterface<TruncationCase> {};

// The reference truncates its own cache and goes on; the other side saves, truncates
// the session, forgets everything, and restores.
TEST_P(KvBridgeTruncation, EqualsTruncatingTheCacheWithoutAStore) {
  dtype_ = GetParam().dtype;
  raw_ = GetParam().raw;
  const auto reference_cache = NewCache();
  Sequence reference(reference_cache.get());
  std::vector<float> expected(300), logits(300);
  ASSERT_TRUE(engine_->Prefill(&reference, First(150), 0, nullptr, expected).ok());
  ASSERT_TRUE(engine_->Truncate(&reference, 150, 20, 95).ok());
  std::vector<uint32_t> context(tokens_.begin(), tokens_.begin() + 20);
  context.insert(context.end(), tokens_.begin() + 95, tokens_.begin() + 200);
  ASSERT_TRUE(
      engine_->Prefill(&reference, std::span(context).subspan(75), 75, nullptr, expected).ok());

  KvBridge bridge = MakeBridge();
  const auto cache = NewCache();
  {
    Sequence sequence(cache.get());
    ASSERT_TRUE(bridge.Prefill(&sequence, First(150), logits).ok());
    ASSERT_TRUE(bridge.Truncate(&sequence, 150, 20, 95).ok());
  }
  Sequence sequence(cache.get());
  const auto report = bridge.Prefill(&sequence, context, logits);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->restored_host_tokens, 75u);
  EXPECT_EQ(0, std::memcmp(logits.data(), expected.data(), 1200));
  // And it is not what the shorter context gives by itself.
  EXPECT_NE(0, std::memcmp(logits.data(), Recompute(context).data(), 1200));
}

INSTANTIATE_TEST_SUITE_P(
    Keys, KvBridgeTruncation,
    ::testing::Values(TruncationCase{"float32_raw", DType::kFloat32, true},
                      TruncationCase{"float32_rotated", DType::kFloat32, false},
                      TruncationCase{"bfloat16_raw", DType::kBFloat16, true},
                      TruncationCase{"bfloat16_rotated", DType::kBFloat16, false}),
    [](const auto& info) { return info.param.name; });

TEST_F(KvBridgeTest, ATruncationThatTheStoreCouldNotFollowIsNotSaved) {
  KvBridge bridge = MakeBridge();
  const auto cache = NewCache();
  Sequence sequence(cache.get());
  std::vector<float> logits(300);
  hooked_.hooks.before_commit = [] { return Unavailable("connection lost"); };
  ASSERT_TRUE(bridge.Prefill(&sequence, First(100), logits).ok());
  EXPECT_FALSE(bridge.Truncate(&sequence, 100, 0, 50).ok());
  hooked_.hooks = {};
  bridge.Save(sequence, std::span(tokens_).subspan(50, 50));
  EXPECT_TRUE(bridge.Finish().ok());
  EXPECT_TRUE(store_.sessions.empty());
}

}  // namespace
}  // namespace turnkeep::llama
