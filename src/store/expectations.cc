#include "store/expectations.h"

#include <algorithm>
#include <iterator>

#include "core/check.h"

namespace turnkeep {

int64_t Expectations::DueOf(const When& when) {
  const bool more = !when.times.empty() && when.times.back() > when.next_use;
  return more ? std::min(when.next_use, when.expires_ns) : when.expires_ns;
}

void Expectations::Link(std::span<const ChunkIndex> chunks, int64_t next_use,
                        const Changed& changed) {
  for (const ChunkIndex chunk : chunks) {
    std::vector<int64_t>& uses = by_chunk_[chunk];
    const bool first = uses.empty();
    const bool soonest = first || next_use < uses.front();
    uses.insert(std::upper_bound(uses.begin(), uses.end(), next_use), next_use);
    if (first && on_first) on_first(chunk);
    if (soonest) changed(chunk, next_use);
  }
}

void Expectations::Unlink(std::span<const ChunkIndex> chunks, int64_t next_use,
                          const Changed& changed) {
  // From the last to the first: they are prefetched the other way round, and one that is let go
  // makes no room for one that will be.
  for (size_t i = chunks.size(); i-- > 0;) {
    const ChunkIndex chunk = chunks[i];
    const auto found = by_chunk_.find(chunk);
    TK_CHECK(found != by_chunk_.end());
    std::vector<int64_t>& uses = found->second;
    const int64_t before = uses.front();
    const auto use = std::lower_bound(uses.begin(), uses.end(), next_use);
    TK_CHECK(use != uses.end() && *use == next_use);
    uses.erase(use);
    const bool last = uses.empty();
    const int64_t after = last ? kNoExpectedUse : uses.front();
    if (last) by_chunk_.erase(found);
    if (after != before) changed(chunk, after);
    if (last && on_last) on_last(chunk);
  }
}

void Expectations::Set(const Name& name, When when, std::span<const ChunkIndex> chunks,
                       const Changed& changed) {
  const auto [it, is_new] = by_name_.try_emplace(name);
  Entry& entry = it->second;
  if (is_new && name.source == Source::kQueue) ++queue_count_;
  Usage& usage = usage_[name.tenant];
  if (is_new) ++usage.names;
  if (!is_new) due_.erase({DueOf(entry.when), name});
  const bool same =
      !is_new && entry.when.next_use == when.next_use &&
      std::equal(entry.chunks.begin(), entry.chunks.end(), chunks.begin(), chunks.end());
  if (!same) {
    // The old one goes after the new one has come: what both expect is kept.
    const Entry old = std::move(entry);
    entry.chunks.assign(chunks.begin(), chunks.end());
    usage.links += chunks.size() - old.chunks.size();
    Link(chunks, when.next_use, changed);
    Unlink(old.chunks, old.when.next_use, changed);
  }
  entry.when = std::move(when);
  due_.insert({DueOf(entry.when), name});
}

void Expectations::Erase(const Name& name, const Changed& changed) {
  if (const auto it = by_name_.find(name); it != by_name_.end()) Erase(it, changed);
}

void Expectations::Erase(ByName::iterator it, const Changed& changed) {
  due_.erase({DueOf(it->second.when), it->first});
  if (it->first.source == Source::kQueue) --queue_count_;
  const Entry entry = std::move(it->second);
  const auto usage = usage_.find(it->first.tenant);
  usage->second.links -= entry.chunks.size();
  if (--usage->second.names == 0) usage_.erase(usage);
  by_name_.erase(it);
  Unlink(entry.chunks, entry.when.next_use, changed);
}

void Expectations::Rename(const Name& from, const Name& to, const Changed& changed) {
  const auto it = by_name_.find(from);
  if (it == by_name_.end()) return;
  // The new name comes before the old one goes: the chunks are kept.
  const Entry entry = it->second;
  Set(to, entry.when, entry.chunks, changed);
  Erase(from, changed);
}

void Expectations::Advance(int64_t now_ns, const Changed& changed) {
  while (!due_.empty() && due_.begin()->first <= now_ns) {
    const auto it = by_name_.find(due_.begin()->second);
    TK_CHECK(it != by_name_.end());
    Entry& entry = it->second;
    if (entry.when.expires_ns <= now_ns) {
      Erase(it, changed);
      continue;
    }
    const auto& times = entry.when.times;
    const auto left = std::upper_bound(times.begin(), times.end(), now_ns);
    // With none to come it is due since the last.
    const int64_t next =
        left == times.end() ? times.back() : *(left + (std::distance(left, times.end()) - 1) / 2);
    When when = entry.when;
    when.next_use = next;
    const std::vector<ChunkIndex> chunks = entry.chunks;
    Set(Name(it->first), std::move(when), chunks, changed);
  }
}

const Expectations::Entry* Expectations::Find(const Name& name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &it->second;
}

Expectations::Usage Expectations::UsageOf(uint16_t tenant) const {
  const auto it = usage_.find(tenant);
  return it == usage_.end() ? Usage{} : it->second;
}

std::vector<Expectations::Name> Expectations::QueueOf(uint16_t tenant) const {
  std::vector<Name> names;
  auto it = by_name_.lower_bound({.tenant = tenant, .source = Source::kQueue, .what = ""});
  for (; it != by_name_.end() && it->first.tenant == tenant && it->first.source == Source::kQueue;
       ++it) {
    names.push_back(it->first);
  }
  return names;
}

}  // namespace turnkeep
