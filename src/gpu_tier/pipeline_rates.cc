#include "gpu_tier/pipeline_rates.h"

#include <vector>

namespace turnkeep {

void PipelineRates::Loaded(uint64_t tokens, uint64_t bytes, double seconds) {
  if (tokens == 0 || !(seconds > 0)) return;
  load_s_per_token_ = Mix(load_s_per_token_, seconds / static_cast<double>(tokens));
  bytes_per_token_ = static_cast<double>(bytes) / static_cast<double>(tokens);
}

void PipelineRates::Computed(uint64_t tokens, double seconds) {
  if (tokens == 0 || !(seconds > 0)) return;
  prefill_s_per_token_ = Mix(prefill_s_per_token_, seconds / static_cast<double>(tokens));
}

std::optional<PipelineRates::Prediction> PipelineRates::Predict(const Job& job) const {
  if (load_s_per_token_ == 0 || prefill_s_per_token_ == 0 || job.layers == 0) return std::nullopt;
  const double link_bytes_per_s = bytes_per_token_ / load_s_per_token_;
  Prediction prediction{.buffer_bytes =
                            ReadBufferBytes({.link_bytes_per_s = link_bytes_per_s,
                                             .load_s_per_token = load_s_per_token_,
                                             .prefill_s_per_token = prefill_s_per_token_,
                                             .history_tokens = job.history_tokens,
                                             .new_tokens = job.new_tokens,
                                             .budget_bytes = job.budget_bytes})};
  const double bytes = bytes_per_token_ * static_cast<double>(job.history_tokens);
  const double compute_s = prefill_s_per_token_ * static_cast<double>(job.new_tokens);
  const std::vector<uint64_t> layer_bytes(job.layers, static_cast<uint64_t>(bytes / job.layers));
  const std::vector<double> layer_compute_s(job.layers, compute_s / job.layers);
  prediction.stall_s = PredictStallSeconds({.layer_bytes = layer_bytes,
                                            .layer_compute_s = layer_compute_s,
                                            .link_bytes_per_s = link_bytes_per_s});
  return prediction;
}

}  // namespace turnkeep
