// Restores and saves over a page pool: what is hot is not loaded again, and whatever is evicted,
// damaged, given up or in use meanwhile, the engine reads the bytes of its own context.
#include <gtest/gtest.h>

#include "gpu_tier/pipeline_rig.h"

namespace turnkeep::testing {
namespace {

constexpr uint64_t kChunkBytes = 2048 * kLayers;  // 16 tokens

std::unique_ptr<PagePool> MakePool(PipelineRig& rig, uint64_t chunks) {
  return PagePool::Make(rig.device(), {.budget_bytes = chunks * kChunkBytes,
                                       .slot_bytes = PooledChunkBytes(rig.layout(), 16)})
      .value();
}
LayerRestoreOptions RestoreOver(PagePool* pool) {
  LayerRestoreOptions options = kSmallRestore;
  options.pool = pool;
  return options;
}
LayerSaveOptions SaveOver(PagePool* pool) {
  LayerSaveOptions options = kSmallSave;
  options.pool = pool;
  return options;
}

TEST(PooledPipeline, WhatWasRestoredOnceIsNotLoadedAgain) {
  PipelineRig rig({});
  const auto pool = MakePool(rig, 20);
  const auto tokens = Tokens(1, 155);  // 9 chunks and a tail
  ASSERT_TRUE(rig.Save(tokens, 0, 1, kSmallSave).ok());
  const auto first = rig.Restore(tokens, 1, RestoreOver(pool.get()));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->wrong, "");
  EXPECT_EQ(first->pooled_tokens, 0u);
  EXPECT_GT(first->report.copied_bytes, 9 * kChunkBytes);
  EXPECT_EQ(pool->Residency().size(), 10u);
  rig.cache().Clear();
  // Not even the store is asked for it.
  rig.store().hooks.before_wait_layer = [](uint32_t) { return Unavailable("away"); };
  const auto second = rig.Restore(tokens, 1, RestoreOver(pool.get()));
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->tokens, 155u);
  EXPECT_EQ(second->wrong, "");
  EXPECT_EQ(second->pooled_tokens, 155u);
  EXPECT_EQ(second->report.copied_bytes, 0u);
  EXPECT_GT(second->report.pooled_bytes, 9 * kChunkBytes);
}

TEST(PooledPipeline, WhatWasSavedIsThereForTheNextTurn) {
  PipelineRig rig({.max_random_delay = absl::Microseconds(50)});
  const auto pool = MakePool(rig, 20);
  auto tokens = Tokens(2, 96);
  const auto saved = rig.Save(tokens, 0, 2, SaveOver(pool.get()));
  ASSERT_TRUE(saved.ok()) << saved.status();
  const auto more = Tokens(3, 64);
  tokens.insert(tokens.end(), more.begin(), more.end());
  const auto pooled = rig.Restore(tokens, 2, RestoreOver(pool.get()));
  ASSERT_TRUE(pooled.ok()) << pooled.status();
  EXPECT_EQ(pooled->pooled_tokens, 96u);
  EXPECT_EQ(pooled->wrong, "");
  // And in the store it is the same.
  const auto loaded = rig.Restore(tokens, 2, kSmallRestore);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->tokens, 96u);
  EXPECT_EQ(loaded->wrong, "");
}

TEST(PooledPipeline, WithoutATicketItEndsBeforeTheFirstChunkThatIsNotThere) {
  PipelineRig rig({.max_random_delay = absl::Microseconds(50)});
  const auto pool = MakePool(rig, 20);
  const auto tokens = Tokens(6, 155);
  ASSERT_TRUE(rig.Save(tokens, 0, 6, SaveOver(pool.get())).ok());
  ContextSpans spans;
  {
    auto ticket =
        rig.store().BeginRestore({.prompt = {.tokens = tokens}, .layout = rig.fingerprint()});
    spans = SpansOf(**ticket);
  }
  rig.store().hooks.before_begin = [] { return Unavailable("away"); };
  const auto all = rig.RestorePooled(spans, 6, RestoreOver(pool.get()));
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->tokens, 155u);
  EXPECT_EQ(all->wrong, "");
  EXPECT_EQ(all->report.copied_bytes, 0u);
  rig.cache().Clear();
  ASSERT_TRUE(pool->Drop(spans[3].chunk).ok());
  const auto part = rig.RestorePooled(spans, 6, RestoreOver(pool.get()));
  ASSERT_TRUE(part.ok()) << part.status();
  EXPECT_EQ(part->tokens, 48u);
  EXPECT_EQ(part->wrong, "");
  ASSERT_TRUE(pool->Drop(spans[0].chunk).ok());
  const auto none = rig.RestorePooled(spans, 6, RestoreOver(pool.get()));
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->tokens, 0u);
  EXPECT_FALSE(rig.RestorePooled(spans, 6, kSmallRestore).ok());
}

