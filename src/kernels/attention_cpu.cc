#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention_cpu.cc"
// Compiled for each of the others; these two differ from their neighbours in nothing used here.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#include <hwy/foreach_target.h>

#include "kernels/attention_cpu.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

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

// 2^x within two units of the last place, 0 below the normal numbers. Scores are kept to base 2.
template <class D>
HWY_INLINE Vec<D> Exp2(D d, Vec<D> x) {
  const hn::RebindToSigned<D> di;
  const auto whole = hn::NearestInt(x);
  const Vec<D> f = hn::Sub(x, hn::ConvertTo(d, whole));  // -0.5 to 0.5
  // Taylor's series; the first term left out is 1.2e-7 at most.
  Vec<D> p = hn::Set(d, 1.5403530e-4f);
  p = hn::MulAdd(p, f, hn::Set(d, 1.3333558e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 9.6181291e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.5504109e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.4022651e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.9314718e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const Vec<D> power = hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(whole)));
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

template <class D, class T>
void ConvertTile(D d, const UnitTask& task, const std::byte* pool, uint32_t begin, uint32_t end,
                 float* HWY_RESTRICT tile) {
  const size_t n = hn::Lanes(d);
  const size_t dim = task.shape->head_dim;
  ForEachRow<T>(task, pool, begin, end, [&](const T* row, uint32_t t) {
    for (size_t j = 0; j < dim; j += n) hn::StoreU(LoadFloats(d, row + j), d, tile + t * dim + j);
  });
}

// ---- many rows -------------------------------------------------------------------

// s[t][row] = Σ_j k[t][j] · q[j][row] for kTokens tokens and kVectors vectors of rows.
template <int kTokens, int kVectors, class D>
HWY_INLINE void ScoreTokens(D d, const float* HWY_RESTRICT q, const float* HWY_RESTRICT k,
                            size_t dim, float* HWY_RESTRICT s) {
  const size_t n = hn::Lanes(d);
  Vec<D> sums[kTokens][kVectors];
  for (auto& row : sums)
    for (auto& sum : row) sum = hn::Zero(d);
  for (size_t j = 0; j < dim; ++j) {
    Vec<D> rows[kVectors];
    for (int v = 0; v < kVectors; ++v) rows[v] = hn::LoadU(d, q + (j * kVectors + v) * n);
    for (int t = 0; t < kTokens; ++t) {
      const Vec<D> key = hn::Set(d, k[t * dim + j]);
      for (int v = 0; v < kVectors; ++v) sums[t][v] = hn::MulAdd(key, rows[v], sums[t][v]);
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[t][v], d, s + (t * kVectors + v) * n);
}

template <int kVectors, class D>
void ScoreTile(D d, const float* q, const float* k, size_t dim, uint32_t tokens, float* s) {
  constexpr int kBlock = kVectors == 2 ? 6 : 8;
  const size_t stride = kVectors * hn::Lanes(d);
  uint32_t t = 0;
  for (; t + kBlock <= tokens; t += kBlock)
    ScoreTokens<kBlock, kVectors>(d, q, k + t * dim, dim, s + t * stride);
  for (; t + 2 <= tokens; t += 2) ScoreTokens<2, kVectors>(d, q, k + t * dim, dim, s + t * stride);
  for (; t < tokens; ++t) ScoreTokens<1, kVectors>(d, q, k + t * dim, dim, s + t * stride);
}

// o[row][j] += Σ_t p[t][row] · v[t][j] for kRows rows and kVectors vectors of j.
template <int kRows, int kVectors, class D>
HWY_INLINE void AddValues(D d, const float* HWY_RESTRICT p, size_t p_stride,
                          const float* HWY_RESTRICT v, size_t dim, uint32_t tokens,
                          float* HWY_RESTRICT o) {
  const size_t n = hn::Lanes(d);
  Vec<D> sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kVectors; ++i) sums[r][i] = hn::LoadU(d, o + r * dim + i * n);
  for (uint32_t t = 0; t < tokens; ++t) {
    Vec<D> values[kVectors];
    for (int i = 0; i < kVectors; ++i) values[i] = hn::LoadU(d, v + t * dim + i * n);
    for (int r = 0; r < kRows; ++r) {
      const Vec<D> weight = hn::Set(d, p[t * p_stride + r]);
      for (int i = 0; i < kVectors; ++i) sums[r][i] = hn::MulAdd(weight, values[i], sums[r][i]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kVectors; ++i) hn::StoreU(sums[r][i], d, o + r * dim + i * n);
}

template <int kRows, class D>
HWY_INLINE void AddValuesOfRows(D d, const float* p, size_t p_stride, const float* v, size_t dim,
                                uint32_t tokens, float* o) {
  const size_t n = hn::Lanes(d);
  size_t j = 0;
  for (; j + 2 * n <= dim; j += 2 * n)
    AddValues<kRows, 2>(d, p, p_stride, v + j, dim, tokens, o + j);
  if (j < dim) AddValues<kRows, 1>(d, p, p_stride, v + j, dim, tokens, o + j);
}

// One block of kVectors vectors of rows over one tile: scores to weights in place, running
// maximum and sum per row, and the outputs scaled where the maximum has grown.
template <int kVectors, class D>
void SoftmaxTile(D d, uint32_t tokens, size_t dim, float* HWY_RESTRICT s, float* HWY_RESTRICT max,
                 float* HWY_RESTRICT sum, float* HWY_RESTRICT o) {
  const size_t n = hn::Lanes(d);
  for (int v = 0; v < kVectors; ++v) {
    float* const column = s + v * n;
    const Vec<D> before = hn::LoadU(d, max + v * n);
    Vec<D> now = before;
    for (uint32_t t = 0; t < tokens; ++t)
      now = hn::Max(now, hn::LoadU(d, column + t * kVectors * n));
    now = hn::Max(now, hn::Set(d, kLowest));
    const Vec<D> shrink = Exp2(d, hn::Sub(before, now));
    Vec<D> total = hn::Mul(hn::LoadU(d, sum + v * n), shrink);
    for (uint32_t t = 0; t < tokens; ++t) {
      float* const at = column + t * kVectors * n;
      const Vec<D> weight = Exp2(d, hn::Sub(hn::LoadU(d, at), now));
      hn::StoreU(weight, d, at);
      total = hn::Add(total, weight);
    }
    hn::StoreU(now, d, max + v * n);
    hn::StoreU(total, d, sum + v * n);
    if (hn::AllTrue(d, hn::Eq(before, now))) continue;
    HWY_ALIGN float factors[HWY_MAX_BYTES / sizeof(float)];
    hn::StoreU(shrink, d, factors);
    for (size_t r = 0; r < n; ++r) {
      const Vec<D> factor = hn::Set(d, factors[r]);
      float* const row = o + (v * n + r) * dim;
      for (size_t j = 0; j < dim; j += n)
        hn::StoreU(hn::Mul(hn::LoadU(d, row + j), factor), d, row + j);
    }
  }
}

// Scores that are not to be seen become -inf.
void HideTokens(const UnitTask& task, uint32_t first_row, uint32_t row_count, uint32_t begin,
                uint32_t end, size_t stride, float* s) {
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  for (uint32_t r = 0; r < row_count; ++r) {
    const uint32_t query = (first_row + r) / task.group();
    if (task.SeesAll(query, begin, end)) continue;
    for (uint32_t t = begin; t < end; ++t)
      if (!task.Sees(query, t)) s[(t - begin) * stride + r] = kHidden;
  }
}

template <int kVectors, class D>
void RunBlock(D d, const UnitTask& task, const RowScratch& rows, uint32_t first_row, uint32_t begin,
              uint32_t end, float* scores) {
  const size_t n = hn::Lanes(d);
  const size_t dim = task.shape->head_dim;
  const size_t stride = kVectors * n;
  const uint32_t tokens = end - begin;
  float* const s = rows.scores;
  if (task.apply) {
    for (size_t v = 0; v < kVectors; ++v) {
      const Vec<D> lse = hn::LoadU(d, rows.max + first_row + v * n);
      for (uint32_t t = 0; t < tokens; ++t) {
        const size_t at = t * stride + v * n;
        hn::StoreU(Exp2(d, hn::Sub(hn::LoadU(d, scores + at), lse)), d, s + at);
      }
    }
  } else {
    ScoreTile<kVectors>(d, rows.queries + first_row * dim, rows.keys, dim, tokens, s);
    HideTokens(task, rows.base + first_row,
               std::min<uint32_t>(static_cast<uint32_t>(stride), rows.count - first_row), begin,
               end, stride, s);
    if (scores != nullptr) std::copy(s, s + tokens * stride, scores);
    SoftmaxTile<kVectors>(d, tokens, dim, s, rows.max + first_row, rows.sum + first_row,
                          rows.output + first_row * dim);
  }
  // Six rows of two vectors are twelve sums: what hides the latency of a multiply-add.
  size_t r = 0;
  float* const o = rows.output + first_row * dim;
  for (; r + 6 <= stride; r += 6)
    AddValuesOfRows<6>(d, s + r, stride, rows.values, dim, tokens, o + r * dim);
  for (; r + 4 <= stride; r += 4)
    AddValuesOfRows<4>(d, s + r, stride, rows.values, dim, tokens, o + r * dim);
  for (; r < stride; r += 2)
    AddValuesOfRows<2>(d, s + r, stride, rows.values, dim, tokens, o + r * dim);
}

// The scaled queries, transposed in blocks of two vectors of rows (the last one maybe of one).
template <class D, class T>
void LoadQueries(D d, const UnitTask& task, const RowScratch& rows) {
  const size_t n = hn::Lanes(d);
  const size_t dim = task.shape->head_dim;
  std::fill(rows.queries, rows.queries + rows.padded * dim, 0.0f);
  for (uint32_t r = 0; r < rows.count; ++r) {
    const auto* const query = reinterpret_cast<const T*>(task.QueryOf(rows.base + r));
    const size_t block = r / (2 * n) * (2 * n);
    const size_t width = std::min<size_t>(2 * n, rows.padded - block);
    HWY_ALIGN float values[kMaxAttentionHeadDim];
    for (size_t j = 0; j < dim; j += n)
      hn::StoreU(hn::Mul(LoadFloats(d, query + j), hn::Set(d, task.shape->scale * kLog2E)), d,
                 values + j);
    float* const to = rows.queries + block * dim + (r - block);
    for (size_t j = 0; j < dim; ++j) to[j * width] = values[j];
  }
}

template <class D, class T>
void RunManyRows(D d, const UnitTask& task, float* scratch) {
  const size_t n = hn::Lanes(d);
  const size_t dim = task.shape->head_dim;
  const uint32_t tokens = task.unit->token_count;
  float* scores = task.scores;
  for (uint32_t base = 0; base < task.row_count(); base += kRowsAtOnce) {
    RowScratch rows(scratch, base, std::min(kRowsAtOnce, task.row_count() - base), n, dim);
    if (task.apply) {
      task.LoadLse(base, rows.count, rows.padded, rows.max);
    } else {
      LoadQueries<D, T>(d, task, rows);
      std::fill(rows.max, rows.max + rows.padded, -std::numeric_limits<float>::infinity());
    }
    std::fill(rows.sum, rows.sum + rows.padded, 0.0f);
    std::fill(rows.output, rows.output + rows.padded * dim, 0.0f);
    for (uint32_t begin = 0; begin < tokens; begin += kTileTokens) {
      const uint32_t end = std::min(tokens, begin + kTileTokens);
      if (!task.apply) ConvertTile<D, T>(d, task, task.kv->keys, begin, end, rows.keys);
      ConvertTile<D, T>(d, task, task.kv->values, begin, end, rows.values);
      uint32_t row = 0;
      for (; row + n < rows.padded; row += static_cast<uint32_t>(2 * n)) {
        RunBlock<2>(d, task, rows, row, begin, end, scores);
        if (scores != nullptr) scores += (end - begin) * 2 * n;
      }
      if (row < rows.padded) {
        RunBlock<1>(d, task, rows, row, begin, end, scores);
        if (scores != nullptr) scores += (end - begin) * n;
      }
    }
    for (uint32_t r = 0; r < rows.count; ++r)
      task.WriteRow(base + r, rows.output + r * dim, rows.max[r], rows.sum[r]);
  }
}

// ---- few rows --------------------------------------------------------------------

template <int kRows, class D, class T>
HWY_INLINE void ScoreRow(D d, const float* HWY_RESTRICT q, const T* HWY_RESTRICT k, size_t dim,
                         float* HWY_RESTRICT s, size_t s_stride) {
  const size_t n = hn::Lanes(d);
  Vec<D> sums[kRows][2];
  for (auto& row : sums) row[0] = row[1] = hn::Zero(d);
  size_t j = 0;
  for (; j + 2 * n <= dim; j += 2 * n) {
    const Vec<D> key0 = LoadFloats(d, k + j);
    const Vec<D> key1 = LoadFloats(d, k + j + n);
    for (int r = 0; r < kRows; ++r) {
      sums[r][0] = hn::MulAdd(hn::LoadU(d, q + r * dim + j), key0, sums[r][0]);
      sums[r][1] = hn::MulAdd(hn::LoadU(d, q + r * dim + j + n), key1, sums[r][1]);
    }
  }
  if (j < dim) {
    const Vec<D> key = LoadFloats(d, k + j);
    for (int r = 0; r < kRows; ++r)
      sums[r][0] = hn::MulAdd(hn::LoadU(d, q + r * dim + j), key, sums[r][0]);
  }
  for (int r = 0; r < kRows; ++r)
    s[r * s_stride] = hn::GetLane(hn::SumOfLanes(d, hn::Add(sums[r][0], sums[r][1])));
}

template <class D>
void SoftmaxRow(D d, uint32_t tokens, size_t dim, float* s, float* max, float* sum, float* o) {
  const size_t n = hn::Lanes(d);
  // The tile is padded to whole vectors.
  for (uint32_t t = tokens; t < kTileTokens; ++t) s[t] = -std::numeric_limits<float>::infinity();
  Vec<D> largest = hn::Set(d, *max);
  for (uint32_t t = 0; t < tokens; t += n) largest = hn::Max(largest, hn::LoadU(d, s + t));
  const float now = std::max(hn::GetLane(hn::MaxOfLanes(d, largest)), kLowest);
  const float shrink = std::exp2(*max - now);
  Vec<D> total = hn::Zero(d);
  for (uint32_t t = 0; t < tokens; t += n) {
    const Vec<D> weight = Exp2(d, hn::Sub(hn::LoadU(d, s + t), hn::Set(d, now)));
    hn::StoreU(weight, d, s + t);
    total = hn::Add(total, weight);
  }
  *sum = *sum * shrink + hn::GetLane(hn::SumOfLanes(d, total));
  if (*max != now) {
    for (size_t j = 0; j < dim; j += n)
      hn::StoreU(hn::Mul(hn::LoadU(d, o + j), hn::Set(d, shrink)), d, o + j);
  }
  *max = now;
}

// o[row] += Σ_t p[row][t] · v[t] for the rows of one unit; kVectors vectors of each at a time.
template <int kRows, int kVectors, class D, class T>
HWY_INLINE void AddRowValues(D d, const UnitTask& task, uint32_t begin, uint32_t end, size_t j,
                             const float* HWY_RESTRICT p, float* HWY_RESTRICT o) {
  const size_t n = hn::Lanes(d);
  const size_t dim = task.shape->head_dim;
  Vec<D> sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kVectors; ++i) sums[r][i] = hn::LoadU(d, o + r * dim + j + i * n);
  ForEachRow<T>(task, task.kv->values, begin, end, [&](const T* row, uint32_t t) {
    Vec<D> values[kVectors];
    for (int i = 0; i < kVectors; ++i) values[i] = LoadFloats(d, row + j + i * n);
    for (int r = 0; r < kRows; ++r) {
      const Vec<D> weight = hn::Set(d, p[r * kTileTokens + t]);
      for (int i = 0; i < kVectors; ++i) sums[r][i] = hn::MulAdd(weight, values[i], sums[r][i]);
    }
  });
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kVectors; ++i) hn::StoreU(sums[r][i], d, o + r * dim + j + i * n);
}

template <int kRows, class D, class T>
void RunFewRows(D d, const UnitTask& task, float* scratch) {
  constexpr int kVectors = kRows == 1 ? 8 : kRows == 2 ? 4 : 2;
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  const size_t n = hn::Lanes(d);
  const size_t dim = task.shape->head_dim;
  float* const q = scratch;
  float* const o = q + kRows * dim;
  float* const s = o + kRows * dim;
  float max[kRows];
  float sum[kRows] = {};
  std::fill(max, max + kRows, kHidden);
  std::fill(o, o + kRows * dim, 0.0f);
  if (task.apply) task.LoadLse(0, kRows, kRows, max);
  for (int r = 0; r < kRows && !task.apply; ++r) {
    const auto* const query = reinterpret_cast<const T*>(task.QueryOf(static_cast<uint32_t>(r)));
    for (size_t j = 0; j < dim; j += n)
      hn::StoreU(hn::Mul(LoadFloats(d, query + j), hn::Set(d, task.shape->scale * kLog2E)), d,
                 q + r * dim + j);
  }
  float* scores = task.scores;
  const uint32_t tokens = task.unit->token_count;
  for (uint32_t begin = 0; begin < tokens; begin += kTileTokens) {
    const uint32_t end = std::min(tokens, begin + kTileTokens);
    if (task.apply) {
      for (int r = 0; r < kRows; ++r, scores += end - begin)
        for (uint32_t t = 0; t < end - begin; ++t)
          s[r * kTileTokens + t] = std::exp2(scores[t] - max[r]);
    } else {
      ForEachRow<T>(task, task.kv->keys, begin, end, [&](const T* row, uint32_t t) {
        ScoreRow<kRows>(d, q, row, dim, s + t, kTileTokens);
      });
      for (int r = 0; r < kRows; ++r) {
        float* const row = s + r * kTileTokens;
        HideTokens(task, static_cast<uint32_t>(r), 1, begin, end, 1, row);
        if (scores != nullptr) scores = std::copy(row, row + (end - begin), scores);
        SoftmaxRow(d, end - begin, dim, row, &max[r], &sum[r], o + r * dim);
      }
    }
    size_t j = 0;
    for (; j + kVectors * n <= dim; j += kVectors * n)
      AddRowValues<kRows, kVectors, D, T>(d, task, begin, end, j, s, o);
    for (; j < dim; j += n) AddRowValues<kRows, 1, D, T>(d, task, begin, end, j, s, o);
  }
  for (int r = 0; r < kRows; ++r)
    task.WriteRow(static_cast<uint32_t>(r), o + r * dim, max[r], sum[r]);
}

template <class D, class T>
void RunTyped(D d, const UnitTask& task, float* scratch) {
  switch (task.row_count()) {
    case 1:
      return RunFewRows<1, D, T>(d, task, scratch);
    case 2:
      return RunFewRows<2, D, T>(d, task, scratch);
    case 3:
      return RunFewRows<3, D, T>(d, task, scratch);
    default:
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
  pool_->ParallelFor(plan.row_count, [&](size_t row, uint32_t) {
    AddRow(shape, plan, static_cast<uint32_t>(row), partial_output_.data(), tensors);
  });
}

void CpuAttention::RunUnits(const AttentionShape& shape, const PagedKv& kv,
                            const AttentionPlan& plan, const AttentionTensors& tensors,
                            float* scores, const uint64_t* unit_begin, bool apply) {
  const size_t lanes = HWY_DYNAMIC_DISPATCH(Lanes)(shape.head_dim);
  const uint32_t group = shape.query_heads / shape.kv_heads;
  partial_output_.resize(uint64_t{plan.partial_count} * shape.query_heads * shape.head_dim);
  partial_lse_.resize(uint64_t{plan.partial_count} * shape.query_heads);
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
    if (scores != nullptr) {
      unit_task.scores =
          scores + unit_begin[unit] + head * ScoresOf(plan.units[unit], group, lanes);
    }
    HWY_DYNAMIC_DISPATCH(RunUnit)(unit_task, scratch_[worker].data());
  });
}

