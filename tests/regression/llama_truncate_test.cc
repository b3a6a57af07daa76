// A conversation whose context overflows again and again: the oldest half goes, the stored rest
// stays valid at its new positions, and the answers are those of a cache that was truncated in the
// same way and never stored. With positions baked into the keys they are not.
#include <gtest/gtest.h>

#include <random>

#include "llama/conversation.h"
#include "regression/llama_testing.h"
#include "store/store.h"
#include "testing/temporary_directory.h"

namespace turnkeep::llama {
namespace {

using testing::RandomModel;
using testing::RandomTokens;
using turnkeep::testing::TemporaryDirectory;

constexpr char kShape[] = "dim=64,layers=3,heads=4,kv_heads=2,hidden=128,vocab=300,context=160";
constexpr uint32_t kTurns = 16;

struct Conversed {
  std::vector<TurnRow> rows;
  uint32_t overflows = 0;
};

Conversed Converse(const Model& model, const Engine::Options& engine_options, bool raw_keys,
                   DType dtype, KvStore* store, KvDevice* device = nullptr) {
  Conversed run;
  const auto engine = *Engine::Create(&model, engine_options);
  auto conversation = Conversation::Create(engine.get(), store,
                                           {.session = "s",
                                            .dtype = dtype,
                                            .raw_keys = raw_keys,
                                            .answer_tokens = 12,
                                            .chunk_tokens = 16,
                                            .truncate_oldest_half = true,
                                            .device = device});
  EXPECT_TRUE(conversation.ok()) << conversation.status();
  std::mt19937_64 random(11);
  for (uint32_t turn = 0; turn < kTurns; ++turn) {
    const auto row = (*conversation)->Turn(RandomTokens(&random, 300, 20));
    EXPECT_TRUE(row.ok()) << row.status();
    if (!row.ok()) return run;
    run.overflows += row->dropped_tokens > 0 ? 1 : 0;
    run.rows.push_back(*row);
  }
  return run;
}

class TruncateFixture : public ::testing::Test {
 protected:
  std::unique_ptr<KvStore> OpenStore(const std::string& name) {
    auto store = Store::Open({.data_dir = directory_.path() + "/" + name});
    EXPECT_TRUE(store.ok()) << store.status();
    stores_.push_back(*std::move(store));
    return *stores_.back()->ForTenant("default");
  }
  TemporaryDirectory directory_;
  std::vector<std::unique_ptr<Store>> stores_;
  const std::unique_ptr<Model> model_ = RandomModel(kShape);
};

class Truncate : public TruncateFixture, public ::testing::WithParamInterface<bool> {};
using TruncateBaked = TruncateFixture;

TEST_P(Truncate, TheCacheStaysValidThroughThreeOverflows) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    SCOPED_TRACE(std::string(NameOf(dtype)));
    const auto kv = OpenStore(std::string(NameOf(dtype)));
    const Conversed run = Converse(*model_, {}, GetParam(), dtype, kv.get());
    ASSERT_EQ(run.rows.size(), kTurns);
    EXPECT_GE(run.overflows, 3u);
    for (size_t turn = 0; turn < run.rows.size(); ++turn) {
      const TurnRow& row = run.rows[turn];
      EXPECT_TRUE(row.identical || (dtype == DType::kBFloat16 && !GetParam())) << "turn " << turn;
      if (turn == 0) continue;
      // All but the user's turn and the last answer's last token come back.
      EXPECT_EQ(row.restored_host_tokens + row.restored_disk_tokens, row.context_tokens - 21)
          << "turn " << turn << ": " << row.miss_reason;
    }
  }
}

// The same with chunks that stay in the page pool between turns, and a pool that is too small.
TEST_P(Truncate, TheCacheStaysValidWithChunksInThePagePool) {
  for (const uint64_t pool_bytes : {uint64_t{1} << 20, uint64_t{1} << 16}) {
    SCOPED_TRACE(pool_bytes);
    const auto kv = OpenStore(std::to_string(pool_bytes));
    KvDevice device({.pool_bytes = pool_bytes});
    const Conversed run = Converse(*model_, {}, GetParam(), DType::kFloat32, kv.get(), &device);
    ASSERT_EQ(run.rows.size(), kTurns);
    EXPECT_GE(run.overflows, 3u);
    uint64_t pooled = 0;
    for (size_t turn = 1; turn < run.rows.size(); ++turn) {
      const TurnRow& row = run.rows[turn];
      EXPECT_TRUE(row.identical) << "turn " << turn;
      EXPECT_EQ(row.pooled_tokens + row.restored_host_tokens + row.restored_disk_tokens,
                row.context_tokens - 21)
          << "turn " << turn << ": " << row.miss_reason;
      if (pool_bytes >= 1 << 20) {
        EXPECT_EQ(row.pooled_tokens, row.context_tokens - 21);
      }
      pooled += row.pooled_tokens;
    }
    EXPECT_GT(pooled, 0u);
    // The store shows what the pool holds.
    EXPECT_GT(kv->StatSession("s")->gpu_bytes, 0u);
    EXPECT_EQ(kv->Explain({.session = "s"})->gpu.size(), 1u);
  }
}

TEST_F(TruncateBaked, WithPositionsBakedInTheAnswersAreOthers) {
  const Conversed right = Converse(*model_, {}, false, DType::kFloat32, nullptr);
  const auto kv = OpenStore("baked");
  const Conversed baked =
      Converse(*model_, {.bake_positions = true}, false, DType::kFloat32, kv.get());
  ASSERT_EQ(right.rows.size(), kTurns);
  ASSERT_EQ(baked.rows.size(), kTurns);
  bool truncated = false;
  uint32_t different = 0;
  for (size_t turn = 0; turn < kTurns; ++turn) {
    truncated = truncated || right.rows[turn].dropped_tokens > 0;
    if (!truncated) {
      EXPECT_EQ(right.rows[turn].answer, baked.rows[turn].answer) << "turn " << turn;
    } else if (right.rows[turn].answer != baked.rows[turn].answer) {
      ++different;
    }
  }
  EXPECT_GE(different, 3u);
}

INSTANTIATE_TEST_SUITE_P(Keys, Truncate, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "raw" : "rotated"; });

}  // namespace
}  // namespace turnkeep::llama
