// Never slower than recompute: a restore that is predicted to take longer than prefilling the same
// tokens is declined, whole or from the token on where it stops paying (admission.h).
#include <cmath>
#include <limits>

#include "core/hint.h"
#include "core/status.h"
#include "store/store_impl.h"

namespace turnkeep {

namespace {

std::string Milliseconds(double seconds) { return fmt::format("{:.1f} ms", seconds * 1e3); }

}  // namespace

HintAnswer StoreImpl::SetSpeed(TenantNumber tenant, const EngineSpeed& speed) {
  absl::MutexLock lock(&state_.mu);
  const auto valid = [](double number) { return std::isfinite(number) && number >= 0; };
  if (!valid(speed.prefill_tokens_per_s) || !valid(speed.copy_bytes_per_s) ||
      !valid(speed.prefill_half_speed_tokens)) {
    return {
        .outcome = HintOutcome::kRejected,
        .reason = fmt::format(
            "{} tokens a second (half of it at {} tokens) and {} bytes a second: not all are "
            "numbers from 0",
            speed.prefill_tokens_per_s, speed.prefill_half_speed_tokens, speed.copy_bytes_per_s)};
  }
  const absl::StatusOr<const LayoutInfo*> layout = LayoutOf(speed.layout);
  if (!layout.ok()) {
    return {.outcome = HintOutcome::kRejected, .reason = MessageOf(layout.status())};
  }
  admission_.SetEngine(static_cast<uint16_t>(tenant), (*layout)->number, speed);
  return {};
}

Admission::Verdict StoreImpl::JudgeSpans(uint16_t tenant, const LayoutInfo& layout,
                                         const std::vector<Span>& spans, const HeldChunks& held) {
  std::vector<Admission::Piece> pieces;
  pieces.reserve(spans.size());
  const ChunkGeometry& full = layout.Geometry(layout.layout.chunk_tokens);
  for (const Span& span : spans) {
    const ChunkEntry& entry = state_.catalog[span.chunk];
    if (!held.empty() && held.contains(entry.id)) {
      pieces.push_back({.tokens = span.count, .bytes = 0, .tier = Tier::kGpu});
      continue;
    }
    if (!entry.HasData()) break;
    pieces.push_back({.tokens = span.count,
                      .bytes = entry.token_count == full.token_count
                                   ? full.payload_bytes
                                   : layout.Geometry(entry.token_count).payload_bytes,
                      .tier = entry.InHost() ? Tier::kHost : Tier::kDisk});
  }
  return admission_.Judge(tenant, layout.number, pieces, state_.NowNs());
}

double StoreImpl::DeclineWhatDoesNotPay(const Tenant& tenant, const LayoutInfo& layout,
                                        const HeldChunks& held, PromptMatch* match) {
  if (!admission_.Decides(tenant.number, layout.number))
    return std::numeric_limits<double>::infinity();
  const Admission::Verdict verdict = JudgeSpans(tenant.number, layout, match->spans, held);
  const double spare_s =
      (verdict.prefill_s - verdict.declined_prefill_s) - (verdict.load_s - verdict.declined_load_s);
  if (verdict.declined == 0) return spare_s;
  ++state_.counters.restores_declined;
  state_.counters.declined_tokens += verdict.declined;
  ClipMatch(verdict.tokens, match);
  match->stop_reason = fmt::format(
      "declined: loading the next {} tokens would take {}, prefilling them {}", verdict.declined,
      Milliseconds(verdict.declined_load_s), Milliseconds(verdict.declined_prefill_s));
  return spare_s;
}

void StoreImpl::Predict(const LayoutInfo& layout, const Admission::Verdict& verdict,
                        Explanation* out) {
  out->predicted_us = verdict.load_s * 1e6;
  out->recompute_us = verdict.prefill_s * 1e6;
  if (out->disk_bytes > 0 && admission_.DiskRate(layout.number) == 0) {
    out->notes.push_back(
        "the disk's bandwidth has not been measured yet: the time is for the copy alone");
  }
  const uint64_t capacity = state_.placement.host().capacity_bytes;
  if (out->host_bytes + out->disk_bytes > capacity) {
    out->notes.push_back(fmt::format(
        "all of it together needs {} bytes of the host tier, which has {}: a restore brings the "
        "leading part that fits",
        out->host_bytes + out->disk_bytes, capacity));
  }
  if (verdict.declined == 0) return;
  out->declined_tokens = verdict.declined;
  out->restorable_tokens = verdict.tokens;
  out->notes.push_back(fmt::format(
      "{} of the stored tokens are declined: loading them would take {}, prefilling them {}",
      verdict.declined, Milliseconds(verdict.declined_load_s),
      Milliseconds(verdict.declined_prefill_s)));
}

}  // namespace turnkeep
