#include "testing/kv_pattern.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/status.h"
#include "core/units.h"

namespace turnkeep::testing {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

// The finaliser of splitmix64: a bijection that mixes every bit into every other.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t Combine(uint64_t a, uint64_t b) { return Mix(Mix(a + kGolden) ^ (b + 1) * kGolden); }

uint64_t Word(uint64_t seed, uint64_t index) { return Mix(seed + (index + 1) * kGolden); }

void FillRow(uint64_t seed, std::span<std::byte> row) {
  size_t at = 0;
  for (uint64_t index = 0; at < row.size(); ++index, at += 8) {
    const uint64_t word = Word(seed, index);
    std::memcpy(row.data() + at, &word, std::min<size_t>(8, row.size() - at));
  }
}

// Index of the first byte that is wrong, or row.size().
size_t CheckRow(uint64_t seed, std::span<const std::byte> row) {
  for (size_t at = 0; at < row.size(); at += 8) {
    const uint64_t word = Word(seed, at / 8);
    const size_t bytes = std::min<size_t>(8, row.size() - at);
    if (std::memcmp(row.data() + at, &word, bytes) == 0) continue;
    const auto* expected = reinterpret_cast<const std::byte*>(&word);
    for (size_t i = 0; i < bytes; ++i) {
      if (row[at + i] != expected[i]) return at + i;
    }
  }
  return row.size();
}

// A state page begins with the identity whose state it is, so that it can be judged
// alone; a shorter page is the front of it.
constexpr uint64_t kIdentityBytes = 8;

}  // namespace

// ---- KvContext ---------------------------------------------------------------------

void KvContext::Fold(uint64_t identity) { view_ = Combine(view_, identity); }

void KvContext::Append(std::span<const uint32_t> tokens) {
  for (const uint32_t token : tokens) {
    const uint64_t identity = Combine(view_, token);
    positions_.push_back(positions_.empty() ? 0 : positions_.back() + 1);
    tokens_.push_back(token);
    identities_.push_back(identity);
    Fold(identity);
  }
}

void KvContext::Drop(uint64_t begin, uint64_t end) {
  end = std::min<uint64_t>(end, size());
  if (begin >= end) return;
  const auto cut = [&](auto& values) {
    values.erase(values.begin() + static_cast<int64_t>(begin),
                 values.begin() + static_cast<int64_t>(end));
  };
  cut(tokens_);
  cut(identities_);
  cut(positions_);
  view_ = salt_;
  for (const uint64_t identity : identities_) Fold(identity);
}

int64_t KvContext::PositionOffset(uint64_t first_new) const {
  if (first_new >= size()) return 0;
  return static_cast<int64_t>(positions_[first_new]) - static_cast<int64_t>(first_new);
}

std::vector<BlockHash> KvContext::BlockHashes(uint32_t chunk_tokens) const {
  std::vector<BlockHash> hashes;
  uint64_t view = salt_;
  for (size_t i = 0; i < size(); ++i) {
    view = Combine(view, identities_[i]);
    if ((i + 1) % chunk_tokens != 0 && i + 1 != size()) continue;
    BlockHash hash(16, '\0');
    const uint64_t second = Mix(view);
    std::memcpy(hash.data(), &view, 8);
    std::memcpy(hash.data() + 8, &second, 8);
    hashes.push_back(std::move(hash));
  }
  return hashes;
}

std::vector<uint32_t> MakeTokens(uint64_t seed, uint64_t count) {
  std::vector<uint32_t> tokens(count);
  for (uint64_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<uint32_t>(Word(Mix(seed + kGolden), i) % 32000);
  }
  return tokens;
}

KvContext ContextOf(uint64_t seed, uint64_t count, uint64_t salt) {
  KvContext context(salt);
  context.Append(MakeTokens(seed, count));
  return context;
}

KvContext Extended(KvContext context, uint64_t seed, uint64_t count) {
  context.Append(MakeTokens(seed, count));
  return context;
}

// ---- KvPattern ---------------------------------------------------------------------

