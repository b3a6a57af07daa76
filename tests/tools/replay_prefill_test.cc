// What a prefill takes, and how much of a restore pays beside it, on cases done by hand.
#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "core/units.h"
#include "replay.h"
#include "restore_model.h"

namespace turnkeep::replay {
namespace {

// A second for every thousand tokens without attention; no floor.
Model Linear() { return {.layers = 10, .prefill_tokens_per_s = 1000, .memory_bytes_per_s = 1e12}; }

// Attention costs as much as the rest at `half_speed_tokens`.
Model WithAttention(double half_speed_tokens) {
  Model model = Linear();
  model.half_speed_tokens = half_speed_tokens;
  return model;
}

TEST(ReplayPrefill, ATokenAtTheHalfSpeedContextTakesTwiceAsLong) {
  const Model model = WithAttention(1000);
  EXPECT_DOUBLE_EQ(model.PrefillSeconds(0, 1000), 1.5);
  EXPECT_DOUBLE_EQ(model.PrefillSeconds(1000, 2000), 2.5);
  EXPECT_DOUBLE_EQ(model.PrefillSeconds(0, 2000), 4);
  EXPECT_NEAR(model.PrefillSeconds(1000, 1001), 0.002, 1e-6);
  EXPECT_DOUBLE_EQ(Linear().PrefillSeconds(1000, 2000), 1);
}

TEST(ReplayPrefill, TakesNoLessThanReadingTheWeights) {
  Model model = WithAttention(1000);
  model.weight_bytes = 0.5e12;
  EXPECT_DOUBLE_EQ(model.PrefillSeconds(0, 100), 0.5);
  EXPECT_DOUBLE_EQ(model.PrefillSeconds(0, 1000), 1.5);
  EXPECT_EQ(model.PrefillSeconds(100, 100), 0) << "nothing to compute, nothing to read";
  model.prefill_floor = false;
  EXPECT_DOUBLE_EQ(model.PrefillSeconds(0, 100), 0.105);
}

TEST(ReplayModels, KvBytesAreThePapers) {
  const std::map<std::string, double> megabytes = {
      {"llama-13b", 0.78}, {"llama-65b", 2.5}, {"llama-70b", 0.31}, {"falcon-40b", 0.12}};
  for (const auto& [name, mib] : megabytes) {
    const auto model = FindModel(name);
    ASSERT_TRUE(model.ok());
    EXPECT_NEAR(static_cast<double>(model->kv_bytes_per_token) / double(kMiB), mib, 0.012) << name;
  }
  EXPECT_FALSE(FindModel("gpt").ok());
}

TEST(ReplayModels, PrefillIsThePapersAndAttentionFollowsFromTheShape) {
  // 2 x parameters / (4 x layers x query heads x head dim).
  const std::map<std::string, double> half_speed_tokens = {
      {"llama-13b", 31738},  {"llama-65b", 49744},       {"llama-70b", 52643},
      {"falcon-40b", 42013}, {"llama-3-8b-h200", 30518}, {"llama-3-70b-h200", 53864}};
  ASSERT_EQ(ModelPresets().size(), half_speed_tokens.size());
  for (const Model& model : ModelPresets()) {
    EXPECT_NEAR(model.half_speed_tokens, half_speed_tokens.at(model.name), 1) << model.name;
  }
  EXPECT_NEAR(FindModel("llama-65b")->PrefillSeconds(0, 2048), 0.36, 0.0005);
  // 26 GB at 2 x 2.039 TB/s, and 138 GB at 4 x 2.039 TB/s.
  EXPECT_NEAR(FindModel("llama-13b")->PrefillFloorSeconds(), 0.006376, 1e-6);
  EXPECT_NEAR(FindModel("llama-70b")->PrefillFloorSeconds(), 0.01692, 1e-5);
}

TEST(ReplayOptions, AModelKeepsItsHalfSpeedContextUnlessItIsGiven) {
  Options options;
  options.model = "llama-13b";
  ASSERT_TRUE(SetOption("prefill-tokens-per-s", "100", &options).ok());
  EXPECT_EQ(ModelOf(options)->prefill_tokens_per_s, 100);
  EXPECT_NEAR(ModelOf(options)->half_speed_tokens, 31738, 1);
  ASSERT_TRUE(SetOption("prefill-half-speed-tokens", "5000", &options).ok());
  EXPECT_EQ(ModelOf(options)->half_speed_tokens, 5000);
  EXPECT_DOUBLE_EQ(ModelOf(options)->PrefillSeconds(0, 1000), 11);
  ASSERT_TRUE(SetOption("prefill-half-speed-tokens", "0", &options).ok());
  EXPECT_DOUBLE_EQ(ModelOf(options)->PrefillSeconds(0, 1000), 10);
  EXPECT_GT(ModelOf(options)->PrefillFloorSeconds(), 0);
  ASSERT_TRUE(SetOption("prefill-floor", "off", &options).ok());
  EXPECT_EQ(ModelOf(options)->PrefillFloorSeconds(), 0);
}

// One prompt of 40 tokens, twice.
Metrics ServeTwice(const Options& given) {
  TraceBuilder builder("twice", 10);
  const uint32_t session = builder.NewSession();
  const std::vector<TraceBuilder::SourceRun> run = {{1, 4}};
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(
        builder.Add({.time_s = 100.0 * i, .session = session, .input_tokens = 40}, run).ok());
  }
  Options options = given;
  options.host_blocks = 10;
  const auto result = Replay(std::move(builder).Finish(), options, nullptr);
  EXPECT_TRUE(result.ok()) << result.status();
  return result->metrics;
}

TEST(ReplayPrefill, TheRestOfAPromptAttendsToWhatWasRestored) {
  Options options;
  options.prefill_tokens_per_s = 10;
  options.prefill_half_speed_tokens = 20;
  for (const QueueRule queue : {QueueRule::kNone, QueueRule::kGpu}) {
    options.queue = queue;
    const Metrics metrics = ServeTwice(options);
    // (40 + 40² / 40) / 10, and of the last token alone (1 + (40² - 39²) / 40) / 10.
    EXPECT_NEAR(metrics.ttft_without[1], 8, 1e-6);
    EXPECT_NEAR(metrics.ttft_with[0], 8, 1e-6);
    EXPECT_NEAR(metrics.ttft_with[1], 0.2975, 1e-4);
  }
}

TEST(ReplayPrefill, NoPromptIsServedSoonerThanTheWeightsAreRead) {
  Options options;  // 16 GB at 4.8 TB/s
  options.prefill_tokens_per_s = 1e6;
  for (const QueueRule queue : {QueueRule::kNone, QueueRule::kGpu}) {
    options.queue = queue;
    const Metrics metrics = ServeTwice(options);
    for (const float ttft : metrics.ttft_with) EXPECT_NEAR(ttft, 0.003333, 1e-5);
    EXPECT_NEAR(metrics.prefill_s_without, 2 * 0.003333, 1e-5);
  }
}

TEST(ReplayRestore, IsDeclinedWhenPrefillIsQuicker) {
  Model model = Linear();
  RestoreCase restore = {.model = &model,
                         .input_tokens = 1000,
                         .host_tokens = 900,
                         .disk_tokens = 0,
                         .host_load_tokens_per_s = 10'000,
                         .disk_load_tokens_per_s = 1000};
  RestorePlan plan = PlanRestore(restore, true);
  EXPECT_FALSE(plan.declined);
  EXPECT_NEAR(plan.ttft_s, 0.1 + 0.009, 1e-9);
  // 1.8 s to load, 1 s to compute: take what loads while the rest is computed.
  restore.host_load_tokens_per_s = 500;
  plan = PlanRestore(restore, true);
  EXPECT_TRUE(plan.declined);
  EXPECT_NEAR(plan.host_tokens, 1000.0 / 3, 1e-6);
  EXPECT_NEAR(plan.ttft_s, 2.0 / 3 * 1.1, 1e-9);
  EXPECT_GT(PlanRestore(restore, false).ttft_s, 1.0);
  // Hopeless: nothing is taken.
  restore.host_load_tokens_per_s = 1;
  model.layers = 1;
  plan = PlanRestore(restore, true);
  EXPECT_TRUE(plan.declined);
  EXPECT_EQ(plan.host_tokens, 0);
  EXPECT_EQ(plan.ttft_s, 1.0);
}

// Prefilling all takes 6 s. With one layer TTFT is prefill + load until they meet, and between
// nothing and there it rises before it falls, since the first tokens are cheap to prefill.
TEST(ReplayRestore, TheFirstTokensMayNotPayAndMoreOfThemDo) {
  Model model = WithAttention(100);
  model.layers = 1;
  RestoreCase restore = {.model = &model,
                         .input_tokens = 1000,
                         .host_tokens = 900,
                         .host_load_tokens_per_s = 250,
                         .disk_load_tokens_per_s = 1};
  RestorePlan plan = PlanRestore(restore, true);
  EXPECT_TRUE(plan.declined);
  EXPECT_NEAR(plan.host_tokens, 704.16, 0.01);  // t² + 1000 t = 1.2e6
  EXPECT_NEAR(plan.ttft_s, 2 * 704.16 / 250, 1e-4);
  // Where they meet, TTFT is 6.49 s.
  restore.host_load_tokens_per_s = 200;
  plan = PlanRestore(restore, true);
  EXPECT_EQ(plan.host_tokens, 0);
  EXPECT_EQ(plan.ttft_s, 6);
}

TEST(ReplayRestore, NothingIsLoadedInPlaceOfWhatTheFloorLeavesFree) {
  Model model = Linear();
  model.layers = 1;
  model.weight_bytes = 0.4e12;  // 0.4 s
  RestoreCase restore = {.model = &model,
                         .input_tokens = 1000,
                         .host_tokens = 900,
                         .host_load_tokens_per_s = 1000 / 0.6,
                         .disk_load_tokens_per_s = 1};
  // The last 400 tokens take as long as the weights: loading some of them saves nothing.
  RestorePlan plan = PlanRestore(restore, true);
  EXPECT_NEAR(plan.host_tokens, 600, 1e-6);
  EXPECT_NEAR(plan.ttft_s, 0.4 + 0.36, 1e-9);
  restore.input_tokens = 100;
  restore.host_tokens = 80;
  plan = PlanRestore(restore, true);
  EXPECT_EQ(plan.host_tokens, 0);
  EXPECT_EQ(plan.ttft_s, 0.4);
  model.prefill_floor = false;
  EXPECT_FALSE(PlanRestore(restore, true).declined);
}

TEST(ReplayRestore, NoOtherCutTakesLess) {
  std::mt19937_64 random(1);
  const auto between = [&](double low, double high) {
    return low * std::pow(high / low, double(random() >> 11) / double(uint64_t{1} << 53));
  };
  int declined = 0;
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    Model model = Linear();
    model.layers = 1 + static_cast<uint32_t>(random() % 8);
    model.half_speed_tokens = random() % 4 == 0 ? 0 : between(50, 1e5);
    model.weight_bytes = random() % 2 == 0 ? 0 : between(1e9, 1e12);
    RestoreCase restore = {.model = &model,
                           .input_tokens = 1000,
                           .host_tokens = double(random() % 500),
                           .disk_tokens = double(random() % 499),
                           .host_load_tokens_per_s = between(50, 5000),
                           .disk_load_tokens_per_s = between(50, 5000),
                           .preload_s = random() % 2 == 0 ? 0 : between(0.01, 1)};
    const RestorePlan plan = PlanRestore(restore, true);
    EXPECT_LE(plan.ttft_s, model.PrefillSeconds(0, 1000));
    if (!plan.declined) continue;
    ++declined;
    RestoreCase cut = restore;
    for (int tokens = 0; tokens <= restore.host_tokens + restore.disk_tokens; ++tokens) {
      cut.host_tokens = std::min(double(tokens), restore.host_tokens);
      cut.disk_tokens = tokens - cut.host_tokens;
      // The disk reads what comes after all of the host's, whatever is cut.
      EXPECT_LE(plan.ttft_s, PlanRestore(cut, false).ttft_s + 1e-9) << tokens;
    }
  }
  EXPECT_GT(declined, 500);
}

}  // namespace
}  // namespace turnkeep::replay
