#include "store/admission.h"

#include <algorithm>
#include <cmath>

#include "core/prefill_time.h"

namespace turnkeep {

namespace {

// Experience halves after so many bytes.
constexpr double kHalfLifeBytes = 256.0 * (1 << 20);

}  // namespace

void Admission::NoteRead(uint16_t layout, uint64_t bytes, int64_t elapsed_ns, int64_t now_ns) {
  if (bytes == 0) return;
  Measured& measured = disk_[layout];
  if (now_ns - measured.at_ns > kMeasuredForNs) measured = {};
  const double kept = std::exp2(-static_cast<double>(bytes) / kHalfLifeBytes);
  measured.bytes = measured.bytes * kept + static_cast<double>(bytes);
  measured.seconds =
      measured.seconds * kept + static_cast<double>(std::max<int64_t>(elapsed_ns, 1)) * 1e-9;
  measured.at_ns = now_ns;
}

double Admission::DiskRate(uint16_t layout) const {
  const auto found = disk_.find(layout);
  return found == disk_.end() ? 0 : found->second.bytes / found->second.seconds;
}

Admission::Verdict Admission::Judge(uint16_t tenant, uint16_t layout, std::span<const Piece> pieces,
                                    int64_t now_ns) const {
  const auto found = engine_.find({tenant, layout});
  const EngineSpeed engine = found == engine_.end() ? EngineSpeed{} : found->second;
  const auto prefill_seconds = [&engine](uint64_t from, uint64_t to) {
    return PrefillSeconds(static_cast<double>(from), static_cast<double>(to),
                          engine.prefill_tokens_per_s, engine.prefill_half_speed_tokens);
  };
  const double copy_rate = engine.copy_bytes_per_s > 0 ? engine.copy_bytes_per_s : copy_rate_;
  const double disk_rate = DiskRate(layout);
  const auto measured = disk_.find(layout);
  const bool fresh = measured != disk_.end() && now_ns - measured->second.at_ns <= kMeasuredForNs;

  Verdict verdict;
  uint64_t tokens = 0;
  double bytes = 0, disk_bytes = 0;
  double best_saved = 0, best_load = 0;
  for (const Piece& piece : pieces) {
    tokens += piece.tokens;
    bytes += static_cast<double>(piece.bytes);
    if (piece.tier == Tier::kDisk) disk_bytes += static_cast<double>(piece.bytes);
    const double copy_s = copy_rate > 0 ? bytes / copy_rate : 0;
    const double disk_s = disk_rate > 0 ? disk_bytes / disk_rate : 0;
    verdict.load_s = std::max(copy_s, disk_s);
    if (engine.prefill_tokens_per_s <= 0) {
      verdict.tokens = tokens;
      continue;
    }
    verdict.prefill_s = prefill_seconds(0, tokens);
    // What is not known well enough to decline costs nothing here.
    const double certain_s = fresh ? verdict.load_s : copy_s;
    const double saved = verdict.prefill_s - certain_s;
    if (saved >= best_saved) {
      best_saved = saved;
      best_load = verdict.load_s;
      verdict.tokens = tokens;
    }
  }
  verdict.declined = tokens - verdict.tokens;
  if (verdict.declined > 0) {
    verdict.declined_load_s = verdict.load_s - best_load;
    verdict.declined_prefill_s = prefill_seconds(verdict.tokens, tokens);
  }
  return verdict;
}

}  // namespace turnkeep
