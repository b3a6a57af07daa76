// Y = X · W^T by OpenBLAS, with results that do not depend on what else is in the batch.
//
// OpenBLAS chooses its inner kernel by where a row or column falls in the matrix, and
// the kernels round differently. With 0.3.21 on AVX2 the last bits of one token's
// result change with its place in the batch for most widths (12, 24, 64, …), and the
// thread count changes them too. A restored context must give the logits of a computed
// one bit for bit, so:
//  - every call has the same shape: `tile_tokens` tokens (padded with zeros) by one
//    fixed block of kBlockRows rows of W, single-threaded, and our threads share the
//    (tile, block) pairs;
//  - the tile width is the largest of 16, 8, 4, 2, 1 for which a probe finds, for every
//    shape the model uses, that a token's result is the same in every column and beside
//    any neighbours. Width 1 is right by construction.
// Costs, one AVX2 core at 2.4 GHz, 512 x 512: about 50 GFLOP/s at width 16, against
// 65 for an unconstrained 64-wide call and 5 for one token at a time.
//
// Thread-safety: one Multiply at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/thread_pool.h"

namespace turnkeep::llama {

class Gemm {
 public:
  struct Shape {
    uint32_t out = 0;  // rows of W
    uint32_t in = 0;   // columns of W
  };

  // Probes the tile width for `shapes`; Multiply accepts only these. `pool` outlives this.
  Gemm(ThreadPool* pool, std::span<const Shape> shapes);

  uint32_t tile_tokens() const { return tile_tokens_; }

  // y[t, n] = sum over k of x[t, k] * w[n, k]; x is [tokens, in], y is [tokens, out], both
  // dense and not overlapping. Blocks.
  void Multiply(const float* x, const float* w, float* y, size_t tokens, Shape shape);

 private:
  static constexpr uint32_t kBlockRows = 128;
  static constexpr uint32_t kMaxTileTokens = 16;

  ThreadPool* pool_;
  uint32_t tile_tokens_ = 1;
  std::vector<Shape> shapes_;
  std::vector<float> padded_;                // the last tile of x, zeros behind it
  std::vector<std::vector<float>> scratch_;  // a worker's result before transposition
};

}  // namespace turnkeep::llama
