#include <numeric>

#include "core/status.h"
#include "kernels/attention.h"

namespace turnkeep {

absl::Status ValidateAttentionShape(const AttentionShape& shape) {
  if (shape.kv_heads == 0) return InvalidArgument("attention: kv_heads is 0");
  if (shape.query_heads == 0 || shape.query_heads % shape.kv_heads != 0 ||
      shape.query_heads / shape.kv_heads > kMaxGroupSize) {
    return InvalidArgument("attention: query_heads {} is not 1 to {} times kv_heads {}",
                           shape.query_heads, kMaxGroupSize, shape.kv_heads);
  }
  if (shape.head_dim == 0 || shape.head_dim % 8 != 0 || shape.head_dim > kMaxAttentionHeadDim) {
    return InvalidArgument("attention: head_dim {} is not a multiple of 8 up to {}", shape.head_dim,
                           kMaxAttentionHeadDim);
  }
  if (shape.page_tokens == 0 || shape.page_tokens > 256) {
    return InvalidArgument("attention: page_tokens {} is outside 1..256", shape.page_tokens);
  }
  if (shape.dtype != DType::kFloat32 && shape.dtype != DType::kFloat16 &&
      shape.dtype != DType::kBFloat16) {
    return InvalidArgument("attention: dtype {} is not float32, float16 or bfloat16",
                           std::string(NameOf(shape.dtype)));
  }
  return absl::OkStatus();
}

PagedKv PagedKv::Dense(const AttentionShape& shape, const std::byte* keys,
                       const std::byte* values) {
  const uint64_t head = uint64_t{shape.page_tokens} * shape.head_dim;
  return {.keys = keys,
          .values = values,
          .page_stride = head * shape.kv_heads,
          .head_stride = head,
          .token_stride = shape.head_dim};
}

void AttentionPlan::Clear() {
  row_count = 0;
  partial_count = 0;
  units.clear();
  segments.clear();
  masks.clear();
  for (std::vector<uint32_t>* words :
       {&pages, &queries, &limits, &partials, &merge_begin, &merge_list})
    words->clear();
}

uint64_t AttentionPlan::TokensRead() const {
  return std::accumulate(units.begin(), units.end(), uint64_t{0},
                         [](uint64_t sum, const Unit& unit) { return sum + unit.token_count; });
}

namespace {

absl::Status ValidateUnit(const AttentionPlan& plan, size_t index, const AttentionShape& shape,
                          uint32_t page_count) {
  const AttentionPlan::Unit& unit = plan.units[index];
  const auto inside = [](uint64_t begin, uint64_t count, size_t size) {
    return begin <= size && count <= size - begin;
  };
  if (!inside(unit.first_segment, unit.segment_count, plan.segments.size()) ||
      !inside(unit.first_query, unit.query_count, plan.queries.size())) {
    return InvalidArgument("plan: unit {} names segments or queries out of range", index);
  }
  uint64_t tokens = 0;
  for (uint32_t i = 0; i < unit.segment_count; ++i) {
    const AttentionPlan::Segment& segment = plan.segments[unit.first_segment + i];
    const uint64_t pages =
        (uint64_t{segment.offset} + segment.token_count + shape.page_tokens - 1) /
        shape.page_tokens;
    if (!inside(segment.first_page, pages, plan.pages.size())) {
      return InvalidArgument("plan: unit {} reads past the {} pages listed", index,
                             plan.pages.size());
    }
    for (uint64_t p = 0; p < pages; ++p) {
      if (plan.pages[segment.first_page + p] >= page_count) {
        return InvalidArgument("plan: unit {} reads page {} of {}", index,
                               plan.pages[segment.first_page + p], page_count);
      }
    }
    tokens += segment.token_count;
  }
  if (tokens != unit.token_count) {
    return InvalidArgument("plan: unit {} has token_count {}, its segments {}", index,
                           unit.token_count, tokens);
  }
  if (unit.first_mask != AttentionPlan::kNoMask &&
      !inside(unit.first_mask, unit.query_count * AttentionPlan::MaskWords(unit.token_count),
              plan.masks.size())) {
    return InvalidArgument("plan: the masks of unit {} are out of range", index);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateAttentionPlan(const AttentionPlan& plan, const AttentionShape& shape,
                                   uint32_t page_count) {
  if (plan.limits.size() != plan.queries.size() || plan.partials.size() != plan.queries.size())
    return InvalidArgument("plan: queries, limits and partials differ in size");
  if (plan.merge_begin.size() != uint64_t{plan.row_count} + 1 || plan.merge_begin[0] != 0 ||
      plan.merge_begin.back() != plan.merge_list.size()) {
    return InvalidArgument("plan: merge_begin does not span the {} rows", plan.row_count);
  }
  for (size_t i = 0; i < plan.units.size(); ++i) {
    TK_RETURN_IF_ERROR(ValidateUnit(plan, i, shape, page_count));
  }
  std::vector<uint32_t> written(plan.partial_count);
  std::vector<uint32_t> direct(plan.row_count);
  for (const AttentionPlan::Unit& unit : plan.units) {
    for (uint32_t i = 0; i < unit.query_count; ++i) {
      const uint32_t row = plan.queries[unit.first_query + i];
      const uint32_t partial = plan.partials[unit.first_query + i];
      if (row >= plan.row_count) return InvalidArgument("plan: row {} of {}", row, plan.row_count);
      if (partial == AttentionPlan::kDirect) {
        ++direct[row];
      } else if (partial >= plan.partial_count || ++written[partial] > 1) {
        return InvalidArgument("plan: partial {} is out of range or written twice", partial);
      }
    }
  }
  for (uint32_t row = 0; row < plan.row_count; ++row) {
    const uint32_t begin = plan.merge_begin[row];
    const uint32_t end = plan.merge_begin[row + 1];
    if (end < begin || end > plan.merge_list.size() || direct[row] > 1 ||
        (direct[row] == 1 && end != begin)) {
      return InvalidArgument("plan: row {} has {} direct results and merges from {} to {}", row,
                             direct[row], begin, end);
    }
    for (uint32_t i = begin; i < end; ++i) {
      if (plan.merge_list[i] >= plan.partial_count || written[plan.merge_list[i]] != 1)
        return InvalidArgument("plan: row {} merges partial {}, which no unit writes", row,
                               plan.merge_list[i]);
    }
  }
  return absl::OkStatus();
}

}  // namespace turnkeep
