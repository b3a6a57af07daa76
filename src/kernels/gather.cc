#include "kernels/gather.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include <hwy/cache_control.h>

#include "core/check.h"
#include "kernels/split_pages.h"
#include "kernels/stream_rows.h"
#include "kernels/transpose.h"

namespace turnkeep {

namespace {

constexpr uint32_t kTileTokens = 16;
// From here on the caches could not keep what is moved for whoever reads it.
constexpr uint64_t kStreamedBytes = 64 * 1024;
// What is rearranged is so in the L1 cache, and streamed from there.
constexpr uint64_t kStagingBytes = 16 * 1024;

// Calls use(page start, first token in the page, tokens, tokens before) for each page's part.
template <typename Use>
void ForEachPage(const PagedPlane& plane, const TokenRange& range, const Use& use) {
  uint64_t token = range.first_token;
  for (uint32_t done = 0; done < range.token_count;) {
    const uint64_t page = token / plane.page_tokens;
    const auto in_page = static_cast<uint32_t>(token % plane.page_tokens);
    const uint32_t count = std::min(plane.page_tokens - in_page, range.token_count - done);
    TK_CHECK(page < range.pages.size());
    use(plane.base + range.pages[page] * plane.page_stride * plane.element_bytes, in_page, count,
        done);
    token += count;
    done += count;
  }
}

// Elements of kBytes between [token][i] on the dense side and strides on the paged one, for one
// head of one page, `kToDense` telling the direction.
template <int kBytes, bool kToDense>
void MoveElements(const PagedPlane& plane, std::byte* paged, std::byte* dense, uint32_t tokens) {
  const uint64_t dense_token = uint64_t{plane.heads} * plane.dim * kBytes;
  const uint64_t token_bytes = plane.token_stride * kBytes;
  for (uint32_t block = 0; block < plane.dim; block += plane.block_dim) {
    std::byte* const at = paged + block / plane.block_dim * plane.block_stride * kBytes;
    for (uint32_t i = 0; i < plane.block_dim; ++i) {
      std::byte* p = at + i * plane.element_stride * kBytes;
      std::byte* d = dense + uint64_t{block + i} * kBytes;
      for (uint32_t t = 0; t < tokens; ++t, p += token_bytes, d += dense_token) {
        if constexpr (kToDense) {
          std::memcpy(d, p, kBytes);
        } else {
          std::memcpy(p, d, kBytes);
        }
      }
    }
  }
}

// Blocks of 16 bytes, as split keys have them.
template <bool kToDense>
void MoveBlocks(const PagedPlane& plane, std::byte* paged, std::byte* dense, uint32_t tokens) {
  const uint64_t dense_token = uint64_t{plane.heads} * plane.dim * plane.element_bytes;
  const uint64_t token_bytes = plane.token_stride * plane.element_bytes;
  const uint64_t block_bytes = plane.block_stride * plane.element_bytes;
  const uint32_t blocks = plane.dim / plane.block_dim;
  for (uint32_t t = 0; t < tokens; ++t) {
    std::byte* p = paged + t * token_bytes;
    std::byte* d = dense + t * dense_token;
    for (uint32_t b = 0; b < blocks; ++b, p += block_bytes, d += 16) {
      if constexpr (kToDense) {
        std::memcpy(d, p, 16);
      } else {
        std::memcpy(p, d, 16);
      }
    }
  }
}

template <bool kToDense>
void MoveHead(const PagedPlane& plane, std::byte* paged, std::byte* dense, uint32_t tokens) {
  const uint64_t row_bytes = uint64_t{plane.dim} * plane.element_bytes;
  const uint64_t dense_token = plane.heads * row_bytes;
  if (plane.RowsAreDense()) {
    const uint64_t token_bytes = plane.token_stride * plane.element_bytes;
    for (uint32_t t = 0; t < tokens; ++t) {
      if constexpr (kToDense) {
        std::memcpy(dense + t * dense_token, paged + t * token_bytes, row_bytes);
      } else {
        std::memcpy(paged + t * token_bytes, dense + t * dense_token, row_bytes);
      }
    }
    return;
  }
  if (plane.element_stride == 1 && plane.block_dim * plane.element_bytes == 16)
    return MoveBlocks<kToDense>(plane, paged, dense, tokens);
  if (plane.block_dim == 1 && plane.token_stride == 1 && plane.element_bytes == 2) {
    const uint64_t row = plane.block_stride * 2;
    if constexpr (kToDense) {
      Transpose16(paged, row, plane.dim, tokens, dense, dense_token);
    } else {
      Transpose16(dense, dense_token, tokens, plane.dim, paged, row);
    }
    return;
  }
  // Tiles of tokens, so that both sides' lines stay in the cache until they are done with.
  for (uint32_t t = 0; t < tokens; t += kTileTokens) {
    const uint32_t count = std::min(kTileTokens, tokens - t);
    std::byte* const p = paged + t * plane.token_stride * plane.element_bytes;
    std::byte* const d = dense + t * dense_token;
    switch (plane.element_bytes) {
      case 1:
        MoveElements<1, kToDense>(plane, p, d, count);
        break;
      case 2:
        MoveElements<2, kToDense>(plane, p, d, count);
        break;
      default:
        MoveElements<4, kToDense>(plane, p, d, count);
    }
  }
}

// Tokens that are rearranged at once, between which the next head is asked for.
constexpr uint32_t kStepTokens = 8;

// Asks for lines of a source, a few at a time: no prefetcher follows heads and blocks, and many at
// once wait for one another.
class Ahead {
 public:
  Ahead(const std::byte* from, uint64_t stride, uint32_t rows, uint64_t row_bytes)
      : from_(from), stride_(stride), rows_(rows), row_bytes_(row_bytes) {}
  void Step(uint32_t lines) {
    for (; lines > 0 && row_ < rows_; --lines) {
      hwy::Prefetch(from_ + row_ * stride_ + at_);
      at_ += 64;
      if (at_ < row_bytes_) continue;
      at_ = 0;
      ++row_;
    }
  }

