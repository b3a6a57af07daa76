// The engine with its KV pages in a device's memory, as `turnkeep-llama --device cuda` has them; a
// HostDevice with memory of its own stands in for the GPU. Where there is one, it is used as well.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/status.h"
#include "core/units.h"
#include "llama/conversation.h"
#include "regression/llama_testing.h"
#include "store/store.h"

namespace turnkeep::llama {
namespace {

using testing::RandomModel;
using testing::RandomTokens;

constexpr uint32_t kVocab = 300;

enum class Where { kStandIn, kCuda };
struct Case {
  const char* name;
  Where where = Where::kStandIn;
  DType dtype = DType::kFloat32;
  bool raw = false;
};

class LlamaDevice : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    model_ = RandomModel("dim=256,layers=3,heads=4,kv_heads=2,hidden=200,vocab=300,context=200");
    engine_ = std::move(*Engine::Create(model_.get(), {.threads = 2}));
    store_ = Store::Open({.host_bytes = 64 * kMiB, .host_segment_bytes = 4 * kMiB}).value();
    kv_ = store_->ForTenant("default").value();
    if (GetParam().where == Where::kStandIn) return;
    auto side = CudaSide();
    if (!side.ok()) GTEST_SKIP() << side.status().message();
  }
  std::unique_ptr<KvDevice> MakeDevice(uint64_t pool_bytes) {
    KvSide side =
        GetParam().where == Where::kCuda
            ? CudaSide().value()
            : HostSideWithPages(
                  {.memory_bytes = kGiB, .max_random_delay = absl::Microseconds(20), .seed = 7});
    return std::make_unique<KvDevice>(KvDevice::Options{.pool_bytes = pool_bytes}, std::move(side));
  }
  Conversation::Options Options(KvDevice* device) {
    Conversation::Options options{.session = "s",
                                  .dtype = GetParam().dtype,
                                  .raw_keys = GetParam().raw,
                                  .answer_tokens = 6,
                                  .chunk_tokens = 16,
                                  .device = device};
    options.log = [this](const std::string& line) { log_.push_back(line); };
    return options;
  }

  std::mt19937_64 random_{5};
  std::unique_ptr<Model> model_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<KvStore> kv_;
  std::vector<std::string> log_;
};

TEST_P(LlamaDevice, ATurnGivesTheBitsOfOneComputedFromNothing) {
  for (const uint64_t pool_bytes : {uint64_t{0}, uint64_t{4} * kMiB}) {
    SCOPED_TRACE(pool_bytes);
    const auto device = MakeDevice(pool_bytes);
    Conversation::Options options = Options(device.get());
    options.session = fmt::format("s{}", pool_bytes);
    const auto conversation = Conversation::Create(engine_.get(), kv_.get(), options).value();
    for (int turn = 0; turn < 3; ++turn) {
      const auto row = conversation->Turn(RandomTokens(&random_, kVocab, 40));
      ASSERT_TRUE(row.ok()) << row.status();
      EXPECT_TRUE(row->identical) << "turn " << turn;
      const uint64_t before = 46u * turn;  // the last token of an answer has no KV
      EXPECT_EQ(pool_bytes > 0 ? row->pooled_tokens : row->restored_host_tokens,
                turn == 0 ? 0 : before - 1);
    }
  }
  EXPECT_THAT(log_, ::testing::IsEmpty());
}

TEST_P(LlamaDevice, TheCacheStaysValidWhereTheContextOverflows) {
  const auto device = MakeDevice(4 * kMiB);
  Conversation::Options options = Options(device.get());
  options.truncate_oldest_half = true;
  const auto conversation = Conversation::Create(engine_.get(), kv_.get(), options).value();
  int overflows = 0;
  for (int turn = 0; turn < 8; ++turn) {
    const auto row = conversation->Turn(RandomTokens(&random_, kVocab, 50));
    ASSERT_TRUE(row.ok()) << row.status();
    EXPECT_TRUE(row->identical) << "turn " << turn;
    overflows += row->dropped_tokens > 0 ? 1 : 0;
  }
  EXPECT_GE(overflows, 2);
  EXPECT_THAT(log_, ::testing::IsEmpty());
}

// Another order of float32 sums than the engine's own attention, and nothing else. Of bfloat16 the
// device rounds queries as well, so it is float32 in every case.
TEST_P(LlamaDevice, LogitsAreThoseOfPagesInHostMemory) {
  const auto device = MakeDevice(0);
  const auto context = RandomTokens(&random_, kVocab, 150);
  std::vector<float> logits[2];
  for (int i = 0; i < 2; ++i) {
    const auto cache = engine_
                           ->NewCache({.keep_raw_keys = GetParam().raw,
                                       .pages = i == 0 ? nullptr : device->pages()})
                           .value();
    Sequence sequence(cache.get());
    logits[i].resize(kVocab);
    ASSERT_TRUE(engine_->Prefill(&sequence, context, 0, nullptr, logits[i]).ok());
  }
  for (uint32_t i = 0; i < kVocab; ++i)
    ASSERT_NEAR(logits[0][i], logits[1][i], 1e-3f * (1 + std::abs(logits[0][i]))) << i;
}

INSTANTIATE_TEST_SUITE_P(
    Cases, LlamaDevice,
    ::testing::Values(Case{"float32_rotated"},
                      Case{"float32_raw", Where::kStandIn, DType::kFloat32, true},
                      Case{"bfloat16_rotated", Where::kStandIn, DType::kBFloat16},
                      Case{"bfloat16_raw", Where::kStandIn, DType::kBFloat16, true},
                      Case{"cuda_float32_rotated", Where::kCuda},
                      Case{"cuda_bfloat16_raw", Where::kCuda, DType::kBFloat16, true}),
    [](const auto& info) { return info.param.name; });

TEST(LlamaCuda, WithoutAGpuSaysSo) {
  const auto side = CudaSide();
  if (side.ok()) GTEST_SKIP() << "there is one";
  EXPECT_EQ(side.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(side.status().message()), ::testing::HasSubstr("--device cuda: "));
}

}  // namespace
}  // namespace turnkeep::llama