KvPattern::KvPattern(KvLayout layout, bool hashed)
    : layout_(std::move(layout)), fingerprint_(FingerprintOf(layout_)), hashed_(hashed) {
  // Written from the comment in core/layout.h and not from its code, so that the two check
  // each other: SaveAll compares the sizes.
  for (const LayerSpec& layer : layout_.layers) {
    const uint64_t value_bytes = DTypeBytes(layer.dtype);
    const uint64_t heads = layer.kv_heads;
    std::vector<uint64_t> rows;
    uint64_t scale_heads = heads;
    switch (layer.kind) {
      case LayerKind::kFull:
      case LayerKind::kWindow:
        rows = {heads * layer.key_dim * value_bytes, heads * layer.value_dim * value_bytes};
        break;
      case LayerKind::kValueOnly:
        rows = {heads * layer.value_dim * value_bytes};
        break;
      case LayerKind::kLatent:
        rows = {layer.latent_dim * value_bytes};
        if (layer.latent_rope_dim > 0) rows.push_back(layer.latent_rope_dim * value_bytes);
        scale_heads = 1;  // a latent is shared by all heads
        break;
      case LayerKind::kLowRank:
        rows = {heads * layer.key_rank * value_bytes, heads * layer.value_rank * value_bytes};
        break;
      case LayerKind::kState:
        break;
    }
    std::vector<Plane> planes;
    for (const uint64_t row_bytes : rows) {
      planes.push_back({row_bytes});
      if (layer.scale_kind == ScaleKind::kPerTokenHead) planes.push_back({scale_heads * 4});
    }
    planes_.push_back(std::move(planes));
  }
}

uint64_t KvPattern::RowSeed(uint32_t layer, size_t plane, uint64_t identity) const {
  return Combine(Combine(fingerprint_.Prefix64(), layer * 16 + plane), identity);
}

void KvPattern::FillPage(uint32_t layer, std::span<const uint64_t> identities,
                         std::span<std::byte> page) const {
  if (layout_.layers[layer].kind == LayerKind::kState) {
    const uint64_t identity = identities.back();
    const size_t front = std::min<size_t>(kIdentityBytes, page.size());
    std::memcpy(page.data(), &identity, front);
    FillRow(RowSeed(layer, 0, identity), page.subspan(front));
    return;
  }
  size_t offset = 0;
  for (size_t plane = 0; plane < planes_[layer].size(); ++plane) {
    const uint64_t row_bytes = planes_[layer][plane].row_bytes;
    for (const uint64_t identity : identities) {
      FillRow(RowSeed(layer, plane, identity), page.subspan(offset, row_bytes));
      offset += row_bytes;
    }
  }
}

std::optional<std::string> KvPattern::CheckPage(uint32_t layer, uint32_t chunk_token_count,
                                                uint32_t first,
                                                std::span<const uint64_t> identities,
                                                std::span<const std::byte> page) const {
  if (layout_.layers[layer].kind == LayerKind::kState) {
    uint64_t identity = 0;
    const size_t front = std::min<size_t>(kIdentityBytes, page.size());
    std::memcpy(&identity, page.data(), front);
    if (first + identities.size() == chunk_token_count) {
      const uint64_t expected = identities.back();
      if (std::memcmp(&identity, &expected, front) != 0) {
        return fmt::format("layer {}: the state is not that of the chunk's last token", layer);
      }
      identity = expected;
    }
    const auto rest = page.subspan(front);
    const size_t bad = CheckRow(RowSeed(layer, 0, identity), rest);
    if (bad == rest.size()) return std::nullopt;
    return fmt::format("layer {}, state byte {}", layer, front + bad);
  }
  size_t plane_offset = 0;
  for (size_t plane = 0; plane < planes_[layer].size(); ++plane) {
    const uint64_t row_bytes = planes_[layer][plane].row_bytes;
    for (size_t i = 0; i < identities.size(); ++i) {
      const size_t offset = plane_offset + (first + i) * row_bytes;
      const auto row = page.subspan(offset, row_bytes);
      const size_t bad = CheckRow(RowSeed(layer, plane, identities[i]), row);
      if (bad == row.size()) continue;
      return fmt::format("token {} of the span, layer {}, plane {}, byte {} (page byte {})", i,
                         layer, plane, bad, offset + bad);
    }
    plane_offset += row_bytes * chunk_token_count;
  }
  return std::nullopt;
}

