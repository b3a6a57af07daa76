#include "real_store.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include <fmt/format.h>

#include "core/limits.h"
#include "core/status.h"

namespace turnkeep::replay {
namespace {

constexpr absl::Duration kSpaceDeadline = absl::Seconds(30);
constexpr absl::Duration kCommitDeadline = absl::Seconds(60);

// SplitMix64 (Steele, Lea, Flood 2014): every bit of the result depends on every bit of `x`.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

float SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<float>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

absl::StatusOr<KvLayout> RealLayout(const Trace& trace, const RealOptions& options) {
  if (trace.whole_sessions) {
    return InvalidArgument("--real: the sessions of {} have no blocks", trace.name);
  }
  if (trace.block_tokens < kMinChunkTokens || trace.block_tokens > kMaxChunkTokens) {
    return InvalidArgument("--real: blocks of {} tokens are outside {}..{}; see --chunk-tokens",
                           trace.block_tokens, kMinChunkTokens, kMaxChunkTokens);
  }
  if (options.bytes_per_token == 0 || options.bytes_per_token % 4 != 0) {
    return InvalidArgument("--bytes-per-token: {} is no multiple of 4", options.bytes_per_token);
  }
  // K and V of one head in float16: four bytes a dim.
  const uint32_t layers = options.bytes_per_token % 16 == 0 ? 4 : 1;
  KvLayout layout{.model = "turnkeep-replay", .weights_revision = options.run_name};
  layout.chunk_tokens = trace.block_tokens;
  layout.layers.assign(layers,
                       LayerSpec::Full(1, options.bytes_per_token / 4 / layers, DType::kFloat16));
  TK_RETURN_IF_ERROR(ValidateLayout(layout));
  return layout;
}

absl::StatusOr<std::unique_ptr<RealStore>> RealStore::Open(const Trace& trace,
                                                           const RealOptions& options,
                                                           KvStore* store) {
  std::unique_ptr<RealStore> real(new RealStore(trace, options, store));
  TK_ASSIGN_OR_RETURN(real->layout_, RealLayout(trace, options));
  TK_ASSIGN_OR_RETURN(real->fingerprint_, store->RegisterLayout(real->layout_));
  real->sessions_.resize(trace.session_count);
  return real;
}

uint64_t RealStore::slot_bytes() const {
  return GeometryOf(layout_, layout_.chunk_tokens).slot_bytes;
}

uint64_t RealStore::TokensOf(const TraceRequest& request) const {
  return std::min<uint64_t>(request.input_tokens,
                            uint64_t{request.block_count} * trace_.block_tokens);
}

Prompt RealStore::Describe(uint32_t index) {
  const TraceRequest& request = trace_.requests[index];
  blocks_.clear();
  for (const BlockRun& run : trace_.RunsOf(request)) {
    for (uint32_t i = 0; i < run.count; ++i) blocks_.push_back(run.first + i);
  }
  const uint64_t tokens = TokensOf(request);
  if (options_.identity == RealIdentity::kHashes) {
    hashes_.clear();
    for (const uint32_t block : blocks_) {
      hashes_.emplace_back(reinterpret_cast<const char*>(&block), sizeof block);
    }
    return {.block_hashes = hashes_, .hashed_token_count = tokens};
  }
  tokens_.resize(tokens);
  for (uint64_t i = 0; i < tokens; ++i) {
    const uint64_t block = blocks_[i / trace_.block_tokens];
    tokens_[i] = static_cast<uint32_t>(Mix((block << 16) + i % trace_.block_tokens));
  }
  return {.tokens = tokens_};
}

// Whether the prompt of `to` begins with all whole blocks of `from`.
bool RealStore::GoesOn(uint32_t from, uint32_t to) const {
  const TraceRequest& earlier = trace_.requests[from];
  const auto old_runs = trace_.RunsOf(earlier);
  const auto new_runs = trace_.RunsOf(trace_.requests[to]);
  uint64_t left = TokensOf(earlier) / trace_.block_tokens;
  size_t i = 0;
  uint32_t offset = 0;  // into new_runs[i]
  for (const BlockRun& old : old_runs) {
    for (uint32_t done = 0; done < old.count && left > 0;) {
      if (i == new_runs.size() || new_runs[i].first + offset != old.first + done) return false;
      const auto step = static_cast<uint32_t>(
          std::min<uint64_t>(left, std::min(old.count - done, new_runs[i].count - offset)));
      done += step;
      offset += step;
      left -= step;
      if (offset == new_runs[i].count) {
        ++i;
        offset = 0;
      }
    }
  }
  return true;
}

void RealStore::Fill(uint32_t block, uint32_t layer, uint32_t token_count,
                     std::span<std::byte> page) const {
  const uint64_t seed = Mix((uint64_t{block} << 32) + (uint64_t{layer} << 16) + token_count);
  uint64_t word = 0;
  for (size_t at = 0; at < page.size(); at += sizeof word) {
    word = Mix(seed + at);
    std::memcpy(page.data() + at, &word, std::min(sizeof word, page.size() - at));
  }
}

void RealStore::NoteWrong(uint32_t block, uint32_t layer, std::span<const std::byte> got,
                          std::span<const std::byte> want) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == want[i]) continue;
    if (counts_.wrong_bytes++ > 0) continue;
    counts_.first_wrong =
        fmt::format("block {} of the trace, layer {}, byte {}: {:#04x} for {:#04x}", block, layer,
                    i, static_cast<unsigned>(got[i]), static_cast<unsigned>(want[i]));
  }
}

