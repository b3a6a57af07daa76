// The engine's arithmetic outside of GEMM: norms, RoPE, SwiGLU, rounding, attention.
//
// Everything works on one token at a time with a fixed order of operations, so a
// token's result depends on its own inputs only. Results may differ between machines
// (attention has an AVX2 and a baseline version), never between calls on one.
//
// Thread-safe: pure functions and a table that is constant after construction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/layout.h"

namespace turnkeep::llama {

inline constexpr float kNormEpsilon = 1e-5f;

// out[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps); `out` may be `x`.
void RmsNorm(const float* x, const float* weight, float* out, size_t dim);

// gate[i] = silu(gate[i]) * up[i]
void SwiGlu(float* gate, const float* up, size_t count);

// Nearest, ties to even; NaN stays NaN.
uint16_t ToBFloat16(float value);
float FromBFloat16(uint16_t bits);

// Between float32 and a KV row of `dtype` (kFloat32 or kBFloat16).
void StoreRow(const float* values, DType dtype, std::byte* row, size_t count);
void LoadRow(const std::byte* row, DType dtype, float* values, size_t count);

// RoPE on adjacent pairs: (a, b) -> (a cos - b sin, a sin + b cos), angle = position *
// inv_freq[pair]. Angles are computed in double precision.
class Rope {
 public:
  Rope(uint32_t head_dim, double theta);

  const std::vector<float>& inv_freq() const { return inv_freq_; }
  // Cosines, then sines, of one position (or of a difference of positions): head_dim floats.
  std::vector<float> Angles(int64_t position) const;
  // Rotates `heads` rows of head_dim in place.
  static void Rotate(std::span<const float> angles, float* rows, size_t heads, size_t head_dim);

 private:
  std::vector<float> inv_freq_;
};

// One query token and one kv head: the query heads that share it, causal over `tokens`
// cached tokens.
//   out[g] = sum_t softmax_t(scale * q[g] . K[t]) V[t]
struct AttentionTask {
  const float* query = nullptr;  // [group, head_dim]
  float* out = nullptr;          // [group, head_dim]
  size_t group = 0;
  size_t head_dim = 0;  // a multiple of 8
  size_t tokens = 0;    // at least 1
  DType dtype = DType::kFloat32;
  // First element of this head in token t of page p: key_pages[p] + t * row_bytes.
  std::span<const std::byte* const> key_pages;
  std::span<const std::byte* const> value_pages;
  size_t page_tokens = 0;
  size_t row_bytes = 0;
  std::span<float> scores;  // scratch, at least `tokens`
};
void Attend(const AttentionTask& task);

}  // namespace turnkeep::llama
