// Memory that direct I/O accepts: a multiple of kBlockBytes on a kBlockBytes boundary.
//
// Move-only; frees its memory when it goes. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "core/check.h"
#include "core/units.h"

namespace turnkeep {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // At least `bytes` bytes, rounded up to kBlockBytes, all zero.
  explicit AlignedBuffer(uint64_t bytes) : bytes_(RoundUp(bytes, kBlockBytes)) {
    if (bytes_ == 0) return;
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kBlockBytes, bytes_)));
    TK_CHECK(memory_ != nullptr);
    std::memset(memory_.get(), 0, bytes_);
  }

  std::span<std::byte> span() { return {memory_.get(), bytes_}; }
  std::span<const std::byte> span() const { return {memory_.get(), bytes_}; }
  std::byte* data() { return memory_.get(); }
  uint64_t size() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  uint64_t bytes_ = 0;
};

}  // namespace turnkeep
