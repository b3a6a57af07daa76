// How an engine lays its paged KV cache out, described by strides, for the layouts in use.
//
// A plane is one of K, V, their scales, or MLA's latent and rotary parts, of one layer: elements
// [page, token, head, i], where element i of a row lies
//   page · page_stride + token · token_stride + head · head_stride
//     + (i / block_dim) · block_stride + (i % block_dim) · element_stride
// elements from `base`.
//
// Thread-safe: plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace turnkeep {

enum class PagedKind : uint8_t {
  kPageKvTokenHead = 1,  // [pages, 2, page, kv_heads, d]
  kKvPageTokenHead,      // [2, pages, page, kv_heads, d]
  kPageHeadKvToken,      // [pages, kv_heads, 2, page, d]
  kSplitKeys,  // K [pages, kv_heads, d/x, page, x], V [pages, kv_heads, d, page]; x: 16 bytes
  kLatent,     // [pages, page, latent_dim + rope_dim]
};
std::string_view NameOf(PagedKind kind);

struct PagedPlane {
  std::byte* base = nullptr;  // borrowed
  uint32_t element_bytes = 0;
  uint32_t page_tokens = 0;
  uint32_t heads = 0;
  uint32_t dim = 0;
  uint64_t page_stride = 0;
  uint64_t token_stride = 0;
  uint64_t head_stride = 0;
  uint32_t block_dim = 0;  // divides dim; dim: rows are contiguous
  uint64_t block_stride = 0;
  uint64_t element_stride = 1;  // inside a block

  // Whether [token, head, i] of one page lie as in a dense array.
  bool TokensAreDense() const {
    return RowsAreDense() && head_stride == dim && token_stride == uint64_t{heads} * dim;
  }
  bool RowsAreDense() const { return block_dim == dim && element_stride == 1; }
};

struct PagedSpec {
  PagedKind kind = PagedKind::kPageKvTokenHead;
  uint32_t element_bytes = 2;  // 1, 2 or 4
  uint32_t page_tokens = 16;   // 1..256
  uint32_t page_count = 0;
  uint32_t kv_heads = 1;
  uint32_t key_dim = 0;    // kLatent: latent_dim; 8..576, kSplitKeys: a multiple of x
  uint32_t value_dim = 0;  // kLatent: rope_dim
  // One allocation for all layers: page p of layer l lies at page p · layers + l of it, as
  // [pages, layers, …] does. 1: every layer has an allocation of its own.
  uint32_t layers = 1;
};

// Bytes of the allocation that a spec describes. InvalidArgument names the field.
absl::StatusOr<uint64_t> PagedBytes(const PagedSpec& spec);

struct PagedLayer {
  PagedPlane keys;    // kLatent: the latent, one head
  PagedPlane values;  // kLatent: the rotary key, one head
};
// The planes of one layer in an allocation of PagedBytes. InvalidArgument as PagedBytes.
absl::StatusOr<PagedLayer> PlanesOf(const PagedSpec& spec, std::byte* memory, uint32_t layer);

// Float32 scales [pages, page, kv_heads] that lie beside a quantised cache: a plane of rows of one.
PagedPlane ScalePlane(std::byte* memory, uint32_t page_tokens, uint32_t kv_heads);

}  // namespace turnkeep
