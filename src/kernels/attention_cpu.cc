#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention_cpu.cc"
// Compiled for each of the others; these two differ from their neighbours in nothing used here.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#include <hwy/foreach_target.h>

#include "kernels/attention_cpu.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <limits>
#include <type_traits>

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include "kernels/attention_task.h"

HWY_BEFORE_NAMESPACE();
namespace turnkeep {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr float kLowest = -1e30f;  // stands for -inf where a difference is taken

template <class D>
using Vec = hn::Vec<D>;

template <class D>
HWY_INLINE Vec<D> LoadFloats(D d, const float* from) {
  return hn::LoadU(d, from);
}
template <class D>
HWY_INLINE Vec<D> LoadFloats(D d, const hwy::float16_t* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::float16_t, D>(), from));
}
template <class D>
HWY_INLINE Vec<D> LoadFloats(D d, const hwy::bfloat16_t* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::bfloat16_t, D>(), from));
}

// 2^x within two units of the last place, exactly 1 for 0, and 0 below the normal numbers. Scores
// are kept to base 2; x is at most 0 but for rounding.
template <class D>
HWY_INLINE Vec<D> Exp2(D d, Vec<D> x) {
  const hn::RebindToSigned<D> di;
  // The sum's last bits are x to the nearest whole number, which the shift makes an exponent.
  const Vec<D> magic = hn::Set(d, 12582912.0f);  // 1.5 · 2^23
  const Vec<D> whole = hn::Add(x, magic);
  const Vec<D> f = hn::Sub(x, hn::Sub(whole, magic));  // -0.5 to 0.5
  // Taylor's series; the first term left out is 1.2e-7 at most.
  Vec<D> p = hn::Set(d, 1.5403530e-4f);
  p = hn::MulAdd(p, f, hn::Set(d, 1.3333558e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 9.6181291e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.5504109e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.4022651e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.9314718e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, whole));
  const Vec<D> power = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenElseZero(hn::Gt(x, hn::Set(d, -126.0f)), power);
}

// Calls use(row, tokens_before) for the K or V row of each of the unit's tokens [begin, end).
template <class T, class Use>
HWY_INLINE void ForEachRow(const UnitTask& task, const std::byte* pool, uint32_t begin,
                           uint32_t end, const Use& use) {
  const auto* const base = reinterpret_cast<const T*>(pool) + task.kv_head * task.kv->head_stride;
  TokenCursor cursor(task, begin);
  for (uint32_t t = begin; t < end;) {
    const uint32_t run = std::min(cursor.RunLength(), end - t);
    const T* row = base + cursor.page() * task.kv->page_stride +
                   cursor.offset_in_page() * task.kv->token_stride;
    for (uint32_t i = 0; i < run; ++i, row += task.kv->token_stride) use(row, t - begin + i);
    cursor.Advance(run);
    t += run;
  }
}

// Where the K or V rows of a tile lie. Begin asks for none of them; Step does for a few at a time,
// while others are computed with: neither prefetcher nor reorder buffer reaches over a tile.
template <class T>
class TileRows {
 public:
  // Tokens [begin, end) of the unit, maybe none; asked for in `steps` steps.
  void Begin(const UnitTask& task, const std::byte* pool, uint32_t begin, uint32_t end,
             uint32_t steps) {
    count_ = next_ = 0;
    if (begin >= end) return;
    ForEachRow<T>(task, pool, begin, end, [&](const T* row, uint32_t) { rows_[count_++] = row; });
    dim_ = task.shape->head_dim;
    step_ = (count_ + steps - 1) / steps;
  }
  HWY_INLINE void Step() {
    constexpr size_t kLine = 64 / sizeof(T);
    for (const uint32_t stop = std::min(count_, next_ + step_); next_ < stop; ++next_)
      for (size_t j = 0; j < dim_; j += kLine) hwy::Prefetch(rows_[next_] + j);
  }
  const T* const* rows() const { return rows_; }
  uint32_t count() const { return count_; }

 private:
  const T* rows_[kTileTokens];
  uint32_t count_ = 0;
  uint32_t next_ = 0;
  uint32_t step_ = 0;
  size_t dim_ = 0;
};

template <class D, class T>
void ConvertTile(D d, const TileRows<T>& from, size_t dim, float* HWY_RESTRICT tile) {
  const size_t n = hn::Lanes(d);
  for (uint32_t t = 0; t < from.count(); ++t, tile += dim) {
    const T* const row = from.rows()[t];
    for (size_t j = 0; j < dim; j += n) hn::StoreU(LoadFloats(d, row + j), d, tile + j);
  }
}

