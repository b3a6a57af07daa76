#include "core/clock.h"

#include <absl/time/time.h>

#include <chrono>

namespace turnkeep {
namespace {

class SystemClock : public Clock {
 public:
  int64_t NowNs() const override {
    return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  int64_t UnixSeconds() const override {
    return std::chrono::duration_cast<std::chrono::seconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
};

}  // namespace

Clock* Clock::System() {
  // Never destroyed: threads may read the time while statics are torn down.
  static SystemClock* const clock = new SystemClock;
  return clock;
}

std::string UnixTimeText(int64_t unix_s) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixSeconds(unix_s),
                          absl::UTCTimeZone());
}

}  // namespace turnkeep