TEST(PooledPipeline, ALostStoreCostsOnlyWhatIsNotPooled) {
  PipelineRig rig({});
  const auto pool = MakePool(rig, 20);
  const auto tokens = Tokens(4, 160);
  const auto part = std::vector<uint32_t>(tokens.begin(), tokens.begin() + 64);
  const auto saved = rig.Save(part, 0, 4, SaveOver(pool.get()));
  ASSERT_TRUE(saved.ok()) << saved.status();
  ASSERT_TRUE(rig.Save(tokens, saved->generation, 4, kSmallSave).ok());
  rig.store().hooks.before_wait_layer = [](uint32_t layer) {
    return layer < 2 ? absl::OkStatus() : Unavailable("the daemon is away");
  };
  const auto restored = rig.Restore(tokens, 4, RestoreOver(pool.get()));
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->tokens, 64u);
  EXPECT_EQ(restored->wrong, "");
  EXPECT_NE(restored->report.trouble.find("away"), std::string::npos);
  EXPECT_EQ(pool->Residency().size(), 4u);  // what did not come whole is not kept
}

TEST(PooledPipeline, EveryByteIsRightInAPoolThatIsTooSmall) {
  constexpr uint64_t kSeed = 5;
  RecordProperty("seed", static_cast<int>(kSeed));
  PipelineRig rig({.max_random_delay = absl::Microseconds(50), .seed = kSeed});
  const auto pool = MakePool(rig, 7);
  PipelineLanes lanes(rig.device(), {.budget_bytes = 64 * kKiB});
  LayerSaveOptions save = SaveOver(pool.get());
  LayerRestoreOptions restore = RestoreOver(pool.get());
  save.lanes = restore.lanes = &lanes;
  std::mt19937_64 random(kSeed);
  uint64_t generation = 0;
  uint64_t pooled = 0;
  for (int round = 0; round < 60; ++round) {
    const uint64_t salt = random() % 4;  // of four contexts that come back again and again
    const auto tokens = Tokens(100 + salt, 1 + random() % 200);
    const auto saved = rig.Save(tokens, generation, salt, save);
    ASSERT_TRUE(saved.ok()) << saved.status();
    generation = saved->generation;
    rig.cache().Clear();
    const auto restored = rig.Restore(tokens, salt, restore);
    ASSERT_TRUE(restored.ok()) << restored.status();
    ASSERT_EQ(restored->tokens, tokens.size()) << restored->report.trouble;
    ASSERT_EQ(restored->wrong, "") << "round " << round;
    pooled += restored->pooled_tokens;
  }
  EXPECT_GT(pooled, 0u);
  EXPECT_GT(pool->counters().evictions, 0u);
}

TEST(PooledPipeline, DamageIsNeverKept) {
  PipelineRig rig({});
  const auto pool = MakePool(rig, 20);
  const auto tokens = Tokens(8, 160);
  ASSERT_TRUE(rig.Save(tokens, 0, 8, kSmallSave).ok());
  {
    auto ticket =
        rig.store().BeginRestore({.prompt = {.tokens = tokens}, .layout = rig.fingerprint()});
    ASSERT_EQ((*ticket)->WaitLayer(4).value(), 160u);
    const auto page = (*ticket)->Page(3, 4);  // tokens 48..63 of the last layer
    const_cast<std::byte&>(page[100]) ^= std::byte{4};
  }
  const auto restored = rig.Restore(tokens, 8, RestoreOver(pool.get()));
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->tokens, 48u);
  EXPECT_EQ(restored->wrong, "");
  EXPECT_EQ(pool->Residency().size(), 3u);
}