 private:
  const std::byte* from_;
  uint64_t stride_;
  uint32_t rows_;
  uint64_t row_bytes_;
  uint32_t row_ = 0;
  uint64_t at_ = 0;
};

// A head's part of a page of vLLM's split keys and values; false where that cannot be.
template <bool kToDense>
bool StreamSplit(const PagedPlane& plane, const SplitPart& part) {
  if (plane.element_stride == 1 && plane.block_dim * plane.element_bytes == 16)
    return kToDense ? GatherSplitKeys(part) : ScatterSplitKeys(part);
  if (plane.block_dim == 1 && plane.token_stride == 1 && plane.element_bytes == 2)
    return kToDense ? GatherSplitValues(part) : ScatterSplitValues(part);
  return false;
}

// MoveHead with streaming stores; false where that cannot be: the destination must be whole cache
// lines. A head's part of a page, if it is not rows, is rearranged into `staging` first.
template <bool kToDense>
bool StreamHead(const PagedPlane& plane, std::byte* paged, std::byte* dense, uint32_t tokens,
                std::byte* staging, Ahead& ahead) {
  const uint64_t row_bytes = uint64_t{plane.dim} * plane.element_bytes;
  const uint64_t dense_token = plane.heads * row_bytes;
  const uint64_t token_bytes = plane.token_stride * plane.element_bytes;
  const auto step_lines = static_cast<uint32_t>(kStepTokens * row_bytes / 64);
  const bool rows = plane.RowsAreDense();
  if constexpr (kToDense) {
    if (!CanStreamRows(dense, dense_token, row_bytes)) return false;
    if (rows) {
      StreamRows(paged, token_bytes, tokens, row_bytes, dense, dense_token);
      return true;
    }
    if (row_bytes * kTileTokens > kStagingBytes) return false;
    PagedPlane alone = plane;  // the staging buffer holds one head
    alone.heads = 1;
    for (uint32_t t = 0; t < tokens; t += kTileTokens) {
      const uint32_t count = std::min(kTileTokens, tokens - t);
      for (uint32_t i = 0; i < count; i += kStepTokens) {
        ahead.Step(step_lines);
        MoveHead<true>(alone, paged + (t + i) * token_bytes, staging + i * row_bytes,
                       std::min(kStepTokens, count - i));
      }
      StreamRows(staging, row_bytes, count, row_bytes, dense + t * dense_token, dense_token);
    }
    return true;
  }
  if (rows) {
    if (!CanStreamRows(paged, token_bytes, row_bytes)) return false;
    StreamRows(dense, dense_token, tokens, row_bytes, paged, token_bytes);
    return true;
  }
  // A whole page's part is contiguous.
  const uint64_t bytes = tokens * row_bytes;
  if (tokens != plane.page_tokens || bytes > kStagingBytes || !CanStreamRows(paged, bytes, bytes))
    return false;
  for (uint32_t t = 0; t < tokens; t += kStepTokens) {
    ahead.Step(step_lines);
    // Tokens of all heads lie between those of one: it is moved as one of them.
    MoveHead<false>(plane, staging + t * token_bytes, dense + t * dense_token,
                    std::min(kStepTokens, tokens - t));
  }
  StreamRows(staging, bytes, 1, bytes, paged, bytes);
  return true;
}

template <bool kToDense>
void Move(const PagedPlane& plane, const TokenRange& range, std::byte* dense) {
  const uint64_t row_bytes = uint64_t{plane.dim} * plane.element_bytes;
  const uint64_t dense_token = plane.heads * row_bytes;
  const bool stream = range.token_count * dense_token >= kStreamedBytes;
  alignas(64) std::byte staging[kStagingBytes];
  ForEachPage(plane, range, [&](std::byte* page, uint32_t in_page, uint32_t count, uint32_t done) {
    std::byte* const paged = page + in_page * plane.token_stride * plane.element_bytes;
    std::byte* const to = dense + done * dense_token;
    if (plane.TokensAreDense()) {
      if constexpr (kToDense) {
        std::memcpy(to, paged, count * dense_token);
      } else {
        std::memcpy(paged, to, count * dense_token);
      }
      return;
    }
    for (uint32_t head = 0; head < plane.heads; ++head) {
      std::byte* const from = paged + head * plane.head_stride * plane.element_bytes;
      std::byte* const row = to + head * row_bytes;
      const uint32_t next = head + 1 < plane.heads ? 1 : 0;
      const std::byte* const next_paged = from + next * plane.head_stride * plane.element_bytes;
      const SplitPart part{.paged = from,
                           .paged_stride = plane.block_stride * plane.element_bytes,
                           .dense = row,
                           .dense_stride = dense_token,
                           .row_bytes = row_bytes,
                           .tokens = count,
                           .next_paged = next > 0 ? next_paged : nullptr,
                           .next_dense = next > 0 ? row + row_bytes : nullptr};
      if (stream && StreamSplit<kToDense>(plane, part)) continue;
      Ahead ahead = kToDense ? Ahead(next_paged, 0, next, plane.page_tokens * row_bytes)
                             : Ahead(row + next * row_bytes, dense_token, next * count, row_bytes);
      if (stream && StreamHead<kToDense>(plane, from, row, count, staging, ahead)) continue;
      MoveHead<kToDense>(plane, from, row, count);
    }
  });
  if (stream) StreamFence();
}

}  // namespace

void GatherPlane(const PagedPlane& plane, const TokenRange& range, std::byte* dense) {
  Move<true>(plane, range, dense);
}

void ScatterPlane(const PagedPlane& plane, const TokenRange& range, const std::byte* dense) {
  Move<false>(plane, range, const_cast<std::byte*>(dense));
}

void ScatterRotated(const PagedPlane& plane, const TokenRange& range, const std::byte* dense,
                    DType dtype, const Rotation& rotation) {
  if (rotation.IsIdentity()) return ScatterPlane(plane, range, dense);
  TK_CHECK(DTypeBytes(dtype) == plane.element_bytes);
  // So many tokens at a time that they are streamed, from the L2 cache that they were rotated to.
  const uint64_t token_bytes = uint64_t{plane.heads} * plane.dim * plane.element_bytes;
  const auto at_once = static_cast<uint32_t>(
      std::clamp<uint64_t>((kStreamedBytes + token_bytes - 1) / token_bytes, 1, range.token_count));
  std::vector<std::byte> rotated(at_once * token_bytes);
  for (uint32_t done = 0; done < range.token_count; done += at_once) {
    const uint32_t count = std::min(at_once, range.token_count - done);
    rotation.Rotate(dtype, plane.heads, plane.dim, done, count, dense + done * token_bytes,
                    rotated.data());
    ScatterPlane(plane, {range.pages, range.first_token + done, count}, rotated.data());
  }
}

}  // namespace turnkeep
