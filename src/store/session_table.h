// Sessions: names with views over chunks. A view is a list of spans; append, fork and
// truncate edit the list and move no KV.
//
// Thread-compatible: guarded by the store's lock.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "store/policy.h"

namespace turnkeep {

// Tokens [first, first + count) of a chunk.
struct Span {
  ChunkIndex chunk = kNoChunk;
  uint16_t first = 0;
  uint16_t count = 0;
  bool operator==(const Span&) const = default;
};
static_assert(sizeof(Span) == 8);

struct Session {
  uint64_t number = 0;  // never given twice
  std::string name;
  uint64_t generation = 0;
  uint16_t tenant = 0;
  uint16_t layout = 0;
  std::vector<Span> spans;
  uint64_t token_count = 0;
  int64_t created_unix_s = 0;
  int64_t last_used_unix_s = 0;
  int64_t ttl_s = 0;  // 0: never
  bool pinned = false;

  TurnInfo last_turn;  // that was saved since the store was opened

  // What the index holds of it, counting changes that are on their way.
  uint32_t persisted_span_blocks = 0;
  uint32_t most_span_blocks = 0;     // it may hold as many after a failed change
  int64_t queued_expiry_unix_s = 0;  // SessionTable's: when it will be looked at

  int64_t expires_unix_s() const { return ttl_s == 0 ? 0 : last_used_unix_s + ttl_s; }
};

class SessionTable {
 public:
  // Null if there is none. Pointers stay valid until the session is erased.
  Session* Find(uint16_t tenant, std::string_view name);
  Session* FindNumber(uint64_t number);
  // The name must be free.
  Session* Create(uint16_t tenant, const std::string& name, uint64_t number);
  void Rename(Session* session, const std::string& name);
  void Erase(Session* session);

  // Call after a change of the time to live. (A use moves the expiry too, but only later:
  // the session is looked at when it would have expired, and then queued anew.)
  void UpdateExpiry(Session* session);
  // A session that expired at or before `now_unix_s`, or null.
  Session* NextExpired(int64_t now_unix_s);

  using ByName = std::map<std::string, Session*, std::less<>>;
  const ByName& OfTenant(uint16_t tenant) const;
  uint64_t size() const { return by_number_.size(); }
  uint64_t OfTenantCount(uint16_t tenant) const { return OfTenant(tenant).size(); }

 private:
  absl::flat_hash_map<uint64_t, std::unique_ptr<Session>> by_number_;
  std::vector<ByName> by_name_;              // by tenant
  std::multimap<int64_t, uint64_t> expiry_;  // time to session number; stale entries are skipped
};

}  // namespace turnkeep
