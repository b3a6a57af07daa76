#include "kernels/paged_layout.h"

#include <string>

#include "core/status.h"

namespace turnkeep {

namespace {

constexpr uint32_t kSplitBytes = 16;

absl::Status Validate(const PagedSpec& spec) {
  if (spec.element_bytes != 1 && spec.element_bytes != 2 && spec.element_bytes != 4)
    return InvalidArgument("paged layout: element_bytes {} is not 1, 2 or 4", spec.element_bytes);
  if (spec.page_tokens == 0 || spec.page_tokens > 256)
    return InvalidArgument("paged layout: page_tokens {} is outside 1..256", spec.page_tokens);
  if (spec.kv_heads == 0) return InvalidArgument("paged layout: kv_heads is 0");
  if (spec.layers == 0) return InvalidArgument("paged layout: layers is 0");
  if (spec.kind == PagedKind::kLatent && spec.kv_heads != 1)
    return InvalidArgument("paged layout: kv_heads {} of a latent, which has 1", spec.kv_heads);
  for (const auto& [name, dim] : {std::pair<const char*, uint32_t>{"key_dim", spec.key_dim},
                                  std::pair<const char*, uint32_t>{"value_dim", spec.value_dim}}) {
    if (dim < 8 || dim > 576)
      return InvalidArgument("paged layout: {} {} is outside 8..576", name, dim);
  }
  const bool one_dim = spec.kind != PagedKind::kLatent && spec.kind != PagedKind::kSplitKeys;
  if (one_dim && spec.key_dim != spec.value_dim) {
    return InvalidArgument("paged layout: key_dim {} and value_dim {} differ, {} has one",
                           spec.key_dim, spec.value_dim, std::string(NameOf(spec.kind)));
  }
  if (spec.kind == PagedKind::kSplitKeys && spec.key_dim % (kSplitBytes / spec.element_bytes) != 0)
    return InvalidArgument("paged layout: key_dim {} is not a multiple of {} bytes", spec.key_dim,
                           kSplitBytes);
  return absl::OkStatus();
}

// Elements of one page of one layer, K and V.
uint64_t PageElements(const PagedSpec& spec) {
  return uint64_t{spec.page_tokens} * spec.kv_heads * (spec.key_dim + spec.value_dim);
}

}  // namespace

std::string_view NameOf(PagedKind kind) {
  switch (kind) {
    case PagedKind::kPageKvTokenHead:
      return "page_kv_token_head";
    case PagedKind::kKvPageTokenHead:
      return "kv_page_token_head";
    case PagedKind::kPageHeadKvToken:
      return "page_head_kv_token";
    case PagedKind::kSplitKeys:
      return "split_keys";
    case PagedKind::kLatent:
      return "latent";
  }
  return "unknown";
}

absl::StatusOr<uint64_t> PagedBytes(const PagedSpec& spec) {
  TK_RETURN_IF_ERROR(Validate(spec));
  return PageElements(spec) * spec.element_bytes * spec.page_count * spec.layers;
}

absl::StatusOr<PagedLayer> PlanesOf(const PagedSpec& spec, std::byte* memory, uint32_t layer) {
  TK_RETURN_IF_ERROR(Validate(spec));
  if (layer >= spec.layers)
    return InvalidArgument("paged layout: layer {} of {}", layer, spec.layers);
  const uint64_t heads = spec.kv_heads;
  const uint64_t tokens = spec.page_tokens;
  const uint64_t page = PageElements(spec);
  PagedPlane keys{.element_bytes = spec.element_bytes,
                  .page_tokens = spec.page_tokens,
                  .heads = spec.kv_heads,
                  .dim = spec.key_dim,
                  .page_stride = page * spec.layers,
                  .block_dim = spec.key_dim};
  PagedPlane values = keys;
  values.dim = values.block_dim = spec.value_dim;
  uint64_t values_at = 0;  // elements behind the keys
  uint64_t layer_at = page * layer;
  switch (spec.kind) {
    case PagedKind::kPageKvTokenHead:
    case PagedKind::kKvPageTokenHead:
      keys.token_stride = values.token_stride = heads * spec.key_dim;
      keys.head_stride = values.head_stride = spec.key_dim;
      values_at = tokens * heads * spec.key_dim;
      if (spec.kind == PagedKind::kKvPageTokenHead) {
        keys.page_stride = values.page_stride = values_at * spec.layers;
        layer_at = values_at * layer;
        values_at *= uint64_t{spec.page_count} * spec.layers;
      }
      break;
    case PagedKind::kPageHeadKvToken:
      keys.token_stride = values.token_stride = spec.key_dim;
      keys.head_stride = values.head_stride = 2 * tokens * spec.key_dim;
      values_at = tokens * spec.key_dim;
      break;
    case PagedKind::kSplitKeys:
      keys.block_dim = kSplitBytes / spec.element_bytes;
      keys.token_stride = keys.block_dim;
      keys.block_stride = tokens * keys.block_dim;
      keys.head_stride = tokens * spec.key_dim;
      values.block_dim = 1;
      values.block_stride = tokens;
      values.token_stride = 1;
      values.head_stride = tokens * spec.value_dim;
      // Two allocations in one: all keys, then all values.
      keys.page_stride = tokens * heads * spec.key_dim * spec.layers;
      values.page_stride = tokens * heads * spec.value_dim * spec.layers;
      values_at = keys.page_stride * spec.page_count;
      keys.base = memory + tokens * heads * spec.key_dim * layer * spec.element_bytes;
      values.base =
          memory + (values_at + tokens * heads * spec.value_dim * layer) * spec.element_bytes;
      return PagedLayer{keys, values};
    case PagedKind::kLatent:
      keys.token_stride = values.token_stride = spec.key_dim + spec.value_dim;
      values_at = spec.key_dim;
      break;
  }
  keys.base = memory + layer_at * spec.element_bytes;
  values.base = keys.base + values_at * spec.element_bytes;
  return PagedLayer{keys, values};
}

PagedPlane ScalePlane(std::byte* memory, uint32_t page_tokens, uint32_t kv_heads) {
  return {.base = memory,
          .element_bytes = 4,
          .page_tokens = page_tokens,
          .heads = kv_heads,
          .dim = 1,
          .page_stride = uint64_t{page_tokens} * kv_heads,
          .token_stride = kv_heads,
          .head_stride = 1,
          .block_dim = 1};
}

}  // namespace turnkeep