// The scaled queries of a unit's first rows, [rows][head_dim].
template <class T, class D>
void LoadQueryRows(D d, const UnitTask& task, uint32_t rows, float* q) {
  const size_t dim = task.shape->head_dim;
  for (uint32_t r = 0; r < rows; ++r, q += dim) {
    const auto* const query = reinterpret_cast<const T*>(task.QueryOf(r));
    for (size_t j = 0; j < dim; j += hn::Lanes(d))
      hn::StoreU(hn::Mul(LoadFloats(d, query + j), hn::Set(d, task.shape->scale * kLog2E)), d,
                 q + j);
  }
}

// Scores that are not to be seen become -inf.
void HideTokens(const UnitTask& task, uint32_t first_row, uint32_t row_count, uint32_t begin,
                uint32_t end, size_t stride, float* s) {
  if (task.EverybodySees(end)) return;
  for (uint32_t r = 0; r < row_count; ++r) {
    uint64_t hidden = task.Hidden((first_row + r) / task.group(), begin, end);
    for (; hidden != 0; hidden &= hidden - 1) {
      const auto t = static_cast<size_t>(std::countr_zero(hidden));
      s[t * stride + r] = -std::numeric_limits<float>::infinity();
    }
  }
}

#include "kernels/attention_few_rows.inc"   // NOLINT
#include "kernels/attention_many_rows.inc"  // NOLINT

// With the softmax and the value loop of many rows.
#include "kernels/attention_eight_rows.inc"  // NOLINT

template <class D, class T>
void RunTyped(D d, const UnitTask& task, float* scratch) {
  switch (task.row_count()) {
    case 1:
      return RunFewRows<1, D, T>(d, task, scratch);
    case 2:
      return RunFewRows<2, D, T>(d, task, scratch);
    case 3:
      return RunFewRows<3, D, T>(d, task, scratch);
    case 4:
      return RunFewRows<4, D, T>(d, task, scratch);
    default:
      if (task.row_count() <= kEightRows) return RunEightRows<D, T>(d, task, scratch);
      return RunManyRows<D, T>(d, task, scratch);
  }
}

template <class D>
void RunWith(D d, const UnitTask& task, float* scratch) {
  switch (task.shape->dtype) {
    case DType::kFloat32:
      return RunTyped<D, float>(d, task, scratch);
    case DType::kFloat16:
      return RunTyped<D, hwy::float16_t>(d, task, scratch);
    default:
      return RunTyped<D, hwy::bfloat16_t>(d, task, scratch);
  }
}

void RunUnit(const UnitTask& task, float* scratch) {
  const hn::ScalableTag<float> whole;
  if (task.shape->head_dim % hn::Lanes(whole) == 0) return RunWith(whole, task, scratch);
  RunWith(hn::CappedTag<float, 8>(), task, scratch);
}

size_t Lanes(uint32_t head_dim) {
  const size_t whole = hn::Lanes(hn::ScalableTag<float>());
  return head_dim % whole == 0 ? whole : hn::Lanes(hn::CappedTag<float, 8>());
}

