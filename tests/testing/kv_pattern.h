// Deterministic KV bytes for tests: every byte is a function of what it must mean, so that any
// restored byte can be checked, whatever the layout, the chunking and the truncations.
//
// A token's KV depends on the token and on everything before it in the view in which it
// was computed; KvContext keeps that as one 64-bit identity a token. KvPattern turns (layout,
// layer, plane, identity) into bytes. No GoogleTest here: the crash test's client uses it too.
//
// KvContext is a plain value; KvPattern is const after construction.
//
//   KvPattern pattern(layout);
//   KvContext context;
//   context.Append(MakeTokens(7, 100));
//   auto saved = SaveAll(store, pattern, {.session = "a", .context = &context});
//   auto restored = RestoreAndCheck(store, pattern, {.session = "a", .context = &context});
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "core/kv_store.h"
#include "core/kv_types.h"
#include "core/layout.h"

namespace turnkeep::testing {

// What a session shows: tokens, what their KV is, and where their keys stand.
class KvContext {
 public:
  // Contexts of different salts have different KV for the same tokens (another model
  // instance, another tenant).
  explicit KvContext(uint64_t salt = 0) : salt_(salt), view_(salt) {}

  // Adds tokens computed on top of the view as it is. Positions go on from the last one.
  void Append(std::span<const uint32_t> tokens);
  // Tokens [begin, end) leave the view; the others keep their KV and positions.
  void Drop(uint64_t begin, uint64_t end);
  void Resize(uint64_t token_count) { Drop(token_count, size()); }

  uint64_t size() const { return tokens_.size(); }
  const std::vector<uint32_t>& tokens() const { return tokens_; }
  const std::vector<uint64_t>& identities() const { return identities_; }
  const std::vector<uint64_t>& positions() const { return positions_; }
  // What SaveRequest::position_offset must be so that tokens from `first_new` on get
  // the positions they have here.
  int64_t PositionOffset(uint64_t first_new) const;
  // One engine-made hash a chunk, each a function of the whole view up to its end.
  std::vector<BlockHash> BlockHashes(uint32_t chunk_tokens) const;

 private:
  void Fold(uint64_t identity);

  uint64_t salt_;
  uint64_t view_;  // hash of all identities in order
  std::vector<uint32_t> tokens_;
  std::vector<uint64_t> identities_;
  std::vector<uint64_t> positions_;
};

// `count` token ids of a 32k vocabulary, a function of the seed.
std::vector<uint32_t> MakeTokens(uint64_t seed, uint64_t count);

// A context of `count` tokens made from `seed`.
KvContext ContextOf(uint64_t seed, uint64_t count, uint64_t salt = 0);
// `context` and `count` more tokens.
KvContext Extended(KvContext context, uint64_t seed, uint64_t count);

class KvPattern {
 public:
  // The layout must be valid. `hashed`: saves and restores give block hashes, not tokens.
  explicit KvPattern(KvLayout layout, bool hashed = false);

  const KvLayout& layout() const { return layout_; }
  const Fingerprint& fingerprint() const { return fingerprint_; }
  bool hashed() const { return hashed_; }
  uint32_t layer_count() const { return static_cast<uint32_t>(layout_.layers.size()); }

  // Fills the page of `layer` of a chunk whose tokens have these identities.
  void FillPage(uint32_t layer, std::span<const uint64_t> identities,
                std::span<std::byte> page) const;

  // Checks the rows [first, first + identities.size()) of a page of `chunk_token_count` tokens.
  // Returns what is wrong, naming token (index in `identities`), plane and byte. A state page is
  // checked against the chunk's last token when the rows reach it, and else only for being
  // the state of one and the same token.
  std::optional<std::string> CheckPage(uint32_t layer, uint32_t chunk_token_count, uint32_t first,
                                       std::span<const uint64_t> identities,
                                       std::span<const std::byte> page) const;

 private:
  // One plane of a layer page: `row_bytes` for each token, or one row in all.
  struct Plane {
    uint64_t row_bytes = 0;
  };
  uint64_t RowSeed(uint32_t layer, size_t plane, uint64_t identity) const;

  KvLayout layout_;
  Fingerprint fingerprint_;
  bool hashed_;
  std::vector<std::vector<Plane>> planes_;  // per layer
};

struct SaveAllOptions {
  std::string session;
  uint64_t expected_generation = 0;
  const KvContext* context = nullptr;
  absl::Duration space_deadline = absl::Seconds(10);
  absl::Duration commit_deadline = absl::Seconds(60);
  std::optional<absl::Duration> ttl;
};

// Begins a save of the whole context. `hashes` must outlive the ticket's begin only.
absl::StatusOr<std::unique_ptr<SaveTicket>> BeginSaveOf(KvStore& store, const KvPattern& pattern,
                                                        const SaveAllOptions& options);
// Writes the pages of all chunks of `ticket` and finishes all layers.
absl::Status FillTicket(SaveTicket& ticket, const KvPattern& pattern, const KvContext& context);
// All of a save. The store's errors are passed on. Internal, "bad ticket: ...", when the
// ticket's own numbers contradict each other.
absl::StatusOr<CommitResult> SaveAll(KvStore& store, const KvPattern& pattern,
                                     const SaveAllOptions& options);

struct RestoreAllOptions {
  std::string session;                 // empty: by tokens alone
  const KvContext* context = nullptr;  // what must come back
  bool give_prompt = true;             // the context's tokens go into the request
  uint64_t max_tokens = kMaxSessionTokens;
  absl::Duration deadline = absl::Seconds(60);
  bool by_page = false;  // Page + VerifyPage instead of ReadPage
  bool check_positions = true;
  std::vector<ChunkId> held_chunks;  // of the request; that they cannot be read is checked
};

struct RestoreOutcome {
  uint64_t token_count = 0;  // restored, and every byte of them checked
  uint64_t generation = 0;
  uint64_t host_tokens = 0;
  uint64_t disk_tokens = 0;
  uint64_t held_tokens = 0;  // of the request's held chunks
  uint64_t data_losses = 0;  // pages that did not verify
  std::string miss_reason;
};

// Begins a restore, waits for every layer and checks every byte of every restored token, headers
// included. The store's errors are passed on. Internal, "wrong bytes: ...", at the first byte
// that is not what it must be; Internal, "bad ticket: ...", when spans contradict each other.
absl::StatusOr<RestoreOutcome> RestoreAndCheck(KvStore& store, const KvPattern& pattern,
                                               const RestoreAllOptions& options);
absl::StatusOr<RestoreOutcome> CheckTicket(RestoreTicket& ticket, const KvPattern& pattern,
                                           const RestoreAllOptions& options);

}  // namespace turnkeep::testing
