// CachedAttention's buffer formula, and what stall is predicted with it.
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "core/units.h"
#include "gpu_tier/pipeline_rates.h"
#include "gpu_tier/read_buffer.h"

namespace turnkeep::testing {
namespace {

// LLaMA-65B on four A100s as the paper's motivation gives it: 2.5 MB a token, 26 GB/s, 2K tokens
// loaded in 192 ms and prefilled in 360 ms.
constexpr ReadBufferInput kPaper65B{.link_bytes_per_s = 26e9,
                                    .load_s_per_token = 0.192 / 2048,
                                    .prefill_s_per_token = 0.360 / 2048,
                                    .budget_bytes = 10 * kGiB};

TEST(ReadBuffer, HoldsWhatTheLinkCarriesInTheTimeLoadingIsLonger) {
  ReadBufferInput input = kPaper65B;
  input.history_tokens = 2048;
  input.new_tokens = 100;
  // 192 ms of loading, 17.6 ms of computing: 174.4 ms at 26 GB/s.
  EXPECT_NEAR(static_cast<double>(ReadBufferBytes(input)), 26e9 * (0.192 - 0.360 * 100 / 2048),
              1.0);
}

TEST(ReadBuffer, IsEmptyWhereComputingIsLonger) {
  ReadBufferInput input = kPaper65B;
  input.history_tokens = 500;
  input.new_tokens = 1000;
  EXPECT_EQ(ReadBufferBytes(input), 0u);
  input.history_tokens = 0;
  input.new_tokens = 0;
  EXPECT_EQ(ReadBufferBytes(input), 0u);
}

TEST(ReadBuffer, NeverPassesTheBudget) {
  ReadBufferInput input = kPaper65B;
  input.history_tokens = 500'000;
  EXPECT_EQ(ReadBufferBytes(input), 10 * kGiB);
  input.link_bytes_per_s = 1e300;
  EXPECT_EQ(ReadBufferBytes(input), 10 * kGiB);
  input.link_bytes_per_s = -5;
  EXPECT_EQ(ReadBufferBytes(input), 0u);
}

struct Loop {
  explicit Loop(double load_s, double compute_s, size_t layers = 32)
      : bytes(layers, 1'000'000), compute(layers, compute_s), rate(1'000'000 / load_s) {}
  double Stall(uint64_t preloaded) const {
    return PredictStallSeconds({.layer_bytes = bytes,
                                .layer_compute_s = compute,
                                .link_bytes_per_s = rate,
                                .preloaded_bytes = preloaded});
  }
  std::vector<uint64_t> bytes;
  std::vector<double> compute;
  double rate;
};

TEST(PredictedStall, IsOneLayerWhereLoadingIsNoSlower) {
  const Loop loop(0.001, 0.002);
  EXPECT_NEAR(loop.Stall(0), 0.001, 1e-9);
  EXPECT_NEAR(loop.Stall(1'000'000), 0.0, 1e-9);
}

TEST(PredictedStall, IsTheDifferenceWhereLoadingIsSlower) {
  const Loop loop(0.003, 0.002);
  // The last layer is there after 96 ms, and 31 layers have computed 62 ms by then.
  EXPECT_NEAR(loop.Stall(0), 0.096 - 0.062, 1e-9);
}

// The formula's buffer, and one layer for the pipeline's start, leave nothing.
TEST(PredictedStall, VanishesWithTheBufferOfTheFormula) {
  for (const double load_s : {0.0021, 0.003, 0.008, 0.05}) {
    const Loop loop(load_s, 0.002);
    const uint64_t buffer = ReadBufferBytes({.link_bytes_per_s = loop.rate,
                                             .load_s_per_token = load_s,
                                             .prefill_s_per_token = 0.002,
                                             .history_tokens = 32,
                                             .new_tokens = 32,
                                             .budget_bytes = kGiB});
    EXPECT_NEAR(loop.Stall(buffer + 1'000'000), 0.0, 1e-9) << load_s;
    if (load_s > 0.003) {
      EXPECT_GT(loop.Stall(buffer / 2), 0.01) << load_s;
    }
  }
}

TEST(PredictedStall, FallsWithTheBuffer) {
  const Loop loop(0.005, 0.002);
  double before = loop.Stall(0);
  for (uint64_t buffer = 500'000; buffer <= 32'000'000; buffer += 500'000) {
    const double now = loop.Stall(buffer);
    EXPECT_LE(now, before + 1e-12) << buffer;
    before = now;
  }
  EXPECT_EQ(before, 0.0);
}

// From what was seen: 4 ms a token of 1 MB to load, 1 ms to compute.
TEST(PipelineRates, PredictBufferAndStallFromTheTurnsBefore) {
  PipelineRates rates;
  const PipelineRates::Job job{
      .history_tokens = 100, .new_tokens = 200, .layers = 10, .budget_bytes = kGiB};
  EXPECT_FALSE(rates.Predict(job).has_value());
  rates.Loaded(50, 50'000'000, 0.2);
  EXPECT_FALSE(rates.Predict(job).has_value());
  rates.Computed(400, 0.4);
  const auto prediction = rates.Predict(job);
  ASSERT_TRUE(prediction.has_value());
  // Loading takes 0.4 s, computing 0.2 s; the link carries 50 MB in the difference.
  EXPECT_NEAR(static_cast<double>(prediction->buffer_bytes), 50e6, 10);
  // Without a head start the last layer's compute alone comes after loading.
  EXPECT_NEAR(prediction->stall_s, 0.4 - 0.2 + 0.02, 1e-6);
  // A turn that was slower moves the next prediction half of the way.
  rates.Loaded(50, 50'000'000, 0.4);
  EXPECT_NEAR(rates.Predict(job)->stall_s, 0.6 - 0.2 + 0.02, 1e-6);
  // Nothing to load, nothing to wait for; what was not measured is left out.
  rates.Loaded(0, 0, 1);
  EXPECT_EQ(rates.Predict({.new_tokens = 200, .layers = 10, .budget_bytes = kGiB})->stall_s, 0);
}

}  // namespace
}  // namespace turnkeep::testing