// ---- save --------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<SaveTicket>> BeginSaveOf(KvStore& store, const KvPattern& pattern,
                                                        const SaveAllOptions& options) {
  const KvContext& context = *options.context;
  SaveRequest request{.session = options.session,
                      .expected_generation = options.expected_generation,
                      .layout = pattern.fingerprint(),
                      .space_deadline = options.space_deadline,
                      .ttl = options.ttl};
  std::vector<BlockHash> hashes;
  if (pattern.hashed()) {
    hashes = context.BlockHashes(pattern.layout().chunk_tokens);
    request.prompt = {.block_hashes = hashes, .hashed_token_count = context.size()};
  } else {
    request.prompt = {.tokens = context.tokens()};
  }
  if (context.size() > 0) request.position_offset = context.PositionOffset(context.size() - 1);
  return store.BeginSave(request);
}

absl::Status FillTicket(SaveTicket& ticket, const KvPattern& pattern, const KvContext& context) {
  const auto chunks = ticket.chunks();
  uint64_t at = ticket.known_tokens();
  for (const ChunkToSave& chunk : chunks) {
    if (chunk.token_begin != at || chunk.token_count == 0 ||
        chunk.token_count > pattern.layout().chunk_tokens) {
      return Internal("bad ticket: chunk of tokens {}+{} follows token {}", chunk.token_begin,
                      chunk.token_count, at);
    }
    at += chunk.token_count;
  }
  if (at != ticket.accepted_tokens() || at > context.size()) {
    return Internal("bad ticket: chunks end at {}, {} of {} tokens are accepted", at,
                    ticket.accepted_tokens(), context.size());
  }
  const std::span<const uint64_t> identities = context.identities();
  for (uint32_t layer = 0; layer < pattern.layer_count(); ++layer) {
    for (size_t i = 0; i < chunks.size(); ++i) {
      const std::span<std::byte> page = ticket.Page(i, layer);
      const uint64_t bytes = LayerPageBytes(pattern.layout().layers[layer], chunks[i].token_count);
      if (page.size() != bytes || reinterpret_cast<uintptr_t>(page.data()) % 64 != 0) {
        return Internal("bad ticket: page of {} bytes at {}, {} aligned ones are due", page.size(),
                        static_cast<const void*>(page.data()), bytes);
      }
      pattern.FillPage(layer, identities.subspan(chunks[i].token_begin, chunks[i].token_count),
                       page);
    }
    TK_RETURN_IF_ERROR(ticket.FinishLayer(layer));
  }
  return absl::OkStatus();
}

absl::StatusOr<CommitResult> SaveAll(KvStore& store, const KvPattern& pattern,
                                     const SaveAllOptions& options) {
  TK_ASSIGN_OR_RETURN(auto ticket, BeginSaveOf(store, pattern, options));
  TK_RETURN_IF_ERROR(FillTicket(*ticket, pattern, *options.context));
  return ticket->Commit(options.commit_deadline);
}

// ---- restore -----------------------------------------------------------------------

