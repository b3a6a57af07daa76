// Least recently used first: a doubly linked list in an array by chunk index, eight
// bytes a chunk, every step O(1).
#pragma once

#include <vector>

#include "store/policy.h"

namespace turnkeep {

class LruPolicy : public EvictionPolicy {
 public:
  std::string_view name() const override { return "lru"; }
  void Insert(ChunkIndex chunk, int64_t now_ns) override;
  void Touch(ChunkIndex chunk, int64_t now_ns) override;
  void Remove(ChunkIndex chunk) override;
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override;

 private:
  static constexpr ChunkIndex kAbsent = 0xFFFFFFFEu;
  struct Link {
    ChunkIndex newer = kAbsent;
    ChunkIndex older = kAbsent;
  };

  bool Contains(ChunkIndex chunk) const {
    return chunk < links_.size() && links_[chunk].newer != kAbsent;
  }
  void Unlink(ChunkIndex chunk);
  void LinkNewest(ChunkIndex chunk);

  std::vector<Link> links_;
  ChunkIndex newest_ = kNoChunk;
  ChunkIndex oldest_ = kNoChunk;
};

}  // namespace turnkeep
