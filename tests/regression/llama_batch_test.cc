// Many sequences under one system prompt, decoded together through attention plans, against each of
// them decoded alone.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/status.h"
#include "llama/batch_decoder.h"
#include "regression/llama_testing.h"

namespace turnkeep::llama {
namespace {

using testing::RandomModel;
using testing::RandomTokens;

constexpr uint32_t kVocab = 300;
constexpr uint32_t kSequences = 9;
constexpr uint32_t kSystem = 75;  // not a multiple of the page

class BatchPages : public ::testing::Test {
 protected:
  BatchPages() {
    cache_ = *engine_->NewCache({.token_count = 4096});
    std::mt19937_64 random(5);
    const auto system_tokens = RandomTokens(&random, kVocab, kSystem);
    std::vector<float> logits(kVocab);
    system_ = std::make_unique<Sequence>(cache_.get());
    EXPECT_TRUE(engine_->Prefill(system_.get(), system_tokens, 0, nullptr, logits).ok());
    for (uint32_t i = 0; i < kSequences; ++i) {
      sequences_.push_back(std::make_unique<Sequence>(cache_.get()));
      EXPECT_TRUE(sequences_[i]->ShareFrom(*system_, kSystem).ok());
      const auto user = RandomTokens(&random, kVocab, 3 + 5 * i);
      EXPECT_TRUE(engine_->Prefill(sequences_[i].get(), user, kSystem, nullptr, logits).ok());
      tokens_.push_back(kSystem + static_cast<uint32_t>(user.size()));
      last_.push_back(static_cast<uint32_t>(i * 7 % kVocab));
    }
  }
  // The logits of one step of a sequence by itself; its KV is written again with the same bits.
  std::vector<float> Alone(size_t i) {
    std::vector<float> logits(kVocab);
    EXPECT_TRUE(
        engine_->Prefill(sequences_[i].get(), {&last_[i], 1}, tokens_[i], nullptr, logits).ok());
    return logits;
  }

  const std::unique_ptr<Model> model_ =
      RandomModel("dim=64,layers=3,heads=4,kv_heads=2,hidden=128,vocab=300,context=256");
  const std::unique_ptr<Engine> engine_ = *Engine::Create(model_.get(), {});
  std::unique_ptr<PagedKvCache> cache_;
  std::unique_ptr<Sequence> system_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<uint32_t> tokens_;
  std::vector<uint32_t> last_;
};

class BatchTest : public BatchPages, public ::testing::WithParamInterface<std::string_view> {};

TEST_P(BatchTest, GivesEachSequenceTheLogitsItHasAlone) {
  const auto batch = BatchDecoder::Create(engine_.get(), cache_.get(), GetParam());
  ASSERT_TRUE(batch.ok()) << batch.status();
  for (uint32_t i = 0; i < kSequences; ++i) (*batch)->Join(sequences_[i].get(), tokens_[i]);
  std::vector<float> logits(kSequences * kVocab);
  for (int step = 0; step < 40; ++step) {
    const absl::Status status = (*batch)->Step(last_, logits);
    ASSERT_TRUE(status.ok()) << status;
    for (uint32_t i = 0; i < kSequences; ++i) {
      const std::vector<float> alone = Alone(i);
      for (uint32_t v = 0; v < kVocab; ++v)
        ASSERT_NEAR(logits[i * kVocab + v], alone[v], 2e-4 * (1 + std::abs(alone[v])))
            << "step " << step << " sequence " << i << " token " << v;
      ++tokens_[i];
      last_[i] = Greedy(alone);
    }
  }
  if (GetParam() == "two_phase") {
    EXPECT_LE((*batch)->plan_count(), 2u) << "decode steps are patched";
  }
}

INSTANTIATE_TEST_SUITE_P(Planners, BatchTest,
                         ::testing::Values("per_sequence", "two_phase", "flatten_tree", "auto"),
                         [](const auto& info) { return std::string(info.param); });

TEST_F(BatchPages, SharedPagesAreHeldUntilTheLastOneLetsGo) {
  const uint32_t page_tokens = cache_->options().page_tokens;
  const uint32_t before = cache_->free_pages();
  system_.reset();
  // The whole pages are the others' still; the rest was copied.
  EXPECT_EQ(cache_->free_pages(), before + 1);
  uint32_t own = 0;
  for (const uint32_t tokens : tokens_)
    own += (tokens + page_tokens - 1) / page_tokens - kSystem / page_tokens;
  sequences_.clear();
  EXPECT_EQ(cache_->free_pages(), before + 1 + own + kSystem / page_tokens);
  EXPECT_EQ(cache_->free_pages(), cache_->options().page_count);
}

TEST_F(BatchPages, WhatCannotBeDecodedTogetherIsNamed) {
  const auto brains = *engine_->NewCache({.dtype = DType::kBFloat16});
  Sequence sequence(brains.get());
  ASSERT_TRUE(sequence.Reserve(4).ok());
  const Engine::Row row{&sequence, 1, 0};
  std::vector<float> logits(kVocab);
  EXPECT_NE(MessageOf(engine_->Decode({&row, 1}, {}, logits)).find("bfloat16"), std::string::npos);
  EXPECT_FALSE(BatchDecoder::Create(engine_.get(), cache_.get(), "best").ok());
}

}  // namespace
}  // namespace turnkeep::llama