namespace {

// Spans must follow one another from token 0 and lie inside their chunks.
absl::Status CheckSpans(const RestoreTicket& ticket, const KvPattern& pattern,
                        const RestoreAllOptions& options) {
  const KvContext& context = *options.context;
  uint64_t at = 0;
  for (const RestoredSpan& span : ticket.spans()) {
    if (span.token_begin != at || span.token_count == 0 ||
        uint64_t{span.first_in_chunk} + span.token_count > span.chunk_token_count ||
        span.chunk_token_count > pattern.layout().chunk_tokens) {
      return Internal("bad ticket: span of tokens {}+{} ({} of {} in its chunk) follows token {}",
                      span.token_begin, span.token_count, span.first_in_chunk,
                      span.chunk_token_count, at);
    }
    at += span.token_count;
    if (at > context.size()) {
      return Internal("wrong bytes: {} tokens restored of a context of {}", at, context.size());
    }
    if (options.check_positions && span.stored_position != context.positions()[span.token_begin]) {
      return Internal("wrong bytes: token {} has stored position {}, saved at {}", span.token_begin,
                      span.stored_position, context.positions()[span.token_begin]);
    }
  }
  const uint64_t limit = std::min<uint64_t>(at, options.max_tokens);
  if (ticket.token_count() > limit) {
    return Internal("bad ticket: {} tokens, spans end at {}, limit {}", ticket.token_count(), at,
                    options.max_tokens);
  }
  return absl::OkStatus();
}

absl::Status CheckHeader(RestoreTicket& ticket, size_t index, const KvPattern& pattern,
                         const KvContext& context) {
  TK_ASSIGN_OR_RETURN(const ChunkHeader header, ticket.Header(index));
  const RestoredSpan& span = ticket.spans()[index];
  if (header.fingerprint != pattern.fingerprint()) {
    return Internal("wrong bytes: span {} comes from another layout", index);
  }
  if (header.token_count != span.chunk_token_count) {
    return Internal("wrong bytes: header of span {} says {} tokens, the span {}", index,
                    header.token_count, span.chunk_token_count);
  }
  if (pattern.hashed()) {
    if (!header.block_hash.empty()) return absl::OkStatus();
    return Internal("wrong bytes: header of span {} has no block hash", index);
  }
  for (uint32_t i = 0; i < span.token_count; ++i) {
    if (header.tokens.at(span.first_in_chunk + i) == context.tokens()[span.token_begin + i]) {
      continue;
    }
    return Internal("wrong bytes: header of span {} has token {} at {}, the context {}", index,
                    header.tokens[span.first_in_chunk + i], span.token_begin + i,
                    context.tokens()[span.token_begin + i]);
  }
  return absl::OkStatus();
}

// Reads and checks one page. DataLoss is the store's way of saying that it noticed.
absl::Status CheckOnePage(RestoreTicket& ticket, size_t index, uint32_t layer,
                          const KvPattern& pattern, const RestoreAllOptions& options) {
  const RestoredSpan& span = ticket.spans()[index];
  const uint64_t bytes = LayerPageBytes(pattern.layout().layers[layer], span.chunk_token_count);
  std::vector<std::byte> copy;
  std::span<const std::byte> page;
  if (options.by_page) {
    page = ticket.Page(index, layer);
    if (page.size() != bytes) {
      return Internal("bad ticket: page of {} bytes, {} are due", page.size(), bytes);
    }
    TK_RETURN_IF_ERROR(ticket.VerifyPage(index, layer));
  } else {
    copy.resize(bytes);
    TK_RETURN_IF_ERROR(ticket.ReadPage(index, layer, copy));
    page = copy;
  }
  const std::span<const uint64_t> identities = options.context->identities();
  const auto wrong =
      pattern.CheckPage(layer, span.chunk_token_count, span.first_in_chunk,
                        identities.subspan(span.token_begin, span.token_count), page);
  if (!wrong) return absl::OkStatus();
  return Internal("wrong bytes: session '{}', span of token {} on: {}", options.session,
                  span.token_begin, *wrong);
}

// Nobody gets a page of what the engine said it has: there may be nothing behind it.
absl::Status CheckHeld(RestoreTicket& ticket, size_t index, uint32_t layer,
                       const KvPattern& pattern, const RestoreAllOptions& options) {
  const ChunkId& id = ticket.chunk(index);
  if (std::ranges::find(options.held_chunks, id) == options.held_chunks.end())
    return Internal("bad ticket: chunk {} is not one that the engine has", id.ShortHex());
  std::vector<std::byte> page(
      LayerPageBytes(pattern.layout().layers[layer], ticket.spans()[index].chunk_token_count));
  for (const absl::Status& status :
       {ticket.ReadPage(index, layer, page), ticket.VerifyPage(index, layer),
        ticket.Header(index).status()}) {
    if (!absl::IsFailedPrecondition(status))
      return Internal("bad ticket: span {}, which the engine has: {}", index, MessageOf(status));
  }
  if (ticket.Page(index, layer).empty()) return absl::OkStatus();
  return Internal("bad ticket: span {}, which the engine has, has a page", index);
}

}  // namespace

