#include "llama/vector_math.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace turnkeep::llama {

void RmsNorm(const float* x, const float* weight, float* out, size_t dim) {
  double squares = 0;
  for (size_t i = 0; i < dim; ++i) squares += static_cast<double>(x[i]) * x[i];
  const float scale =
      static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(dim) + kNormEpsilon));
  for (size_t i = 0; i < dim; ++i) out[i] = x[i] * scale * weight[i];
}

void SwiGlu(float* gate, const float* up, size_t count) {
  for (size_t i = 0; i < count; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

uint16_t ToBFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

float FromBFloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

void StoreRow(const float* values, DType dtype, std::byte* row, size_t count) {
  if (dtype == DType::kFloat32) {
    std::memcpy(row, values, count * sizeof(float));
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    const uint16_t bits = ToBFloat16(values[i]);
    std::memcpy(row + 2 * i, &bits, sizeof(bits));
  }
}

void LoadRow(const std::byte* row, DType dtype, float* values, size_t count) {
  if (dtype == DType::kFloat32) {
    std::memcpy(values, row, count * sizeof(float));
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * i, sizeof(bits));
    values[i] = FromBFloat16(bits);
  }
}

Rope::Rope(uint32_t head_dim, double theta) {
  for (uint32_t i = 0; i < head_dim; i += 2) {
    inv_freq_.push_back(static_cast<float>(std::pow(theta, -static_cast<double>(i) / head_dim)));
  }
}

std::vector<float> Rope::Angles(int64_t position) const {
  const size_t pairs = inv_freq_.size();
  std::vector<float> angles(2 * pairs);
  for (size_t i = 0; i < pairs; ++i) {
    const double angle = static_cast<double>(position) * inv_freq_[i];
    angles[i] = static_cast<float>(std::cos(angle));
    angles[pairs + i] = static_cast<float>(std::sin(angle));
  }
  return angles;
}

void Rope::Rotate(std::span<const float> angles, float* rows, size_t heads, size_t head_dim) {
  const size_t pairs = head_dim / 2;
  for (size_t head = 0; head < heads; ++head) {
    float* row = rows + head * head_dim;
    for (size_t i = 0; i < pairs; ++i) {
      const float a = row[2 * i], b = row[2 * i + 1];
      const float cosine = angles[i], sine = angles[pairs + i];
      row[2 * i] = a * cosine - b * sine;
      row[2 * i + 1] = a * sine + b * cosine;
    }
  }
}

namespace {

// Eight lanes; the compiler splits them where the machine has narrower registers. Kept
// behind pointers, since passing them by value changes the ABI between instruction sets.
typedef float Lanes __attribute__((vector_size(32)));

#define TK_INLINE [[gnu::always_inline]] inline

TK_INLINE void LoadLanes(const std::byte* row, size_t index, bool bfloat16, Lanes* out) {
  if (!bfloat16) {
    std::memcpy(out, row + index * sizeof(float), sizeof(Lanes));
    return;
  }
  typedef uint16_t Half __attribute__((vector_size(16)));
  typedef uint32_t Word __attribute__((vector_size(32)));
  Half half;
  std::memcpy(&half, row + index * sizeof(uint16_t), sizeof(half));
  const Word word = __builtin_convertvector(half, Word) << 16;
  std::memcpy(out, &word, sizeof(word));
}

TK_INLINE float SumLanes(const Lanes* lanes) {
  const Lanes& v = *lanes;
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// scores[0..N) = scale * q . K of N consecutive rows.
template <int N>
TK_INLINE void DotRows(const float* query, const std::byte* rows, size_t row_bytes, size_t head_dim,
                       bool bfloat16, float scale, float* scores) {
  Lanes sum[N];
  for (int i = 0; i < N; ++i) sum[i] = Lanes{};
  for (size_t d = 0; d < head_dim; d += 8) {
    Lanes q;
    std::memcpy(&q, query + d, sizeof(q));
    for (int i = 0; i < N; ++i) {
      Lanes k;
      LoadLanes(rows + i * row_bytes, d, bfloat16, &k);
      sum[i] += q * k;
    }
  }
  for (int i = 0; i < N; ++i) scores[i] = SumLanes(&sum[i]) * scale;
}

TK_INLINE void Scores(const AttentionTask& task, const float* query, bool bfloat16) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(task.head_dim));
  for (size_t begin = 0, page = 0; begin < task.tokens; begin += task.page_tokens, ++page) {
    const size_t count = std::min(task.page_tokens, task.tokens - begin);
    const std::byte* rows = task.key_pages[page];
    float* scores = task.scores.data() + begin;
    size_t t = 0;
    for (; t + 4 <= count; t += 4) {
      DotRows<4>(query, rows + t * task.row_bytes, task.row_bytes, task.head_dim, bfloat16, scale,
                 scores + t);
    }
    for (; t < count; ++t) {
      DotRows<1>(query, rows + t * task.row_bytes, task.row_bytes, task.head_dim, bfloat16, scale,
                 scores + t);
    }
  }
}

// out[d..d + 8N) = sum over tokens of weight * V.
template <int N>
TK_INLINE void WeighValues(const AttentionTask& task, size_t d, bool bfloat16, float* out) {
  Lanes sum[N];
  for (int i = 0; i < N; ++i) sum[i] = Lanes{};
  for (size_t begin = 0, page = 0; begin < task.tokens; begin += task.page_tokens, ++page) {
    const size_t count = std::min(task.page_tokens, task.tokens - begin);
    const std::byte* row = task.value_pages[page];
    for (size_t t = 0; t < count; ++t, row += task.row_bytes) {
      const float weight = task.scores[begin + t];
      for (int i = 0; i < N; ++i) {
        Lanes v;
        LoadLanes(row, d + 8 * i, bfloat16, &v);
        sum[i] += weight * v;
      }
    }
  }
  for (int i = 0; i < N; ++i) std::memcpy(out + d + 8 * i, &sum[i], sizeof(Lanes));
}

// Turns scores into weights that add up to one.
TK_INLINE void Softmax(float* scores, size_t count) {
  float highest = -std::numeric_limits<float>::infinity();
  for (size_t t = 0; t < count; ++t) highest = scores[t] > highest ? scores[t] : highest;
  float sum = 0;
  for (size_t t = 0; t < count; ++t) {
    scores[t] = std::exp(scores[t] - highest);
    sum += scores[t];
  }
  const float inverse = 1.0f / sum;
  for (size_t t = 0; t < count; ++t) scores[t] *= inverse;
}

TK_INLINE void AttendBody(const AttentionTask& task, bool bfloat16) {
  for (size_t g = 0; g < task.group; ++g) {
    Scores(task, task.query + g * task.head_dim, bfloat16);
    Softmax(task.scores.data(), task.tokens);
    float* out = task.out + g * task.head_dim;
    size_t d = 0;
    for (; d + 32 <= task.head_dim; d += 32) WeighValues<4>(task, d, bfloat16, out);
    for (; d < task.head_dim; d += 8) WeighValues<1>(task, d, bfloat16, out);
  }
}

void AttendBaseline(const AttentionTask& task) {
  if (task.dtype == DType::kBFloat16) return AttendBody(task, true);
  AttendBody(task, false);
}

#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] void AttendAvx2(const AttentionTask& task) {
  if (task.dtype == DType::kBFloat16) return AttendBody(task, true);
  AttendBody(task, false);
}

bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

}  // namespace

void Attend(const AttentionTask& task) {
#if defined(__x86_64__)
  static const bool has_avx2 = HasAvx2();
  if (has_avx2) return AttendAvx2(task);
#endif
  AttendBaseline(task);
}

}  // namespace turnkeep::llama
