#include "store/lru_policy.h"

#include "core/check.h"
#include "core/status.h"

namespace turnkeep {

void LruPolicy::Insert(ChunkIndex chunk, int64_t) {
  if (chunk >= links_.size()) links_.resize(chunk + 1 + chunk / 2);
  TK_CHECK(!Contains(chunk));
  LinkNewest(chunk);
}

void LruPolicy::Touch(ChunkIndex chunk, int64_t) {
  if (!Contains(chunk) || newest_ == chunk) return;
  Unlink(chunk);
  LinkNewest(chunk);
}

void LruPolicy::Remove(ChunkIndex chunk) {
  TK_CHECK(Contains(chunk));
  Unlink(chunk);
  links_[chunk] = Link{};
}

ChunkIndex LruPolicy::FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) {
  ChunkIndex chunk = oldest_;
  for (uint32_t shown = 0; chunk != kNoChunk && shown < limit; ++shown) {
    if (accept(chunk)) return chunk;
    chunk = links_[chunk].newer;
  }
  return kNoChunk;
}

void LruPolicy::Unlink(ChunkIndex chunk) {
  const Link link = links_[chunk];
  if (link.newer != kNoChunk) links_[link.newer].older = link.older;
  if (link.older != kNoChunk) links_[link.older].newer = link.newer;
  if (newest_ == chunk) newest_ = link.older;
  if (oldest_ == chunk) oldest_ = link.newer;
}

void LruPolicy::LinkNewest(ChunkIndex chunk) {
  links_[chunk] = {.newer = kNoChunk, .older = newest_};
  if (newest_ != kNoChunk) links_[newest_].newer = chunk;
  newest_ = chunk;
  if (oldest_ == kNoChunk) oldest_ = chunk;
}

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(std::string_view name) {
  if (name == "lru") return std::make_unique<LruPolicy>();
  return InvalidArgument("policy '{}' does not exist; there is: lru", name);
}

}  // namespace turnkeep
