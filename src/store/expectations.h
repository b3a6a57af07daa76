// Who is expected to use which chunks, and when: the waiting queues and the expected next uses
// that hints told. For a chunk that many expect, the soonest counts. The same keeps what is
// retained (hint_path.cc): a number for a chunk, of which the lowest counts.
//
// An expectation has a name of its own (a tenant's session or prefix, in the queue or not); a
// second one of that name replaces it. Pure: no clock, lock or I/O. Thread-compatible.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "store/policy.h"

namespace turnkeep {

class Expectations {
 public:
  enum class Source : uint8_t { kQueue, kHint };
  struct Name {
    uint16_t tenant = 0;
    Source source = Source::kQueue;
    std::string what;  // the session's name, or any other
    auto operator<=>(const Name&) const = default;
  };
  struct When {
    int64_t next_use = 0;
    // Other equally likely times, ascending; next_use is replaced by the median of those to come
    // when it has passed. Empty: there is only next_use.
    std::vector<int64_t> times;
    int64_t expires_ns = 0;
    bool operator==(const When&) const = default;
  };
  struct Entry {
    When when;
    std::vector<ChunkIndex> chunks;
  };
  // The chunk's soonest expected use is now `next_use` (kNoExpectedUse: nobody expects it).
  using Changed = std::function<void(ChunkIndex chunk, int64_t next_use)>;

  // Each chunk once. Tells every chunk whose soonest use changes.
  void Set(const Name& name, When when, std::span<const ChunkIndex> chunks, const Changed& changed);
  // No such name is no error.
  void Erase(const Name& name, const Changed& changed);
  // Nor is it here; what `to` stood for is replaced.
  void Rename(const Name& from, const Name& to, const Changed& changed);
  // Forgets what has expired, and moves on what has a distribution and did not come.
  void Advance(int64_t now_ns, const Changed& changed);

  // Null if there is none. Valid until the next change.
  const Entry* Find(const Name& name) const;
  // The names of a tenant's queue.
  std::vector<Name> QueueOf(uint16_t tenant) const;
  const std::map<Name, Entry>& all() const { return by_name_; }

  // Chunks whose count of expectations went from none to some, and back: the owner keeps the
  // first and lets go of the second, so that an index goes on meaning the same chunk.
  std::function<void(ChunkIndex)> on_first;
  std::function<void(ChunkIndex)> on_last;

  bool Expects(ChunkIndex chunk) const { return by_chunk_.contains(chunk); }
  size_t size() const { return by_name_.size(); }
  uint64_t queue_count() const { return queue_count_; }
  uint64_t chunk_count() const { return by_chunk_.size(); }
  // What one tenant has of it: names, and the chunks of all of them.
  struct Usage {
    uint64_t names = 0;
    uint64_t links = 0;
  };
  Usage UsageOf(uint16_t tenant) const;

 private:
  using ByName = std::map<Name, Entry>;
  void Link(std::span<const ChunkIndex> chunks, int64_t next_use, const Changed& changed);
  void Unlink(std::span<const ChunkIndex> chunks, int64_t next_use, const Changed& changed);
  void Erase(ByName::iterator it, const Changed& changed);
  // When it has to be looked at again: its end, or a time of the distribution that passes.
  static int64_t DueOf(const When& when);

  ByName by_name_;
  std::set<std::pair<int64_t, Name>> due_;
  // Next uses, ascending: most chunks have one.
  absl::flat_hash_map<ChunkIndex, std::vector<int64_t>> by_chunk_;
  uint64_t queue_count_ = 0;
  absl::flat_hash_map<uint16_t, Usage> usage_;  // of tenants that have any
};

}  // namespace turnkeep
