// Turns over a page pool: what is hot comes from there, without the store where that is certain and
// in its absence; whatever others do with the sessions, the logits are those of the context.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "core/status.h"
#include "core/units.h"
#include "llama/kv_bridge.h"
#include "regression/llama_testing.h"
#include "store/store.h"
#include "testing/hooked_kv_store.h"

namespace turnkeep::llama {
namespace {

using testing::RandomModel;
using testing::RandomTokens;
using turnkeep::testing::HookedKvStore;

constexpr uint32_t kVocab = 300;

class LlamaPool : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = RandomModel("dim=64,layers=4,heads=8,kv_heads=4,hidden=172,vocab=300,context=256");
    engine_ = std::move(*Engine::Create(model_.get(), {.threads = 2}));
    tokens_ = RandomTokens(&random_, kVocab, 256);
    OpenStore(64 * kMiB);
  }
  void OpenStore(uint64_t host_bytes) {
    hooked_.reset();
    kv_.reset();
    store_ = Store::Open({.host_bytes = host_bytes, .host_segment_bytes = 128 * kKiB}).value();
    kv_ = store_->ForTenant("default").value();
    hooked_ = std::make_unique<HookedKvStore>(kv_.get());
    hooked_->hooks.before_restore = [this] {
      ++restores_;
      return absl::OkStatus();
    };
  }
  // The store is away until the hooks are set anew.
  void TakeStoreAway() {
    hooked_->hooks.before_begin =
        hooked_->hooks.before_greeting = [] { return Unavailable("the daemon is away"); };
  }
  KvBridge MakeBridge(const std::string& session, KvDevice* device) {
    return KvBridge(hooked_.get(), engine_.get(),
                    {.session = session,
                     .chunk_tokens = 16,
                     .device = device,
                     .log = [this](const std::string& line) { log_.push_back(line); }});
  }
  std::vector<float> Recompute(std::span<const uint32_t> context) {
    const auto cache = engine_->NewCache({.keep_raw_keys = raw_}).value();
    Sequence sequence(cache.get());
    std::vector<float> logits(kVocab);
    EXPECT_TRUE(engine_->Prefill(&sequence, context, 0, nullptr, logits).ok());
    return logits;
  }
  KvBridge::Report Turn(KvBridge* bridge, std::span<const uint32_t> context) {
    const auto cache = engine_->NewCache({.keep_raw_keys = raw_}).value();
    Sequence sequence(cache.get());
    std::vector<float> logits(kVocab);
    restores_ = 0;
    const auto report = bridge->Prefill(&sequence, context, logits);
    EXPECT_TRUE(report.ok()) << report.status();
    finished_ = bridge->Finish();
    const std::vector<float> expected = Recompute(context);
    EXPECT_EQ(0, std::memcmp(logits.data(), expected.data(), sizeof(float) * kVocab))
        << "logits differ";
    return *report;
  }
  std::span<const uint32_t> First(size_t count) { return std::span(tokens_).first(count); }

  std::mt19937_64 random_{11};
  bool raw_ = false;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Engine> engine_;
  std::vector<uint32_t> tokens_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<KvStore> kv_;
  std::unique_ptr<HookedKvStore> hooked_;
  int restores_ = 0;  // begun at the store in the last turn
  absl::Status finished_;
  std::vector<std::string> log_;
  KvDevice device_{{.pool_bytes = 4 * kMiB}};
};

TEST_F(LlamaPool, ATurnThatIsAllInThePoolDoesNotBeginAtTheStore) {
  for (const bool raw : {false, true}) {
    raw_ = raw;
    KvBridge bridge = MakeBridge(raw ? "raw" : "rotated", &device_);
    Turn(&bridge, First(100));
    EXPECT_EQ(restores_, 2);  // by session, then by tokens
    for (const size_t at : {size_t{120}, size_t{121}, size_t{200}}) {
      const KvBridge::Report report = Turn(&bridge, First(at));
      EXPECT_EQ(restores_, 0);
      EXPECT_EQ(report.pooled_tokens + report.computed_tokens, at);
      EXPECT_TRUE(finished_.ok()) << finished_;
    }
    // What the pool gave was saved on: the store has it all.
    KvBridge cold = MakeBridge(raw ? "raw" : "rotated", nullptr);
    EXPECT_EQ(Turn(&cold, First(201)).restored_host_tokens, 200u);
  }
  EXPECT_THAT(log_, ::testing::IsEmpty());
}