double MultiplyAdds(size_t rounds, float* out) {
  const hn::ScalableTag<float> d;
  using V = Vec<hn::ScalableTag<float>>;
  V sums[10];
  for (auto& sum : sums) sum = hn::Set(d, out[0]);
  const V a = hn::Set(d, 1.0000001f);
  const V b = hn::Set(d, out[0] * 1e-9f);
  for (size_t i = 0; i < rounds; ++i)
    for (auto& sum : sums) sum = hn::MulAdd(sum, a, b);
  for (auto& sum : sums) out[0] += hn::GetLane(sum);
  return 2.0 * 10 * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

uint64_t SumWords(const uint64_t* words, size_t count) {
  const hn::ScalableTag<uint64_t> d;
  const size_t n = hn::Lanes(d);
  auto a = hn::Zero(d);
  auto b = hn::Zero(d);
  for (size_t i = 0; i + 2 * n <= count; i += 2 * n) {
    a = hn::Add(a, hn::LoadU(d, words + i));
    b = hn::Add(b, hn::LoadU(d, words + i + n));
  }
  return hn::GetLane(hn::Add(a, b));
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace turnkeep
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace turnkeep {

HWY_EXPORT(RunUnit);
HWY_EXPORT(Lanes);
HWY_EXPORT(MultiplyAdds);
HWY_EXPORT(SumWords);
HWY_EXPORT(TargetName);

const char* CpuAttention::Target() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

void CpuAttention::Run(const AttentionShape& shape, const PagedKv& kv, const AttentionPlan& plan,
                       const AttentionTensors& tensors, AttentionScores* scores) {
  float* values = nullptr;
  if (scores != nullptr) {
    const size_t lanes = HWY_DYNAMIC_DISPATCH(Lanes)(shape.head_dim);
    const uint32_t group = shape.query_heads / shape.kv_heads;
    scores->unit_begin.assign(1, 0);
    for (const AttentionPlan::Unit& unit : plan.units) {
      scores->unit_begin.push_back(scores->unit_begin.back() +
                                   shape.kv_heads * ScoresOf(unit, group, lanes));
    }
    scores->values.resize(scores->unit_begin.back());
    values = scores->values.data();
  }
  RunUnits(shape, kv, plan, tensors, values,
           scores == nullptr ? nullptr : scores->unit_begin.data(), /*apply=*/false);
  if (plan.partial_count == 0) return;
  pool_->ParallelFor(plan.row_count, [&](size_t row, uint32_t) {
    MergeRow(shape, plan, static_cast<uint32_t>(row), partial_output_.data(), partial_lse_.data(),
             tensors);
  });
}

void CpuAttention::ApplyWeights(const AttentionShape& shape, const PagedKv& kv,
                                const AttentionPlan& plan, const AttentionScores& scores,
                                const AttentionTensors& tensors) {
  RunUnits(shape, kv, plan, tensors, const_cast<float*>(scores.values.data()),
           scores.unit_begin.data(), /*apply=*/true);
  if (plan.partial_count == 0) return;
  pool_->ParallelFor(plan.row_count, [&](size_t row, uint32_t) {
    AddRow(shape, plan, static_cast<uint32_t>(row), partial_output_.data(), tensors);
  });
}

void CpuAttention::RunUnits(const AttentionShape& shape, const PagedKv& kv,
                            const AttentionPlan& plan, const AttentionTensors& tensors,
                            float* scores, const uint64_t* unit_begin, bool apply) {
  const size_t lanes = HWY_DYNAMIC_DISPATCH(Lanes)(shape.head_dim);
  const uint32_t group = shape.query_heads / shape.kv_heads;
  // Never smaller: a plan of more partials after one of fewer would have them filled with zeros.
  const uint64_t partial_rows = uint64_t{plan.partial_count} * shape.query_heads;
  if (partial_lse_.size() < partial_rows) partial_lse_.resize(partial_rows);
  if (partial_output_.size() < partial_rows * shape.head_dim)
    partial_output_.resize(partial_rows * shape.head_dim);
  for (auto& scratch : scratch_) scratch.resize(RowScratch::FloatsFor(shape.head_dim));
  pool_->ParallelFor(plan.units.size() * shape.kv_heads, [&](size_t task, uint32_t worker) {
    const auto unit = static_cast<uint32_t>(task / shape.kv_heads);
    const auto head = static_cast<uint32_t>(task % shape.kv_heads);
    UnitTask unit_task{.shape = &shape,
                       .kv = &kv,
                       .plan = &plan,
                       .tensors = &tensors,
                       .unit = &plan.units[unit],
                       .kv_head = head,
                       .partial_output = partial_output_.data(),
                       .partial_lse = partial_lse_.data(),
                       .apply = apply};
    unit_task.seen_by_all = unit_task.CountSeenByAll();
    if (scores != nullptr) {
      unit_task.scores =
          scores + unit_begin[unit] + head * ScoresOf(plan.units[unit], group, lanes);
    }
    HWY_DYNAMIC_DISPATCH(RunUnit)(unit_task, scratch_[worker].data());
  });
}

namespace {

double SecondsOf(ThreadPool& pool, const std::function<void(size_t, uint32_t)>& work) {
  const auto begin = std::chrono::steady_clock::now();
  pool.ParallelFor(pool.thread_count(), work);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

double ReadBytesPerS(ThreadPool& pool, std::span<const uint64_t> words) {
  const size_t part = words.size() / pool.thread_count();
  std::vector<uint64_t> sums(pool.thread_count());
  const double seconds = SecondsOf(pool, [&](size_t i, uint32_t) {
    sums[i] = HWY_DYNAMIC_DISPATCH(SumWords)(words.data() + i * part, part);
  });
  return static_cast<double>(part * pool.thread_count() * sizeof(uint64_t)) / seconds;
}

double MultiplyAddOpsPerS(ThreadPool& pool) {
  std::vector<float> out(pool.thread_count() * 64, 1.0f);
  double operations = 0;
  const double seconds = SecondsOf(pool, [&](size_t i, uint32_t) {
    const double done = HWY_DYNAMIC_DISPATCH(MultiplyAdds)(1'000'000, &out[i * 64]);
    if (i == 0) operations = done;
  });
  return operations * pool.thread_count() / seconds;
}

}  // namespace turnkeep
#endif  // HWY_ONCE
