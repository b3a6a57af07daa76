// What an engine remembers of the contexts whose chunks are in its page pool, so that a turn whose
// KV is all there need not ask the store for it, and one that finds the store away still has it.
//
// A chunk's id binds its tokens, all tokens before them, layout and tenant; it needs the tenant's
// key, so an engine cannot compute it. It remembers instead which ids the store gave for which
// tokens. That stays true whatever the store does later: the bytes of an id never change. What may
// change is what a session's name stands for, hence two kinds of context:
//   plain      every token's KV is that of the tokens before it: right for every prompt that begins
//              alike, whoever asks
//   truncated  its KV remembers tokens that the context no longer shows: right for its own
//              session alone, and only as long as nobody else has changed that
//
// One tenant's contexts only. Not thread-safe; one owner. Nothing blocks.
//
//   contexts.Remember({.session = "alice", .layout = fp, .generation = 3, .tokens = t, .spans =
//   s}); if (auto found = contexts.Find(*pool, {.session = "alice", .layout = fp, .tokens =
//   prompt}))
//     restore = LayerRestore::StartPooled(device, layout, found->spans, options);
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/ids.h"
#include "core/limits.h"
#include "gpu_tier/context_spans.h"
#include "gpu_tier/page_pool.h"

namespace turnkeep {

class PooledContexts {
 public:
  // The one used longest ago is forgotten beyond either. Four bytes a token.
  static constexpr size_t kMaxContexts = 4096;
  static constexpr uint64_t kMaxTokens = 8u << 20;

  struct Context {
    std::string session;
    Fingerprint layout;
    uint64_t generation = 0;  // of the session when it showed just this
    std::vector<uint32_t> tokens;
    ContextSpans spans;  // of all tokens
  };
  struct Request {
    std::string session;
    Fingerprint layout;
    std::span<const uint32_t> tokens;
    uint64_t max_tokens = kMaxSessionTokens;
  };
  struct Found {
    ContextSpans spans;  // all of them are in the pool
    uint64_t token_count = 0;
    uint64_t generation = 0;  // 0: of another session
    // It is plain, the session's own as it was left, and nothing of it is missing that the request
    // could use: the store would give the same chunks, or more only where others have saved the
    // very tokens that are new here.
    bool complete = false;
    bool plain = false;
  };

  // In place of what was known of the session. Nothing is kept of a context without spans.
  void Remember(Context context);
  // Its tokens [begin, end) were taken out, which made `generation` of it.
  void Truncate(const std::string& session, uint64_t generation, uint64_t begin, uint64_t end);
  // It is no longer known that the session shows this; the chunks of a plain context stay good.
  void Doubt(const std::string& session);
  void Forget(const std::string& session);

  // The most leading tokens of the request that `pool` holds now, as far as contexts tell that are
  // right for it; nullopt: none.
  std::optional<Found> Find(const PagePool& pool, const Request& request);

 private:
  struct Entry {
    Context context;
    bool plain = false;
    bool current = false;  // not in doubt
  };
  using Entries = std::list<Entry>;  // used last first
  Entries::iterator FindSession(const std::string& session);
  void Drop(Entries::iterator entry);

  Entries entries_;
  uint64_t tokens_ = 0;
};

// Chunks that stay in the pool from before a restore is asked for until it has pins of its own:
// what RestoreRequest::held_chunks promises.
struct HeldInPool {
  std::vector<ChunkId> chunks;
  std::vector<PagePool::Pin> pins;
};
// The leading ones of `spans` that `pool` has now, as many as a request may name.
HeldInPool HoldLeading(PagePool& pool, const ContextSpans& spans);

}  // namespace turnkeep