absl::StatusOr<RestoreOutcome> CheckTicket(RestoreTicket& ticket, const KvPattern& pattern,
                                           const RestoreAllOptions& options) {
  TK_RETURN_IF_ERROR(CheckSpans(ticket, pattern, options));
  RestoreOutcome outcome;
  uint64_t valid = ticket.token_count();
  for (uint32_t layer = 0; layer < pattern.layer_count() && valid > 0; ++layer) {
    TK_ASSIGN_OR_RETURN(const uint64_t tokens, ticket.WaitLayer(layer));
    if (tokens > valid) {
      return Internal("bad ticket: layer {} holds {} tokens after {}", layer, tokens, valid);
    }
    valid = tokens;
    for (size_t i = 0; i < ticket.spans().size(); ++i) {
      if (ticket.spans()[i].token_begin >= valid) break;
      absl::Status checked = absl::OkStatus();
      if (ticket.spans()[i].tier == Tier::kGpu) {
        TK_RETURN_IF_ERROR(CheckHeld(ticket, i, layer, pattern, options));
        continue;
      }
      if (layer == 0) checked = CheckHeader(ticket, i, pattern, *options.context);
      if (checked.ok()) checked = CheckOnePage(ticket, i, layer, pattern, options);
      if (checked.ok()) continue;
      if (!absl::IsDataLoss(checked)) return checked;
      ++outcome.data_losses;
      if (ticket.token_count() > ticket.spans()[i].token_begin) {
        return Internal("bad ticket: still {} tokens after damage at {}", ticket.token_count(),
                        ticket.spans()[i].token_begin);
      }
      valid = std::min(valid, ticket.token_count());
    }
    valid = std::min(valid, ticket.token_count());
  }
  if (ticket.token_count() > valid) {
    return Internal("bad ticket: {} tokens at the end, {} were there", ticket.token_count(), valid);
  }
  outcome.token_count = std::min(valid, ticket.token_count());
  outcome.generation = ticket.generation();
  outcome.miss_reason = ticket.miss_reason();
  for (const RestoredSpan& span : ticket.spans()) {
    if (span.token_begin >= outcome.token_count) break;
    const uint64_t end =
        std::min<uint64_t>(outcome.token_count, span.token_begin + span.token_count);
    uint64_t& tokens = span.tier == Tier::kGpu    ? outcome.held_tokens
                       : span.tier == Tier::kDisk ? outcome.disk_tokens
                                                  : outcome.host_tokens;
    tokens += end - span.token_begin;
  }
  return outcome;
}

absl::StatusOr<RestoreOutcome> RestoreAndCheck(KvStore& store, const KvPattern& pattern,
                                               const RestoreAllOptions& options) {
  RestoreRequest request{.session = options.session,
                         .layout = pattern.fingerprint(),
                         .max_tokens = options.max_tokens,
                         .held_chunks = options.held_chunks,
                         .deadline = options.deadline};
  std::vector<BlockHash> hashes;
  if (options.give_prompt && pattern.hashed()) {
    hashes = options.context->BlockHashes(pattern.layout().chunk_tokens);
    request.prompt = {.block_hashes = hashes, .hashed_token_count = options.context->size()};
  } else if (options.give_prompt) {
    request.prompt = {.tokens = options.context->tokens()};
  }
  TK_ASSIGN_OR_RETURN(auto ticket, store.BeginRestore(request));
  return CheckTicket(*ticket, pattern, options);
}

}  // namespace turnkeep::testing
