// The engine's paged KV cache: fixed pages of `page_tokens` tokens, and a block table
// a sequence.
//
// Planes, each [layers, pages, page_tokens, kv_heads, head_dim] of the cache's dtype:
//   keys      rotated for the token's index in the context: what attention reads
//   values
//   raw_keys  before RoPE; only with keep_raw_keys, for layouts that store keys raw
// A token's position is its index in the context, always.
//
// The pages are host memory, or, with Options::pages, a device's: addresses are then the device's
// and only DevicePages may follow them.
//
// Thread-safety: pages are handed out and taken back by one thread; different
// (layer, token) elements may be written and read in parallel.
//
//   TK_ASSIGN_OR_RETURN(auto cache, PagedKvCache::Create({.layers = 8, …, .page_count = 64}));
//   Sequence sequence(cache.get());
//   TK_RETURN_IF_ERROR(sequence.Reserve(100));
//   float* key = reinterpret_cast<float*>(sequence.At(Plane::kKeys, layer, token));
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/layout.h"
#include "gpu_tier/device.h"

namespace turnkeep::llama {

class DevicePages;

enum class Plane : uint8_t { kKeys = 0, kValues = 1, kRawKeys = 2 };

class PagedKvCache {
 public:
  struct Options {
    uint32_t layers = 0;
    uint32_t kv_heads = 0;
    uint32_t head_dim = 0;
    DType dtype = DType::kFloat32;  // or kBFloat16
    bool keep_raw_keys = false;
    uint32_t page_tokens = 16;  // 1..256
    uint32_t page_count = 0;
    DevicePages* pages = nullptr;  // null: host memory; else it outlives the cache
  };

  // InvalidArgument names the option; ResourceExhausted when the memory is not there.
  static absl::StatusOr<std::unique_ptr<PagedKvCache>> Create(const Options& options);

  const Options& options() const { return options_; }
  // Bytes of one token's keys (or values) in one layer.
  size_t row_bytes() const { return row_bytes_; }
  uint32_t free_pages() const { return static_cast<uint32_t>(free_.size()); }

  // ResourceExhausted when no page is free.
  absl::StatusOr<uint32_t> AllocatePage();
  // Another holder of an allocated page, which must not be written any more.
  void SharePage(uint32_t page) { ++holders_[page]; }
  // One holder less; the last one's page is free.
  void FreePage(uint32_t page);

  // First byte of a page of one plane and layer; rows follow at row_bytes().
  std::byte* Page(Plane plane, uint32_t layer, uint32_t page) {
    return base_ +
           ((static_cast<size_t>(plane) * options_.layers + layer) * options_.page_count + page) *
               options_.page_tokens * row_bytes_;
  }

 private:
  struct Unmap {
    size_t bytes;  // of the mapping; unset while there is none
    void operator()(std::byte* memory) const;
  };

  PagedKvCache() = default;

  Options options_;
  size_t row_bytes_ = 0;
  std::unique_ptr<std::byte, Unmap> memory_;  // lazily backed; or
  DeviceMemory device_memory_;
  std::byte* base_ = nullptr;  // of whichever it is
  std::vector<uint32_t> free_;
  std::vector<uint32_t> holders_;  // by page
};

// Where the tokens of one context lie. A copy stays right while nobody gives back or
// reuses the pages.
struct BlockTable {
  PagedKvCache* cache = nullptr;
  std::vector<uint32_t> pages;

  // Tokens for which pages are held.
  size_t capacity() const { return pages.size() * cache->options().page_tokens; }
  // One token's row in one plane and layer.
  std::byte* At(Plane plane, uint32_t layer, size_t token) const {
    const uint32_t per_page = cache->options().page_tokens;
    return cache->Page(plane, layer, pages[token / per_page]) +
           token % per_page * cache->row_bytes();
  }
};

// One context. Gives its pages back when it is destroyed; the cache outlives it.
class Sequence {
 public:
  explicit Sequence(PagedKvCache* cache) : table_{.cache = cache} {}
  ~Sequence() { Shrink(0); }
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  const BlockTable& table() const { return table_; }
  PagedKvCache* cache() const { return table_.cache; }
  size_t capacity() const { return table_.capacity(); }
  std::byte* At(Plane plane, uint32_t layer, size_t token) const {
    return table_.At(plane, layer, token);
  }

  // Makes room for `tokens` tokens in all. ResourceExhausted: nothing changed.
  absl::Status Reserve(size_t tokens);
  // The first `tokens` tokens of `prefix`, of the same cache, instead of what is here: whole pages
  // are shared, a last one that is not full is copied. ResourceExhausted: nothing is here. Host
  // memory only.
  absl::Status ShareFrom(const Sequence& prefix, size_t tokens);
  // Gives back the pages behind the first `tokens` tokens.
  void Shrink(size_t tokens);

 private:
  BlockTable table_;
};

}  // namespace turnkeep::llama