// One bridge a turn, as a server has it.
// The pool has 8 chunks of 16 tokens.
TEST_F(LlamaPool, OfATurnThatIsPartlyInThePoolTheStoreGivesTheRest) {
  KvDevice device{{.pool_bytes = 8 * 16 * kKiB}};
  KvBridge bridge = MakeBridge("s", &device);
  Turn(&bridge, First(100));  // 7 chunks
  KvBridge other = MakeBridge("other", &device);
  Turn(&other, std::span(tokens_).subspan(150, 60));  // 4 chunks: the last 3 of the others go
  const auto counted = [this](const std::string& labels) {
    double sum = 0;
    const auto status = kv_->Status();
    for (const NamedCount& count : status->counts)
      if (count.name == "restored_tokens_total" && count.labels == labels) sum += count.value;
    return static_cast<uint64_t>(sum);
  };
  ASSERT_EQ(counted("tier=\"gpu\""), 0u);
  ASSERT_EQ(counted("tier=\"host\""), 0u);
  const KvBridge::Report report = Turn(&bridge, First(120));
  EXPECT_EQ(report.pooled_tokens, 64u);
  EXPECT_EQ(report.restored_host_tokens, 36u);
  EXPECT_EQ(report.computed_tokens, 20u);
  EXPECT_EQ(counted("tier=\"gpu\""), 64u);
  EXPECT_EQ(counted("tier=\"host\""), 36u);
}

TEST_F(LlamaPool, AnotherBridgeOfTheSessionFindsItToo) {
  {
    KvBridge bridge = MakeBridge("s", &device_);
    Turn(&bridge, First(100));
  }
  KvBridge bridge = MakeBridge("s", &device_);
  EXPECT_EQ(Turn(&bridge, First(150)).pooled_tokens, 100u);
  EXPECT_EQ(restores_, 0);
  EXPECT_TRUE(finished_.ok()) << finished_;
  EXPECT_EQ(bridge.generation(), hooked_->StatSession("s")->generation);
}

// Recency comes with the save, residency with the report after it.
TEST_F(LlamaPool, TheStoreLearnsOfTheUse) {
  OpenStore(512 * kKiB);
  KvBridge used = MakeBridge("used", &device_);
  Turn(&used, First(96));
  const std::vector<uint32_t> other = RandomTokens(&random_, kVocab, 96);
  KvBridge idle = MakeBridge("idle", &device_);
  Turn(&idle, other);
  Turn(&used, First(97));
  EXPECT_EQ(restores_, 0);
  // There is room for both and half of a third; no disk.
  for (size_t i = 0; hooked_->StatSession("idle")->restorable_tokens == 96; ++i) {
    ASSERT_LT(i, 10u);
    KvBridge third = MakeBridge(fmt::format("third-{}", i), nullptr);
    Turn(&third, RandomTokens(&random_, kVocab, 32));
  }
  EXPECT_EQ(hooked_->StatSession("used")->restorable_tokens, 97u);
  EXPECT_EQ(hooked_->StatSession("used")->gpu_bytes, hooked_->StatSession("used")->kv_bytes);
  const auto explained = hooked_->Explain(
      {.session = "used", .prompt = {.tokens = First(97)}, .layout = Fingerprint{}});
  ASSERT_TRUE(explained.ok()) << explained.status();
  ASSERT_EQ(explained->gpu.size(), 1u);
  EXPECT_EQ(explained->gpu[0].token_count, 97u);
}

TEST_F(LlamaPool, AStoreThatIsAwayLeavesWhatThePoolHas) {
  KvBridge bridge = MakeBridge("s", &device_);
  Turn(&bridge, First(100));
  TakeStoreAway();
  EXPECT_EQ(Turn(&bridge, First(120)).pooled_tokens, 100u);
  EXPECT_THAT(log_, ::testing::Contains(::testing::HasSubstr("away")));
  // Nothing was saved of that turn, and nothing of it is taken for the session's content.
  EXPECT_EQ(Turn(&bridge, First(130)).pooled_tokens, 100u);
  // A new session with the same beginning.
  KvBridge fresh = MakeBridge("fresh", &device_);
  EXPECT_EQ(Turn(&fresh, First(130)).pooled_tokens, 100u);
  hooked_->hooks = {};
  EXPECT_EQ(Turn(&bridge, First(131)).pooled_tokens, 100u);
  EXPECT_TRUE(finished_.ok()) << finished_;
  EXPECT_EQ(Turn(&bridge, First(140)).pooled_tokens, 131u);
}

