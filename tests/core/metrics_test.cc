#include "core/metrics.h"

#include <cstdint>
#include <limits>
#include <random>
#include <thread>

#include <gtest/gtest.h>

namespace turnkeep {
namespace {

TEST(LatencyHistogram, BucketsTileTheLine) {
  EXPECT_EQ(LatencyHistogram::BucketOf(0), 0u);
  EXPECT_EQ(LatencyHistogram::BucketOf(std::numeric_limits<uint64_t>::max()),
            LatencyHistogram::kBuckets - 1);
  for (uint32_t i = 1; i < LatencyHistogram::kBuckets; ++i) {
    const uint64_t lower = LatencyHistogram::LowerBoundNs(i);
    EXPECT_EQ(LatencyHistogram::BucketOf(lower), i);
    EXPECT_EQ(LatencyHistogram::BucketOf(lower - 1), i - 1);
  }
  EXPECT_EQ(LatencyHistogram::LowerBoundNs(1), 256u);
}

TEST(LatencyHistogram, QuantilesAreWithinABucketOfTheTruth) {
  constexpr unsigned kSeed = 5;
  std::mt19937_64 random(kSeed);
  LatencyHistogram histogram;
  std::vector<double> samples;
  uint64_t sum_ns = 0;
  for (int i = 0; i < 100'000; ++i) {
    const auto ns = static_cast<int64_t>(std::exp(7.0 + 14.0 * (random() % 10000) / 10000.0));
    histogram.RecordNs(ns);
    samples.push_back(static_cast<double>(ns));
    sum_ns += static_cast<uint64_t>(ns);
  }
  std::sort(samples.begin(), samples.end());
  const LatencyHistogram::Reading reading = histogram.Read();
  EXPECT_EQ(reading.count, samples.size());
  EXPECT_EQ(reading.sum_ns, sum_ns);
  for (const double q : {0.01, 0.25, 0.5, 0.9, 0.99, 0.999}) {
    const double truth = samples[static_cast<size_t>(q * static_cast<double>(samples.size()))];
    EXPECT_NEAR(reading.QuantileNs(q) / truth, 1.0, 0.25) << q << " seed " << kSeed;
  }
  EXPECT_LE(reading.QuantileNs(0.5), reading.QuantileNs(0.5001));
}

TEST(LatencyHistogram, EdgesAreDefined) {
  LatencyHistogram histogram;
  EXPECT_EQ(histogram.Read().QuantileNs(0.99), 0.0);
  histogram.RecordNs(-5);
  EXPECT_EQ(histogram.Read().counts[0], 1u);
  histogram.RecordNs(std::numeric_limits<int64_t>::max());
  EXPECT_NEAR(histogram.Read().QuantileNs(1.0), 275e9, 1e9);
}

TEST(LatencyHistogram, CumulativeBucketsRiseToTheCount) {
  LatencyHistogram histogram;
  for (const int64_t ns : {1, 255, 256, 1023, 1024, 5'000'000}) histogram.RecordNs(ns);
  const auto buckets = histogram.Read().Cumulative();
  EXPECT_DOUBLE_EQ(buckets[0].upper_s, 256e-9);
  EXPECT_EQ(buckets[0].count, 2u);
  EXPECT_DOUBLE_EQ(buckets[1].upper_s, 1024e-9);
  EXPECT_EQ(buckets[1].count, 4u);
  EXPECT_EQ(buckets.back().count, 6u);
  EXPECT_TRUE(std::isinf(buckets.back().upper_s));
  for (size_t i = 1; i < buckets.size(); ++i) {
    EXPECT_LE(buckets[i - 1].count, buckets[i].count);
    EXPECT_LT(buckets[i - 1].upper_s, buckets[i].upper_s);
  }
}

TEST(LatencyHistogram, ThreadsLoseNoSample) {
  LatencyHistogram histogram;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20'000; ++i) histogram.RecordNs(1000 + i % 3);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(histogram.Read().count, 80'000u);
}

}  // namespace
}  // namespace turnkeep
