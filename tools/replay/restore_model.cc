#include "restore_model.h"

#include <algorithm>

namespace turnkeep::replay {
namespace {

// Restoring `tokens` of what was found.
RestorePlan Take(const RestoreCase& restore, double tokens) {
  RestorePlan plan;
  plan.host_tokens = std::min(tokens, restore.host_tokens);
  plan.disk_tokens = tokens - plan.host_tokens;
  // Everything crosses the link to the GPU; what is on disk is read before, beside it.
  const double link_s = tokens > 0 ? tokens / restore.host_load_tokens_per_s : 0;
  const double disk_s =
      plan.disk_tokens > 0 ? plan.disk_tokens / restore.disk_load_tokens_per_s : 0;
  const double load_s = std::max(0.0, std::max(link_s, disk_s) - restore.preload_s);
  plan.prefill_s = (restore.input_tokens - tokens) / restore.prefill_tokens_per_s;
  plan.load_s = load_s;
  plan.ttft_s = std::max(plan.prefill_s, load_s) + load_s / restore.layers;
  return plan;
}

}  // namespace

RestorePlan PlanRestore(const RestoreCase& restore, bool decline) {
  const double found = restore.host_tokens + restore.disk_tokens;
  RestorePlan plan = Take(restore, found);
  if (!decline || plan.ttft_s <= restore.input_tokens / restore.prefill_tokens_per_s) return plan;
  // Loading grows with what is taken and prefill shrinks, so the best lies where they meet.
  double low = 0, high = found;
  for (int i = 0; i < 40; ++i) {
    const double third = (high - low) / 3;
    if (Take(restore, low + third).ttft_s <= Take(restore, high - third).ttft_s) {
      high -= third;
    } else {
      low += third;
    }
  }
  plan = Take(restore, low);
  plan.declined = true;
  return plan;
}

}  // namespace turnkeep::replay
