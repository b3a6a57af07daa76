#include "store/catalog.h"

#include "core/check.h"
#include "core/limits.h"

namespace turnkeep {

std::string_view NameOf(MissingReason reason) {
  switch (reason) {
    case MissingReason::kNeverSaved:
      return "never saved";
    case MissingReason::kEvictedForRoom:
      return "evicted to make room";
    case MissingReason::kEvictedNoDiskTier:
      return "evicted from host memory; there is no disk tier";
    case MissingReason::kEvictedDiskFull:
      return "evicted from host memory; the disk tier had no room";
    case MissingReason::kDiskWriteFailed:
      return "evicted from host memory; writing it to disk failed";
    case MissingReason::kDigestFailed:
      return "dropped: its digest did not match";
    case MissingReason::kReadFailed:
      return "dropped: it could not be read from disk";
    case MissingReason::kNotOnDiskAtRestart:
      return "was not on disk when the store was last closed or killed";
  }
  return "unknown";
}

Catalog::Catalog() : ids_(0, HashById{&entries_}, EqualById{&entries_}) {}

ChunkIndex Catalog::Find(const ChunkId& id) const {
  const auto it = ids_.find(id);
  return it == ids_.end() ? kNoChunk : *it;
}

ChunkIndex Catalog::FindOrCreate(const ChunkId& id, ChunkIndex parent, uint16_t tenant,
                                 uint16_t layout, uint32_t token_count) {
  if (const ChunkIndex found = Find(id); found != kNoChunk) {
    ChunkEntry& entry = entries_[found];
    if (entry.parent == kNoChunk && parent != kNoChunk) LinkToParent(found, parent);
    // An entry without data may know only that the chunk has so many tokens at least (load.cc).
    if (token_count > entry.token_count && !entry.HasData()) {
      entry.token_count = static_cast<uint16_t>(token_count);
    }
    return found;
  }
  ChunkIndex index = kNoChunk;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else {
    TK_CHECK(entries_.size() < kMaxChunks);
    index = entries_.size();
    entries_.Add();
  }
  ChunkEntry& entry = entries_[index];
  entry = ChunkEntry{};
  entry.id = id;
  entry.tenant = tenant;
  entry.layout = layout;
  entry.token_count = static_cast<uint16_t>(token_count);
  entry.in_use = true;
  ids_.insert(index);
  if (parent != kNoChunk) LinkToParent(index, parent);
  return index;
}

void Catalog::EraseIfUnneeded(ChunkIndex index, const std::function<void(ChunkIndex)>& erased) {
  while (index != kNoChunk) {
    ChunkEntry& entry = entries_[index];
    TK_CHECK(entry.in_use);
    if (entry.session_refs > 0 || entry.operation_refs > 0 || entry.first_child != kNoChunk ||
        !entry.host.is_null() || !entry.disk.IsNull()) {
      return;
    }
    const ChunkIndex parent = entry.parent;
    UnlinkFromParent(index);
    ids_.erase(index);
    entry.in_use = false;
    free_.push_back(index);
    erased(index);
    index = parent;
  }
}

void Catalog::LinkToParent(ChunkIndex index, ChunkIndex parent) {
  ChunkEntry& entry = entries_[index];
  TK_CHECK(entry.parent == kNoChunk && parent != index);
  entry.parent = parent;
  entry.next_sibling = entries_[parent].first_child;
  if (entry.next_sibling != kNoChunk) entries_[entry.next_sibling].previous_sibling = index;
  entries_[parent].first_child = index;
}

void Catalog::UnlinkFromParent(ChunkIndex index) {
  ChunkEntry& entry = entries_[index];
  if (entry.parent == kNoChunk) return;
  if (entry.previous_sibling != kNoChunk) {
    entries_[entry.previous_sibling].next_sibling = entry.next_sibling;
  } else {
    entries_[entry.parent].first_child = entry.next_sibling;
  }
  if (entry.next_sibling != kNoChunk) {
    entries_[entry.next_sibling].previous_sibling = entry.previous_sibling;
  }
  entry.parent = entry.previous_sibling = entry.next_sibling = kNoChunk;
}

}  // namespace turnkeep