absl::Status RealStore::ReadSpan(RestoreTicket& ticket, size_t index, uint32_t layer) {
  const RestoredSpan& span = ticket.spans()[index];
  got_.resize(LayerPageBytes(layout_.layers[layer], span.chunk_token_count));
  const absl::Status status = ticket.ReadPage(index, layer, got_);
  if (absl::IsDataLoss(status)) {
    ++counts_.damaged_pages;  // the ticket now ends before it
    return absl::OkStatus();
  }
  TK_RETURN_IF_ERROR(status);
  const uint32_t block = blocks_[span.token_begin / trace_.block_tokens];
  want_.resize(got_.size());
  Fill(block, layer, span.chunk_token_count, want_);
  counts_.verified_bytes += got_.size();
  if (std::memcmp(got_.data(), want_.data(), got_.size()) != 0) {
    NoteWrong(block, layer, got_, want_);
  }
  return absl::OkStatus();
}

absl::StatusOr<Found> RealStore::Restore(uint32_t index) {
  const Prompt prompt = Describe(index);
  Found found;
  if (prompt.token_count() == 0) return found;
  const auto start = std::chrono::steady_clock::now();
  const std::string& name = sessions_[trace_.requests[index].session].name;
  TK_ASSIGN_OR_RETURN(
      const auto ticket,
      store_.BeginRestore({.session = name, .prompt = prompt, .layout = fingerprint_}));
  for (uint32_t layer = 0; layer < layout_.layers.size() && ticket->token_count() > 0; ++layer) {
    TK_ASSIGN_OR_RETURN(const uint64_t ready, ticket->WaitLayer(layer));
    for (size_t i = 0; i < ticket->spans().size(); ++i) {
      if (ticket->spans()[i].token_begin >= std::min(ready, ticket->token_count())) break;
      TK_RETURN_IF_ERROR(ReadSpan(*ticket, i, layer));
    }
  }
  counts_.restore_s.push_back(SecondsSince(start));
  const uint64_t tokens = ticket->token_count();
  for (const RestoredSpan& span : ticket->spans()) {
    // A block that came back in part is no hit of the block.
    const uint64_t whole = std::min<uint64_t>(
        prompt.token_count(), (span.token_begin / trace_.block_tokens + 1) * trace_.block_tokens);
    if (span.token_begin + span.token_count > tokens) break;
    if (span.token_begin + span.token_count < whole) break;
    ++(span.tier == Tier::kDisk ? found.disk_blocks : found.host_blocks);
  }
  return found;
}

absl::Status RealStore::Save(uint32_t index) {
  const TraceRequest& request = trace_.requests[index];
  const Prompt prompt = Describe(index);
  if (prompt.token_count() == 0) return absl::OkStatus();
  Session& session = sessions_[request.session];
  if (session.last_request == kNone || !GoesOn(session.last_request, index)) {
    session.name = fmt::format("{}-{}.{}", options_.run_name, request.session, session.branches++);
    session.generation = 0;
    names_.push_back(session.name);
  }
  const auto start = std::chrono::steady_clock::now();
  TK_ASSIGN_OR_RETURN(const auto ticket,
                      store_.BeginSave({.session = session.name,
                                        .expected_generation = session.generation,
                                        .layout = fingerprint_,
                                        .prompt = prompt,
                                        .space_deadline = kSpaceDeadline}));
  for (uint32_t layer = 0; layer < layout_.layers.size(); ++layer) {
    for (size_t i = 0; i < ticket->chunks().size(); ++i) {
      const ChunkToSave& chunk = ticket->chunks()[i];
      const auto page = ticket->Page(i, layer);
      Fill(blocks_[chunk.token_begin / trace_.block_tokens], layer, chunk.token_count, page);
      counts_.saved_bytes += page.size();
    }
    TK_RETURN_IF_ERROR(ticket->FinishLayer(layer));
  }
  TK_ASSIGN_OR_RETURN(const CommitResult result, ticket->Commit(kCommitDeadline));
  counts_.save_s.push_back(SecondsSince(start));
  counts_.short_saves += result.token_count < prompt.token_count() ? 1 : 0;
  session.generation = result.generation;
  session.last_request = index;
  return absl::OkStatus();
}

absl::Status RealStore::Finish() {
  if (options_.keep_sessions) return absl::OkStatus();
  for (const std::string& name : names_) {
    const absl::Status status = store_.DropSession(name);
    if (!status.ok() && !absl::IsNotFound(status)) return status;
  }
  names_.clear();
  return absl::OkStatus();
}

}  // namespace turnkeep::replay
