// How long a restore and the prefill of the rest take, and how much of it pays.
//
// Thread-safe: pure functions.
#pragma once

#include "model_presets.h"

namespace turnkeep::replay {

struct RestoreCase {
  const Model* model = nullptr;  // not owned
  double input_tokens = 0;
  double host_tokens = 0;  // found in host memory
  double disk_tokens = 0;  // found on disk only
  double host_load_tokens_per_s = 0;
  double disk_load_tokens_per_s = 0;
  double preload_s = 0;  // of the load is done when the prefill begins (a read buffer)
};

struct RestorePlan {
  double ttft_s = 0;
  double prefill_s = 0;
  double load_s = 0;       // beside the prefill
  double host_tokens = 0;  // restored
  double disk_tokens = 0;
  bool declined = false;  // less than what was found
};

// With `decline`, the plan never takes longer than prefilling everything: if the whole
// restore would, it ends where loading and prefilling the rest cost least, or does not
// begin. Host copies load first, disk reads beside them.
RestorePlan PlanRestore(const RestoreCase& restore, bool decline);

}  // namespace turnkeep::replay
