// One merge for every plan, in the order of its lists.
#include <vector>

#include "kernels/attention_task.h"

namespace turnkeep {

namespace {

// Whether some unit writes the row directly; then there is nothing to merge.
bool HasNoPartials(const AttentionPlan& plan, uint32_t row) {
  return plan.merge_begin[row] == plan.merge_begin[row + 1];
}

}  // namespace

void MergeRow(const AttentionShape& shape, const AttentionPlan& plan, uint32_t row,
              const float* partial_output, const float* partial_lse,
              const AttentionTensors& tensors) {
  if (HasNoPartials(plan, row)) return;
  const uint32_t* const begin = &plan.merge_list[plan.merge_begin[row]];
  const uint32_t* const end = begin + (plan.merge_begin[row + 1] - plan.merge_begin[row]);
  for (uint32_t head = 0; head < shape.query_heads; ++head) {
    const auto index = [&](uint32_t partial) {
      return uint64_t{partial} * shape.query_heads + head;
    };
    float largest = -std::numeric_limits<float>::infinity();
    for (const uint32_t* p = begin; p != end; ++p)
      largest = std::max(largest, partial_lse[index(*p)]);
    const uint64_t at = uint64_t{row} * shape.query_heads + head;
    float* const o = tensors.output + at * shape.head_dim;
    std::fill(o, o + shape.head_dim, 0.0f);
    tensors.lse[at] = largest;
    if (std::isinf(largest) && largest < 0) continue;
    float sum = 0;
    for (const uint32_t* p = begin; p != end; ++p)
      sum += std::exp(partial_lse[index(*p)] - largest);
    for (const uint32_t* p = begin; p != end; ++p) {
      const float weight = std::exp(partial_lse[index(*p)] - largest) / sum;
      if (weight == 0) continue;
      const float* const from = partial_output + index(*p) * shape.head_dim;
      for (uint32_t j = 0; j < shape.head_dim; ++j) o[j] += weight * from[j];
    }
    tensors.lse[at] = largest + std::log(sum);
  }
}

void AddRow(const AttentionShape& shape, const AttentionPlan& plan, uint32_t row,
            const float* partial_output, const AttentionTensors& tensors) {
  if (HasNoPartials(plan, row)) return;
  const uint64_t row_floats = uint64_t{shape.query_heads} * shape.head_dim;
  float* const o = tensors.output + row * row_floats;
  std::fill(o, o + row_floats, 0.0f);
  for (uint32_t i = plan.merge_begin[row]; i < plan.merge_begin[row + 1]; ++i) {
    const float* const from = partial_output + plan.merge_list[i] * row_floats;
    for (uint64_t j = 0; j < row_floats; ++j) o[j] += from[j];
  }
}

}  // namespace turnkeep
