// WriteBudget: bytes a day, as a token bucket, to spare the drive.
//
// The bucket holds 1/24 of the day's budget and fills at 23/24 of it a day, so no 24 hours
// see more than the budget granted. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/clock.h"

namespace turnkeep {

class WriteBudget {
 public:
  // `bytes_per_day` 0: no limit.
  WriteBudget(uint64_t bytes_per_day, const Clock* clock)
      : clock_(clock),
        burst_bytes_(static_cast<double>(bytes_per_day) / 24),
        bytes_per_ns_((static_cast<double>(bytes_per_day) - burst_bytes_) / kDayNs),
        tokens_(burst_bytes_),
        filled_ns_(clock->NowNs()) {}

  bool limited() const { return burst_bytes_ > 0; }

  // Whether `bytes` may be written now. More than the bucket holds is granted when it is
  // full, and is then paid back.
  bool Allows(uint64_t bytes) {
    if (!limited()) return true;
    Fill();
    return tokens_ >= std::min(static_cast<double>(bytes), burst_bytes_);
  }
  // Takes the bytes, into debt if need be: writes that must be made count too.
  void Charge(uint64_t bytes) {
    if (!limited()) return;
    Fill();
    tokens_ -= static_cast<double>(bytes);
  }
  uint64_t Left() {
    if (!limited()) return 0;
    Fill();
    return tokens_ > 0 ? static_cast<uint64_t>(tokens_) : 0;
  }

 private:
  static constexpr double kDayNs = 86'400e9;

  void Fill() {
    int64_t now_ns = clock_->NowNs();
    tokens_ += static_cast<double>(now_ns - filled_ns_) * bytes_per_ns_;
    tokens_ = std::min(tokens_, burst_bytes_);
    filled_ns_ = now_ns;
  }

  const Clock* clock_;
  double burst_bytes_;
  double bytes_per_ns_;
  double tokens_;
  int64_t filled_ns_;
};

}  // namespace turnkeep
