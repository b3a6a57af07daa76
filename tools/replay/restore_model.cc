#include "restore_model.h"

#include <algorithm>

namespace turnkeep::replay {
namespace {

// Everything crosses the link to the GPU; what is on disk is read before, beside it.
double LinkSeconds(const RestoreCase& restore, double tokens) {
  return tokens > 0 ? tokens / restore.host_load_tokens_per_s : 0;
}

double DiskSeconds(const RestoreCase& restore, double tokens) {
  const double disk_tokens = tokens - restore.host_tokens;
  return disk_tokens > 0 ? disk_tokens / restore.disk_load_tokens_per_s : 0;
}

// Restoring `tokens` of what was found.
RestorePlan Take(const RestoreCase& restore, double tokens) {
  RestorePlan plan;
  plan.host_tokens = std::min(tokens, restore.host_tokens);
  plan.disk_tokens = tokens - plan.host_tokens;
  const double moved_s = std::max(LinkSeconds(restore, tokens), DiskSeconds(restore, tokens));
  plan.load_s = std::max(0.0, moved_s - restore.preload_s);
  plan.prefill_s = restore.model->PrefillSeconds(tokens, restore.input_tokens);
  plan.ttft_s =
      std::max(plan.prefill_s, plan.load_s) + plan.load_s / std::max(restore.model->layers, 1u);
  return plan;
}

// The least of [0, high] from which on `holds` is true; `high` if it is nowhere.
template <typename Predicate>
double FirstWhere(double high, Predicate holds) {
  double low = 0;
  for (int i = 0; i < 60; ++i) {
    const double middle = low + (high - low) / 2;
    (holds(middle) ? high : low) = middle;
  }
  return high;
}

// The plan that takes least. Where prefill takes longer than the load, TTFT is prefill +
// load / layers: prefill falls ever steeper (a later token costs more) to its floor and rests
// there, the load is made of straight lines. So it bends down between their corners, and is
// least at one of them, or where the load begins to take longer: from there on TTFT rises.
RestorePlan Best(const RestoreCase& restore) {
  const double found = restore.host_tokens + restore.disk_tokens;
  const double floor_s = restore.model->PrefillFloorSeconds();
  const double corners[] = {
      FirstWhere(found, [&](double t) { return Take(restore, t).load_s > 0; }),
      FirstWhere(found,
                 [&](double t) { return DiskSeconds(restore, t) > LinkSeconds(restore, t); }),
      FirstWhere(found, [&](double t) { return Take(restore, t).prefill_s <= floor_s; }),
      FirstWhere(found,
                 [&](double t) {
                   const RestorePlan plan = Take(restore, t);
                   return plan.load_s >= plan.prefill_s;
                 }),
  };
  RestorePlan best = Take(restore, 0);
  for (const double tokens : corners) {
    const RestorePlan plan = Take(restore, tokens);
    if (plan.ttft_s < best.ttft_s) best = plan;
  }
  return best;
}

}  // namespace

RestorePlan PlanRestore(const RestoreCase& restore, bool decline) {
  RestorePlan plan = Take(restore, restore.host_tokens + restore.disk_tokens);
  if (!decline || plan.ttft_s <= restore.model->PrefillSeconds(0, restore.input_tokens)) {
    return plan;
  }
  plan = Best(restore);
  plan.declined = true;
  return plan;
}

}  // namespace turnkeep::replay
