#include "kernels/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/element.h"

namespace turnkeep {

void ReferenceAttention(const AttentionShape& shape, const PagedKv& kv, const std::byte* queries,
                        const std::vector<std::vector<KvToken>>& visible, double* output,
                        double* lse) {
  const uint32_t bytes = DTypeBytes(shape.dtype);
  const uint32_t group = shape.query_heads / shape.kv_heads;
  std::vector<double> scores;
  for (size_t row = 0; row < visible.size(); ++row) {
    for (uint32_t head = 0; head < shape.query_heads; ++head) {
      const size_t at = row * shape.query_heads + head;
      const auto element = [&](const std::byte* pool, const KvToken& token, uint32_t i) -> double {
        const uint64_t index = token.page * kv.page_stride + (head / group) * kv.head_stride +
                               token.offset * kv.token_stride + i;
        return LoadElement(shape.dtype, pool + index * bytes);
      };
      double* const o = output + at * shape.head_dim;
      std::fill(o, o + shape.head_dim, 0.0);
      lse[at] = -std::numeric_limits<double>::infinity();
      if (visible[row].empty()) continue;
      scores.clear();
      for (const KvToken& token : visible[row]) {
        double score = 0;
        for (uint32_t i = 0; i < shape.head_dim; ++i) {
          score += double{LoadElement(shape.dtype, queries + (at * shape.head_dim + i) * bytes)} *
                   element(kv.keys, token, i);
        }
        scores.push_back(score * double{shape.scale});
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (size_t t = 0; t < scores.size(); ++t) {
        const double weight = std::exp(scores[t] - largest);
        sum += weight;
        for (uint32_t i = 0; i < shape.head_dim; ++i)
          o[i] += weight * element(kv.values, visible[row][t], i);
      }
      for (uint32_t i = 0; i < shape.head_dim; ++i) o[i] /= sum;
      lse[at] = largest + std::log(sum);
    }
  }
}

}  // namespace turnkeep
