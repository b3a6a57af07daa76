#include "llama/paged_kv_cache.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "core/check.h"
#include "core/status.h"
#include "llama/device_pages.h"

namespace turnkeep::llama {

void PagedKvCache::Unmap::operator()(std::byte* memory) const { ::munmap(memory, bytes); }

absl::StatusOr<std::unique_ptr<PagedKvCache>> PagedKvCache::Create(const Options& options) {
  if (options.dtype != DType::kFloat32 && options.dtype != DType::kBFloat16) {
    return InvalidArgument("kv cache: dtype {}, allowed float32 and bfloat16",
                           NameOf(options.dtype));
  }
  if (options.page_tokens < 1 || options.page_tokens > 256) {
    return InvalidArgument("kv cache: page_tokens = {}, allowed 1 to 256", options.page_tokens);
  }
  if (options.layers == 0 || options.kv_heads == 0 || options.head_dim == 0 ||
      options.page_count == 0) {
    return InvalidArgument("kv cache: layers = {}, kv_heads = {}, head_dim = {}, page_count = {}",
                           options.layers, options.kv_heads, options.head_dim, options.page_count);
  }
  std::unique_ptr<PagedKvCache> cache(new PagedKvCache);
  cache->options_ = options;
  cache->row_bytes_ = size_t{options.kv_heads} * options.head_dim * DTypeBytes(options.dtype);
  const size_t planes = options.keep_raw_keys ? 3 : 2;
  const size_t bytes =
      planes * options.layers * options.page_count * options.page_tokens * cache->row_bytes_;
  // Handed out from the back: page 0 first.
  for (uint32_t page = options.page_count; page-- > 0;) cache->free_.push_back(page);
  cache->holders_.resize(options.page_count);
  if (options.pages != nullptr) {
    TK_ASSIGN_OR_RETURN(cache->device_memory_, options.pages->device().Allocate(bytes));
    cache->base_ = cache->device_memory_.data();
    return cache;
  }
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return ErrnoStatus(errno, fmt::format("map a kv cache of {} bytes", bytes));
  }
  cache->memory_ = std::unique_ptr<std::byte, Unmap>(static_cast<std::byte*>(memory), Unmap{bytes});
  cache->base_ = cache->memory_.get();
  return cache;
}

absl::StatusOr<uint32_t> PagedKvCache::AllocatePage() {
  if (free_.empty()) {
    return ResourceExhausted("kv cache: all {} pages of {} tokens are in use", options_.page_count,
                             options_.page_tokens);
  }
  const uint32_t page = free_.back();
  free_.pop_back();
  holders_[page] = 1;
  return page;
}

void PagedKvCache::FreePage(uint32_t page) {
  TK_CHECK(page < options_.page_count && holders_[page] > 0);
  if (--holders_[page] == 0) free_.push_back(page);
}

absl::Status Sequence::Reserve(size_t tokens) {
  const size_t before = capacity();
  while (capacity() < tokens) {
    absl::StatusOr<uint32_t> page = cache()->AllocatePage();
    if (!page.ok()) {
      Shrink(before);
      return page.status();
    }
    table_.pages.push_back(*page);
  }
  return absl::OkStatus();
}

absl::Status Sequence::ShareFrom(const Sequence& prefix, size_t tokens) {
  TK_CHECK(prefix.cache() == cache() && tokens <= prefix.capacity());
  TK_CHECK(cache()->options().pages == nullptr);
  Shrink(0);
  const PagedKvCache::Options& options = cache()->options();
  const size_t whole = tokens / options.page_tokens;
  for (size_t i = 0; i < whole; ++i) {
    cache()->SharePage(prefix.table().pages[i]);
    table_.pages.push_back(prefix.table().pages[i]);
  }
  const size_t rest = tokens % options.page_tokens;
  if (rest == 0) return absl::OkStatus();
  const absl::StatusOr<uint32_t> page = cache()->AllocatePage();
  if (!page.ok()) {
    Shrink(0);
    return page.status();
  }
  table_.pages.push_back(*page);
  for (const Plane plane : {Plane::kKeys, Plane::kValues, Plane::kRawKeys}) {
    if (plane == Plane::kRawKeys && !options.keep_raw_keys) continue;
    for (uint32_t layer = 0; layer < options.layers; ++layer) {
      std::memcpy(cache()->Page(plane, layer, *page),
                  cache()->Page(plane, layer, prefix.table().pages[whole]),
                  rest * cache()->row_bytes());
    }
  }
  return absl::OkStatus();
}

void Sequence::Shrink(size_t tokens) {
  const uint32_t per_page = cache()->options().page_tokens;
  const size_t keep = (tokens + per_page - 1) / per_page;
  while (table_.pages.size() > keep) {
    cache()->FreePage(table_.pages.back());
    table_.pages.pop_back();
  }
}

}  // namespace turnkeep::llama