namespace {

double SecondsOf(ThreadPool& pool, const std::function<void(size_t, uint32_t)>& work) {
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    pool.ParallelFor(pool.thread_count(), work);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count());
  }
  return best;
}

}  // namespace

double MeasureReadBytesPerS(ThreadPool& pool) {
  constexpr size_t kWords = size_t{128} << 17;  // 128 MiB over all threads
  std::vector<uint64_t> words(kWords, 1);
  const size_t part = kWords / pool.thread_count();
  std::vector<uint64_t> sums(pool.thread_count());
  const double seconds = SecondsOf(pool, [&](size_t i, uint32_t) {
    sums[i] += HWY_DYNAMIC_DISPATCH(SumWords)(words.data() + i * part, part);
  });
  return static_cast<double>(part * pool.thread_count() * sizeof(uint64_t)) / seconds;
}

double MeasureMultiplyAddOpsPerS(ThreadPool& pool) {
  std::vector<float> out(pool.thread_count() * 64, 1.0f);
  double operations = 0;
  const double seconds = SecondsOf(pool, [&](size_t i, uint32_t) {
    const double done = HWY_DYNAMIC_DISPATCH(MultiplyAdds)(2'000'000, &out[i * 64]);
    if (i == 0) operations = done;
  });
  return operations * pool.thread_count() / seconds;
}

}  // namespace turnkeep
#endif  // HWY_ONCE