// Nor is a hot chunk lost because the store gave its copies up.
TEST_F(LlamaPool, WhatTheStoreHasLostComesFromThePool) {
  KvBridge bridge = MakeBridge("s", &device_);
  Turn(&bridge, First(100));
  ASSERT_TRUE(hooked_->DropSession("s").ok());
  EXPECT_EQ(Turn(&bridge, First(120)).pooled_tokens, 100u);
  EXPECT_THAT(log_, ::testing::ElementsAre(::testing::HasSubstr("there is no such session")));
  EXPECT_EQ(Turn(&bridge, First(121)).pooled_tokens, 100u);
  EXPECT_TRUE(finished_.ok()) << finished_;
  EXPECT_EQ(hooked_->StatSession("s")->restorable_tokens, 121u);
}

TEST_F(LlamaPool, AnotherWritersSessionIsNotOverwritten) {
  KvBridge bridge = MakeBridge("s", &device_);
  Turn(&bridge, First(100));
  KvBridge other = MakeBridge("s", nullptr);
  Turn(&other, First(140));
  EXPECT_EQ(Turn(&bridge, First(120)).pooled_tokens, 100u);
  EXPECT_EQ(restores_, 0);
  EXPECT_THAT(log_, ::testing::ElementsAre(::testing::HasSubstr("the session is at 2")));
  EXPECT_EQ(hooked_->StatSession("s")->token_count, 140u);
  // Now the store is asked, and has more.
  const KvBridge::Report report = Turn(&bridge, First(150));
  EXPECT_GT(restores_, 0);
  EXPECT_EQ(report.pooled_tokens + report.restored_host_tokens, 140u);
  EXPECT_TRUE(finished_.ok()) << finished_;
}

// Its KV remembers what was dropped. A new session of that name, saved from the short context, does
// not.
TEST_F(LlamaPool, ATruncatedContextIsNotTakenForTheShortOne) {
  raw_ = true;
  KvBridge bridge = MakeBridge("s", &device_);
  const auto cache = engine_->NewCache({.keep_raw_keys = true}).value();
  std::vector<float> logits(kVocab), truncated(kVocab);
  const std::vector<uint32_t> context(tokens_.begin() + 64, tokens_.begin() + 160);
  {
    Sequence sequence(cache.get());
    ASSERT_TRUE(bridge.Prefill(&sequence, First(150), logits).ok());
    ASSERT_TRUE(bridge.Truncate(&sequence, 150, 0, 64).ok());
    ASSERT_TRUE(
        engine_->Prefill(&sequence, std::span(context).subspan(86), 86, nullptr, truncated).ok());
  }
  // As long as the session shows it: with the store and, in its absence, without.
  for (const bool away : {false, true}) {
    if (away) TakeStoreAway();
    Sequence sequence(cache.get());
    const auto report = bridge.Prefill(&sequence, context, logits);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->pooled_tokens, away ? 95u : 86u);
    EXPECT_EQ(0, std::memcmp(logits.data(), truncated.data(), sizeof(float) * kVocab));
    EXPECT_EQ(bridge.Finish().ok(), true);
  }
  // Not for another session.
  KvBridge fresh = MakeBridge("fresh", &device_);
  EXPECT_EQ(Turn(&fresh, context).pooled_tokens, 0u);
  hooked_->hooks = {};
  ASSERT_TRUE(hooked_->DropSession("s").ok());
  KvBridge other = MakeBridge("s", nullptr);
  Turn(&other, std::span(context).first(90));
  const KvBridge::Report report = Turn(&bridge, context);  // equals computing it from nothing
  EXPECT_EQ(report.restored_host_tokens, 90u);
}

TEST_F(LlamaPool, AnotherTenantsContextsAreNotLookedAt) {
  KvBridge bridge = MakeBridge("s", &device_);
  Turn(&bridge, First(100));
  const auto other_kv = store_->ForTenant("other").value();
  KvBridge other(other_kv.get(), engine_.get(),
                 {.session = "s", .chunk_tokens = 16, .device = &device_});
  EXPECT_EQ(Turn(&other, First(120)).computed_tokens, 120u);
}

// The first chunks stay longest, so that what is left is a prefix.
TEST_F(LlamaPool, APoolThatIsTooSmallKeepsTheBeginning) {
  KvDevice small({.pool_bytes = 64 * kKiB});  // 4 of 16 KiB
  KvBridge bridge = MakeBridge("s", &small);
  Turn(&bridge, First(64));
  const std::vector<uint32_t> other = RandomTokens(&random_, kVocab, 32);
  KvBridge second = MakeBridge("second", &small);
  Turn(&second, other);
  TakeStoreAway();
  EXPECT_EQ(Turn(&bridge, First(100)).pooled_tokens, 32u);
}

}  // namespace
}  // namespace turnkeep::llama
