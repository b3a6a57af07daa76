// Time as a dependency, so that tests and replays own it.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace turnkeep {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic nanoseconds from an arbitrary start.
  virtual int64_t NowNs() const = 0;
  // Seconds since the Unix epoch; may step.
  virtual int64_t UnixSeconds() const = 0;

  static Clock* System();
};

// Advances only when told. Thread-safe.
class ManualClock : public Clock {
 public:
  int64_t NowNs() const override { return now_ns_.load(std::memory_order_relaxed); }
  int64_t UnixSeconds() const override { return 1'700'000'000 + NowNs() / 1'000'000'000; }
  void AdvanceNs(int64_t ns) { now_ns_.fetch_add(ns, std::memory_order_relaxed); }
  void AdvanceSeconds(int64_t s) { AdvanceNs(s * 1'000'000'000); }

 private:
  std::atomic<int64_t> now_ns_{0};
};

// "2026-01-31 12:00:00 UTC".
std::string UnixTimeText(int64_t unix_s);

}  // namespace turnkeep