TEST(PooledPipeline, WhatIsGivenUpLeavesThePoolAsItWas) {
  PipelineRig rig({.to_device_bytes_per_s = 2e6, .to_host_bytes_per_s = 2e6});
  const auto pool = MakePool(rig, 6);
  const auto tokens = Tokens(10, 64);
  ASSERT_TRUE(rig.Save(tokens, 0, 10, kSmallSave).ok());
  {
    auto ticket =
        rig.store().BeginRestore({.prompt = {.tokens = tokens}, .layout = rig.fingerprint()});
    auto restore = LayerRestore::Start(rig.device(), rig.layout(), std::move(*ticket),
                                       RestoreOver(pool.get()));
    ASSERT_TRUE(restore.ok());
    auto save = rig.store().BeginSave(
        {.session = "other", .layout = rig.fingerprint(), .prompt = {.tokens = Tokens(11, 64)}});
    auto saving = LayerSave::Start(rig.device(), rig.layout(), std::move(*save), rig.cache(),
                                   SaveOver(pool.get()));
    ASSERT_TRUE(saving.ok());
    const auto compute = rig.device().NewStream().value();
    ASSERT_TRUE((*saving)->LayerComputed(0, *compute).ok());
  }
  for (const auto& chunk : pool->Residency())
    EXPECT_EQ(chunk.bytes, kChunkBytes);  // whole ones, if the restore came that far
  const auto restored = rig.Restore(tokens, 10, RestoreOver(pool.get()));
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->tokens, 64u);
  EXPECT_EQ(restored->wrong, "");
  EXPECT_EQ(pool->Residency().size(), 4u);
}

// The store's copy and the pool's may have been rotated for different places.
TEST(PooledPipeline, AChunkKeepsThePositionItWasPooledWith) {
  PipelineRig rig({});
  const auto pool = MakePool(rig, 20);
  const auto tokens = Tokens(12, 64);
  LayerSaveOptions save = SaveOver(pool.get());
  save.position_offset = 7;
  ASSERT_TRUE(rig.Save(tokens, 0, 12, save).ok());
  // The same tokens, stored anew for other positions.
  ASSERT_TRUE(rig.store().DropSession("s").ok());
  ASSERT_TRUE(rig.Save(tokens, 0, 12, kSmallSave).ok());
  rig.cache().ExpectPositions(7);
  const auto restored = rig.Restore(tokens, 12, RestoreOver(pool.get()));
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->pooled_tokens, 64u);
  EXPECT_EQ(rig.cache().wrong_positions(), 0u);
  rig.cache().ExpectPositions(0);
  ASSERT_TRUE(rig.Restore(tokens, 12, kSmallRestore).ok());
  EXPECT_EQ(rig.cache().wrong_positions(), 0u);
}

TEST(PipelineLanes, TheSecondTurnAllocatesNothing) {
  PipelineRig rig({});
  PipelineLanes lanes(rig.device(), {.budget_bytes = 64 * kKiB});
  LayerSaveOptions save = kSmallSave;
  LayerRestoreOptions restore = kSmallRestore;
  save.lanes = restore.lanes = &lanes;
  uint64_t generation = 0;
  for (int turn = 0; turn < 4; ++turn) {
    const auto tokens = Tokens(20, 100 + 20 * turn);
    const auto restored = rig.Restore(tokens, 20, restore);
    ASSERT_TRUE(restored.ok()) << restored.status();
    ASSERT_EQ(restored->wrong, "");
    const auto saved = rig.Save(tokens, generation, 20, save);
    ASSERT_TRUE(saved.ok()) << saved.status();
    generation = saved->generation;
  }
  const auto counters = lanes.counters();
  EXPECT_LE(counters.made, 2u);  // the first restore is a miss and needs little
  EXPECT_EQ(counters.made + counters.reused, 8u);
  EXPECT_EQ(counters.leased_bytes, 0u);
  EXPECT_EQ(counters.kept_bytes, rig.device().allocated_bytes());
}

TEST(PipelineLanes, AllLanesTogetherStayInsideTheBudget) {
  HostDevice device;
  PipelineLanes lanes(device, {.budget_bytes = 10'240});
  const StagingRing::Options ring{.budget_bytes = 8192, .piece_bytes = 1024, .total_bytes = 9000};
  {
    const auto one = lanes.Take(ring);
    ASSERT_TRUE(one.ok()) << one.status();
    EXPECT_EQ((*one)->ring.memory_bytes(), 8192u);
    const auto two = lanes.Take(ring);  // gets what is left
    ASSERT_TRUE(two.ok()) << two.status();
    EXPECT_EQ((*two)->ring.memory_bytes(), 2048u);
    EXPECT_EQ(lanes.Take(ring).status().code(), absl::StatusCode::kResourceExhausted);
  }
  EXPECT_EQ(lanes.counters().kept_bytes, 10'240u);
  // One that fits none of the kept ones: they make room.
  const auto large = lanes.Take({.budget_bytes = 9216, .piece_bytes = 4096, .total_bytes = 9000});
  ASSERT_TRUE(large.ok()) << large.status();
  EXPECT_LE(device.allocated_bytes(), 10'240u);
}

}  // namespace
}  // namespace turnkeep::testing
