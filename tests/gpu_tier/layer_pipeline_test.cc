// Saves and restores layer by layer through an embedded store: every byte of the engine's cache,
// under randomised delays, with small buffers, and with what goes wrong on the way.
#include <gtest/gtest.h>

#include "gpu_tier/pipeline_rig.h"

namespace turnkeep::testing {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kRacesAreErrors = true;
#else
constexpr bool kRacesAreErrors = false;
#endif

TEST(LayerPipeline, EveryByteComesBackUnderRandomDelays) {
  constexpr uint64_t kSeed = 77;
  RecordProperty("seed", static_cast<int>(kSeed));
  PipelineRig bench({.max_random_delay = absl::Microseconds(50), .seed = kSeed});
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
  PipelineRig good({});
  PipelineRig bad({.max_random_delay = absl::Microseconds(50), .ignore_waits_for_test = true});
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
  PipelineRig bench({});
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
  PipelineRig bench({});
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
  PipelineRig bench({});
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
  PipelineRig bench({});
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
  PipelineRig bench({});
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
  PipelineRig bench({.to_device_bytes_per_s = 1e6, .to_host_bytes_per_s = 1e6});
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
