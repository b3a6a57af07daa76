// A doubly linked list of chunks in an array by chunk index: eight bytes a chunk, every step O(1).
// Several lists may share one array of links; a chunk is in at most one of them.
//
// Thread-compatible.
#pragma once

#include <cstdint>
#include <vector>

#include "store/chunk_array.h"
#include "store/policy.h"

namespace turnkeep {

class ChunkLinks {
 public:
  struct List {
    ChunkIndex newest = kNoChunk;
    ChunkIndex oldest = kNoChunk;
    uint32_t count = 0;
  };

  bool Contains(ChunkIndex chunk) const {
    return chunk < links_.size() && links_[chunk].newer != kAbsent;
  }
  // `chunk` is in no list.
  void PushNewest(List& list, ChunkIndex chunk) {
    AtChunk(links_, chunk) = {.newer = kNoChunk, .older = list.newest};
    if (list.newest != kNoChunk) links_[list.newest].newer = chunk;
    list.newest = chunk;
    if (list.oldest == kNoChunk) list.oldest = chunk;
    ++list.count;
  }
  // `chunk` is in `list`.
  void Unlink(List& list, ChunkIndex chunk) {
    const Link link = links_[chunk];
    if (link.newer != kNoChunk) links_[link.newer].older = link.older;
    if (link.older != kNoChunk) links_[link.older].newer = link.newer;
    if (list.newest == chunk) list.newest = link.older;
    if (list.oldest == chunk) list.oldest = link.newer;
    links_[chunk] = {};
    --list.count;
  }
  void MoveToNewest(List& list, ChunkIndex chunk) {
    if (list.newest == chunk) return;
    Unlink(list, chunk);
    PushNewest(list, chunk);
  }
  ChunkIndex Newer(ChunkIndex chunk) const { return links_[chunk].newer; }
  ChunkIndex Older(ChunkIndex chunk) const { return links_[chunk].older; }

 private:
  static constexpr ChunkIndex kAbsent = 0xFFFFFFFEu;
  struct Link {
    ChunkIndex newer = kAbsent;
    ChunkIndex older = kAbsent;
  };
  std::vector<Link> links_;
};

}  // namespace turnkeep
