// A latency histogram: fixed buckets, a few atomic additions a sample, quantiles by
// interpolation.
//
// Counters need no class of their own: std::atomic<uint64_t> is one.
//
// Thread-safe: any thread records and reads. A reading is not one instant: samples recorded
// meanwhile may be in it or not, but its buckets and its count always agree.
//
//   LatencyHistogram restore_latency;
//   restore_latency.RecordNs(clock->NowNs() - start_ns);
//   double p99_us = restore_latency.Read().QuantileNs(0.99) / 1e3;
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace turnkeep {

class LatencyHistogram {
 public:
  // Four buckets an octave from 256 ns to 275 s, so that a quantile is within 25% of the
  // truth; below and above lies one bucket each.
  static constexpr uint32_t kMinOctave = 8;
  static constexpr uint32_t kMaxOctave = 37;
  static constexpr uint32_t kBucketsPerOctave = 4;
  static constexpr uint32_t kBuckets = (kMaxOctave - kMinOctave + 1) * kBucketsPerOctave + 2;

  // Samples below `upper_s` seconds, as Prometheus wants its buckets.
  struct CumulativeBucket {
    double upper_s = 0;  // infinity for the last
    uint64_t count = 0;
  };

  struct Reading {
    std::array<uint64_t, kBuckets> counts{};
    uint64_t count = 0;  // sum of counts
    uint64_t sum_ns = 0;

    // The value below which a share `q` in 0..1 of the samples lies; 0 without samples. Samples
    // past the last bound count as that bound.
    double QuantileNs(double q) const {
      const double rank = std::clamp(q, 0.0, 1.0) * static_cast<double>(count);
      double below = 0;
      for (uint32_t i = 0; i < kBuckets; ++i) {
        const auto in_bucket = static_cast<double>(counts[i]);
        if (in_bucket > 0 && below + in_bucket >= rank) {
          const double lower = static_cast<double>(LowerBoundNs(i));
          const double upper = static_cast<double>(LowerBoundNs(std::min(i + 1, kBuckets - 1)));
          return lower + (upper - lower) * (rank - below) / in_bucket;
        }
        below += in_bucket;
      }
      return 0;
    }

    // One bucket for every second octave, the last one up to infinity and equal to count.
    std::vector<CumulativeBucket> Cumulative() const {
      std::vector<CumulativeBucket> buckets;
      uint64_t below = 0;
      for (uint32_t i = 0; i < kBuckets; ++i) {
        if (i > 0 && (i - 1) % (2 * kBucketsPerOctave) == 0) {
          buckets.push_back({static_cast<double>(LowerBoundNs(i)) * 1e-9, below});
        }
        below += counts[i];
      }
      buckets.push_back({HUGE_VAL, below});
      return buckets;
    }
  };

  LatencyHistogram() = default;
  LatencyHistogram(const LatencyHistogram&) = delete;
  LatencyHistogram& operator=(const LatencyHistogram&) = delete;

  // A negative duration (a clock that stepped) counts as 0.
  void RecordNs(int64_t duration_ns) {
    const auto ns = static_cast<uint64_t>(std::max<int64_t>(duration_ns, 0));
    // Relaxed: the counts order nothing else.
    counts_[BucketOf(ns)].fetch_add(1, std::memory_order_relaxed);
    sum_ns_.fetch_add(ns, std::memory_order_relaxed);
  }

  Reading Read() const {
    Reading reading;
    for (uint32_t i = 0; i < kBuckets; ++i) {
      reading.counts[i] = counts_[i].load(std::memory_order_relaxed);
      reading.count += reading.counts[i];
    }
    reading.sum_ns = sum_ns_.load(std::memory_order_relaxed);
    return reading;
  }

  // The octave and the two bits behind the leading one give the bucket.
  static constexpr uint32_t BucketOf(uint64_t ns) {
    const auto width = static_cast<uint32_t>(std::bit_width(ns));
    if (width <= kMinOctave) return 0;
    if (width > kMaxOctave + 1) return kBuckets - 1;
    const uint32_t octave = width - 1;
    const auto quarter = static_cast<uint32_t>(ns >> (octave - 2)) & (kBucketsPerOctave - 1);
    return 1 + (octave - kMinOctave) * kBucketsPerOctave + quarter;
  }

  // The smallest value of a bucket.
  static constexpr uint64_t LowerBoundNs(uint32_t bucket) {
    if (bucket == 0) return 0;
    const uint32_t octave = kMinOctave + (bucket - 1) / kBucketsPerOctave;
    const uint64_t quarter = (bucket - 1) % kBucketsPerOctave;
    return (kBucketsPerOctave + quarter) << (octave - 2);
  }

 private:
  std::array<std::atomic<uint64_t>, kBuckets> counts_{};
  std::atomic<uint64_t> sum_ns_{0};
};

}  // namespace turnkeep
