// Whether a restore pays: what loading costs, by what the store has measured, against what the
// engine says that prefilling costs. Pure: no clock, lock or I/O. Thread-compatible.
//
// Loading i tokens takes max(disk bytes ÷ disk rate, all bytes ÷ copy rate): layers are copied to
// the engine while later ones are read (design.md section 3). Prefilling them takes
// (i + i² ÷ 2h) ÷ prefill speed: each attends to those before it, and at h this takes as long as
// the rest. Admitted are the leading tokens that save the most time; the rest is declined.
//
// The disk rate is learned per layout from the restores themselves, old experience fading with the
// bytes read, so that small reads do not pass for the rate of large ones. What was measured more
// than kMeasuredForNs ago declines nothing: the next restore measures anew, from nothing.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>

#include "core/hint.h"
#include "core/kv_types.h"

namespace turnkeep {

class Admission {
 public:
  static constexpr int64_t kMeasuredForNs = 60 * int64_t{1'000'000'000};

  struct Piece {
    uint64_t tokens = 0;
    uint64_t bytes = 0;  // to be moved
    Tier tier = Tier::kNone;
  };
  struct Verdict {
    uint64_t tokens = 0;    // leading ones that are restored
    uint64_t declined = 0;  // stored tokens behind them
    // Of all that is stored.
    double load_s = 0;
    double prefill_s = 0;  // 0: the engine has not said its speed
    // Of the declined: what they would add to the load, and what prefilling them takes.
    double declined_load_s = 0;
    double declined_prefill_s = 0;
  };

  // What this machine does in a verified copy; used until the engine tells its own.
  void SetCopyRate(double bytes_per_s) { copy_rate_ = bytes_per_s; }
  // What an engine tells of itself, for its tenant. The layout counts by its number.
  void SetEngine(uint16_t tenant, uint16_t layout, const EngineSpeed& speed) {
    engine_[{tenant, layout}] = speed;
  }
  // A restore has read so much from disk in so long.
  void NoteRead(uint16_t layout, uint64_t bytes, int64_t elapsed_ns, int64_t now_ns);

  // Whether anything can be declined: an engine has told its speed.
  bool Decides(uint16_t tenant, uint16_t layout) const {
    const auto found = engine_.find({tenant, layout});
    return found != engine_.end() && found->second.prefill_tokens_per_s > 0;
  }

  // 0: not measured for the layout. Bytes a second.
  double DiskRate(uint16_t layout) const;
  // Of what is stored, in order.
  Verdict Judge(uint16_t tenant, uint16_t layout, std::span<const Piece> pieces,
                int64_t now_ns) const;

 private:
  struct Measured {
    double bytes = 0;  // faded
    double seconds = 0;
    int64_t at_ns = 0;
  };

  double copy_rate_ = 0;
  std::map<uint16_t, Measured> disk_;                            // by layout
  std::map<std::pair<uint16_t, uint16_t>, EngineSpeed> engine_;  // by tenant and layout
};

}  // namespace turnkeep
