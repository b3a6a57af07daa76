#include "llama/gemm.h"

#include <cblas.h>

#include <algorithm>
#include <cstring>

#include "core/check.h"

namespace turnkeep::llama {
namespace {

// out[n * width + t], the transposed result: tokens are the rows of OpenBLAS's (column
// major) matrix, so that a row of W has the same place in every call.
void TileTimesBlock(const float* x, const float* w, float* out, uint32_t width, uint32_t rows,
                    uint32_t in) {
  cblas_sgemm(CblasColMajor, CblasTrans, CblasNoTrans, static_cast<blasint>(width),
              static_cast<blasint>(rows), static_cast<blasint>(in), 1.0f, x,
              static_cast<blasint>(in), w, static_cast<blasint>(in), 0.0f, out,
              static_cast<blasint>(width));
}

// Deterministic values with full mantissas: any change of order or of fusing shows.
void FillProbe(std::vector<float>* values, uint32_t seed) {
  uint32_t state = seed * 2654435761u + 1;
  for (float& value : *values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
  }
}

// Whether `width` tokens at a time give each token the same bits in every column,
// whatever its neighbours are.
bool ColumnsAgree(uint32_t width, uint32_t rows, uint32_t in) {
  std::vector<float> x(2 * size_t{width} * in), w(size_t{rows} * in);
  FillProbe(&x, width + 1);
  FillProbe(&w, rows + in);
  std::vector<float> reference(size_t{width} * rows), shifted(size_t{width} * rows);
  TileTimesBlock(x.data(), w.data(), reference.data(), width, rows, in);
  for (uint32_t shift = 1; shift < width; ++shift) {
    TileTimesBlock(x.data() + size_t{shift} * in, w.data(), shifted.data(), width, rows, in);
    for (size_t n = 0; n < rows; ++n) {
      if (std::memcmp(&reference[n * width + shift], &shifted[n * width],
                      (width - shift) * sizeof(float)) != 0) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

Gemm::Gemm(ThreadPool* pool, std::span<const Shape> shapes)
    : pool_(pool), shapes_(shapes.begin(), shapes.end()) {
  openblas_set_num_threads(1);
  std::vector<Shape> blocks;  // the distinct (block rows, in) of all calls
  const auto add = [&blocks](uint32_t rows, uint32_t in) {
    if (rows == 0) return;
    for (const Shape& block : blocks) {
      if (block.out == rows && block.in == in) return;
    }
    blocks.push_back({rows, in});
  };
  uint32_t widest_in = 0;
  for (const Shape& shape : shapes_) {
    if (shape.out >= kBlockRows) add(kBlockRows, shape.in);
    add(shape.out % kBlockRows, shape.in);
    widest_in = std::max(widest_in, shape.in);
  }
  for (tile_tokens_ = kMaxTileTokens; tile_tokens_ > 1; tile_tokens_ /= 2) {
    const bool agree = std::all_of(blocks.begin(), blocks.end(), [this](const Shape& block) {
      return ColumnsAgree(tile_tokens_, block.out, block.in);
    });
    if (agree) break;
  }
  padded_.resize(size_t{tile_tokens_} * widest_in);
  scratch_.assign(pool->thread_count(), std::vector<float>(kMaxTileTokens * kBlockRows));
}

void Gemm::Multiply(const float* x, const float* w, float* y, size_t tokens, Shape shape) {
  TK_CHECK(std::any_of(shapes_.begin(), shapes_.end(), [&shape](const Shape& known) {
    return known.out == shape.out && known.in == shape.in;
  }));
  const size_t tiles = (tokens + tile_tokens_ - 1) / tile_tokens_;
  const size_t blocks = (shape.out + kBlockRows - 1) / kBlockRows;
  const size_t in_last = tokens - (tiles - 1) * tile_tokens_;
  if (in_last < tile_tokens_) {
    const float* last = x + (tokens - in_last) * shape.in;
    std::memcpy(padded_.data(), last, in_last * shape.in * sizeof(float));
    std::fill(padded_.begin() + in_last * shape.in, padded_.begin() + tile_tokens_ * shape.in,
              0.0f);
  }
  // Tiles inside blocks: a block of W stays in cache for all tokens.
  pool_->ParallelFor(tiles * blocks, [&](size_t task, uint32_t worker) {
    const size_t tile = task % tiles;
    const size_t row = task / tiles * kBlockRows;
    const uint32_t rows = static_cast<uint32_t>(std::min<size_t>(kBlockRows, shape.out - row));
    const bool partial = tile + 1 == tiles && in_last < tile_tokens_;
    const float* tile_x = partial ? padded_.data() : x + tile * tile_tokens_ * shape.in;
    float* out = scratch_[worker].data();
    TileTimesBlock(tile_x, w + row * shape.in, out, tile_tokens_, rows, shape.in);
    const size_t count = partial ? in_last : tile_tokens_;
    for (size_t t = 0; t < count; ++t) {
      float* target = y + (tile * tile_tokens_ + t) * shape.out + row;
      for (size_t n = 0; n < rows; ++n) target[n] = out[n * tile_tokens_ + t];
    }
  });
}

}  // namespace turnkeep::llama
