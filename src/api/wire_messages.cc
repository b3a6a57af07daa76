#include "api/wire_messages.h"

#include <cstring>
#include <limits>

#include "core/limits.h"

namespace turnkeep::wire {

namespace {

// Longer finite durations would overflow; they are as good as infinite.
constexpr int64_t kMaxMicros = std::numeric_limits<int64_t>::max() / 4096;

template <typename Id>
absl::StatusOr<Id> IdFromWire(const char* what, const std::string& bytes) {
  Id id;
  if (bytes.size() != id.bytes.size()) {
    return InvalidArgument("{}: {} bytes, should be {}", what, bytes.size(), id.bytes.size());
  }
  std::memcpy(id.bytes.data(), bytes.data(), bytes.size());
  return id;
}

absl::StatusOr<Tier> TierFromWire(uint32_t value) {
  if (value > static_cast<uint32_t>(Tier::kDisk)) return InvalidArgument("tier: {}", value);
  return static_cast<Tier>(value);
}

}  // namespace

int64_t ToMicros(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return -1;
  if (duration <= absl::ZeroDuration()) return 0;
  const int64_t micros = absl::ToInt64Microseconds(duration);
  return micros > kMaxMicros ? -1 : micros;
}

absl::Duration FromMicros(int64_t micros) {
  return micros < 0 || micros > kMaxMicros ? absl::InfiniteDuration() : absl::Microseconds(micros);
}

void ToWire(const absl::Status& status, Error* out) {
  out->set_code(static_cast<int32_t>(status.code()));
  out->set_message(MessageOf(status));
}

absl::Status FromWire(const Error& error) {
  const auto code = static_cast<absl::StatusCode>(error.code());
  if (error.code() <= 0 || error.code() > static_cast<int>(absl::StatusCode::kUnauthenticated)) {
    return Internal("error with code {}: {}", error.code(), error.message());
  }
  return absl::Status(code, error.message());
}

absl::StatusOr<Fingerprint> FingerprintFromWire(const std::string& bytes) {
  return IdFromWire<Fingerprint>("layout fingerprint", bytes);
}
absl::StatusOr<ChunkId> ChunkIdFromWire(const std::string& bytes) {
  return IdFromWire<ChunkId>("chunk id", bytes);
}

void ToWire(const turnkeep::Prompt& prompt, Prompt* out) {
  if (!prompt.hashed()) return;
  out->mutable_block_hashes()->Reserve(static_cast<int>(prompt.block_hashes.size()));
  for (const BlockHash& hash : prompt.block_hashes) out->add_block_hashes(hash);
  out->set_hashed_token_count(prompt.hashed_token_count);
}

std::span<const std::byte> RawOf(const turnkeep::Prompt& prompt) {
  // Also beside hashes, which is an error that the other side names.
  return std::as_bytes(prompt.tokens);
}

absl::Status FromWire(const Prompt& message, std::span<const std::byte> raw, ReceivedPrompt* out) {
  if (raw.size() % sizeof(uint32_t) != 0) {
    return InvalidArgument("prompt: {} raw bytes are not whole tokens", raw.size());
  }
  if (raw.size() / sizeof(uint32_t) > kMaxSessionTokens) {
    return InvalidArgument("prompt: {} tokens, the limit is {}", raw.size() / sizeof(uint32_t),
                           kMaxSessionTokens);
  }
  if (message.block_hashes_size() > 0 && !raw.empty()) {
    return InvalidArgument("prompt: both {} block hashes and {} tokens",
                           message.block_hashes_size(), raw.size() / sizeof(uint32_t));
  }
  out->block_hashes.assign(message.block_hashes().begin(), message.block_hashes().end());
  out->prompt.tokens = {reinterpret_cast<const uint32_t*>(raw.data()),
                        raw.size() / sizeof(uint32_t)};
  out->prompt.block_hashes = out->block_hashes;
  out->prompt.hashed_token_count = message.hashed_token_count();
  return absl::OkStatus();
}

void ToWire(const turnkeep::SaveRequest& request, BeginSaveRequest* out) {
  out->set_session(request.session);
  out->set_expected_generation(request.expected_generation);
  out->set_layout(IdBytes(request.layout));
  ToWire(request.prompt, out->mutable_prompt());
  out->set_position_offset(request.position_offset);
  out->set_space_deadline_us(ToMicros(request.space_deadline));
  if (request.ttl) out->set_ttl_us(ToMicros(*request.ttl));
}

absl::Status FromWire(const BeginSaveRequest& message, std::span<const std::byte> raw,
                      ReceivedPrompt* prompt, turnkeep::SaveRequest* out) {
  TK_RETURN_IF_ERROR(FromWire(message.prompt(), raw, prompt));
  TK_ASSIGN_OR_RETURN(out->layout, FingerprintFromWire(message.layout()));
  out->session = message.session();
  out->expected_generation = message.expected_generation();
  out->prompt = prompt->prompt;
  out->position_offset = message.position_offset();
  out->space_deadline = FromMicros(message.space_deadline_us());
  if (message.has_ttl_us()) out->ttl = FromMicros(message.ttl_us());
  return absl::OkStatus();
}

void ToWire(const turnkeep::RestoreRequest& request, BeginRestoreRequest* out) {
  out->set_session(request.session);
  ToWire(request.prompt, out->mutable_prompt());
  out->set_layout(IdBytes(request.layout));
  out->set_max_tokens(request.max_tokens);
  out->set_deadline_us(ToMicros(request.deadline));
  for (const ChunkId& id : request.held_chunks) out->mutable_held_chunks()->append(IdBytes(id));
}

absl::Status FromWire(const BeginRestoreRequest& message, std::span<const std::byte> raw,
                      ReceivedPrompt* prompt, std::vector<ChunkId>* held,
                      turnkeep::RestoreRequest* out) {
  TK_RETURN_IF_ERROR(FromWire(message.prompt(), raw, prompt));
  TK_ASSIGN_OR_RETURN(out->layout, FingerprintFromWire(message.layout()));
  out->session = message.session();
  out->prompt = prompt->prompt;
  out->max_tokens = message.max_tokens();
  out->deadline = FromMicros(message.deadline_us());
  const std::string& ids = message.held_chunks();
  if (ids.size() % sizeof(ChunkId) != 0) {
    return InvalidArgument("restore: held_chunks has {} bytes, not a multiple of {}", ids.size(),
                           sizeof(ChunkId));
  }
  held->resize(ids.size() / sizeof(ChunkId));
  if (!ids.empty()) std::memcpy(held->data(), ids.data(), ids.size());
  out->held_chunks = *held;
  return absl::OkStatus();
}

void ToWire(const turnkeep::ImportRequest& request, BeginImportRequest* out) {
  out->set_session(request.session);
  out->set_layout(IdBytes(request.layout));
  for (const turnkeep::ImportedChunk& chunk : request.chunks) {
    ImportedChunk* to = out->add_chunks();
    to->set_foreign_id(IdBytes(chunk.foreign_id));
    to->set_foreign_parent(IdBytes(chunk.foreign_parent));
    to->set_parent_is_root(chunk.parent_is_root);
    to->set_tokens(chunk.tokens.data(), chunk.tokens.size() * sizeof(uint32_t));
    to->set_block_hash(chunk.block_hash);
    to->set_token_count(chunk.token_count);
    to->set_position_base(chunk.position_base);
  }
  for (const turnkeep::ImportRequest::Slice& slice : request.slices) {
    ImportSlice* to = out->add_slices();
    to->set_chunk_index(slice.chunk_index);
    to->set_first(slice.first);
    to->set_count(slice.count);
  }
}

absl::StatusOr<turnkeep::ImportRequest> FromWire(const BeginImportRequest& message) {
  turnkeep::ImportRequest request;
  request.session = message.session();
  TK_ASSIGN_OR_RETURN(request.layout, FingerprintFromWire(message.layout()));
  request.chunks.reserve(message.chunks_size());
  for (const ImportedChunk& from : message.chunks()) {
    turnkeep::ImportedChunk& chunk = request.chunks.emplace_back();
    TK_ASSIGN_OR_RETURN(chunk.foreign_id, ChunkIdFromWire(from.foreign_id()));
    TK_ASSIGN_OR_RETURN(chunk.foreign_parent, ChunkIdFromWire(from.foreign_parent()));
    chunk.parent_is_root = from.parent_is_root();
    if (from.tokens().size() % sizeof(uint32_t) != 0) {
      return InvalidArgument("import: chunk {} has {} token bytes", request.chunks.size() - 1,
                             from.tokens().size());
    }
    chunk.tokens.resize(from.tokens().size() / sizeof(uint32_t));
    if (!chunk.tokens.empty()) {
      std::memcpy(chunk.tokens.data(), from.tokens().data(), from.tokens().size());
    }
    chunk.block_hash = from.block_hash();
    chunk.token_count = from.token_count();
    chunk.position_base = from.position_base();
  }
  request.slices.reserve(message.slices_size());
  for (const ImportSlice& from : message.slices()) {
    request.slices.push_back(
        {.chunk_index = from.chunk_index(), .first = from.first(), .count = from.count()});
  }
  return request;
}

void ToWire(const CommitResult& result, CommitReply* out) {
  out->set_generation(result.generation);
  out->set_token_count(result.token_count);
  out->set_new_chunks(result.new_chunks);
  out->set_new_bytes(result.new_bytes);
  out->set_not_durable(!result.durable);
  out->set_note(result.note);
}

CommitResult FromWire(const CommitReply& message) {
  return {.generation = message.generation(),
          .token_count = message.token_count(),
          .new_chunks = message.new_chunks(),
          .new_bytes = message.new_bytes(),
          .durable = !message.not_durable(),
          .note = message.note()};
}

void ToWire(const turnkeep::ForkRequest& request, ForkRequest* out) {
  out->set_source(request.source);
  out->set_target(request.target);
  if (request.token_count) out->set_token_count(*request.token_count);
}

turnkeep::ForkRequest FromWire(const ForkRequest& message) {
  turnkeep::ForkRequest request{.source = message.source(), .target = message.target()};
  if (message.has_token_count()) request.token_count = message.token_count();
  return request;
}

void ToWire(const turnkeep::TruncateRequest& request, TruncateRequest* out) {
  out->set_session(request.session);
  out->set_expected_generation(request.expected_generation);
  out->set_drop_begin(request.drop_begin);
  out->set_drop_end(request.drop_end);
}

turnkeep::TruncateRequest FromWire(const TruncateRequest& message) {
  return {.session = message.session(),
          .expected_generation = message.expected_generation(),
          .drop_begin = message.drop_begin(),
          .drop_end = message.drop_end()};
}

void ToWire(const turnkeep::ListRequest& request, ListRequest* out) {
  out->set_name_prefix(request.name_prefix);
  out->set_after(request.after);
  out->set_limit(request.limit);
}

turnkeep::ListRequest FromWire(const ListRequest& message) {
  return {.name_prefix = message.name_prefix(), .after = message.after(), .limit = message.limit()};
}

void ToWire(const turnkeep::ExplainRequest& request, ExplainRequest* out) {
  out->set_session(request.session);
  ToWire(request.prompt, out->mutable_prompt());
  out->set_layout(IdBytes(request.layout));
}

absl::Status FromWire(const ExplainRequest& message, std::span<const std::byte> raw,
                      ReceivedPrompt* prompt, turnkeep::ExplainRequest* out) {
  TK_RETURN_IF_ERROR(FromWire(message.prompt(), raw, prompt));
  TK_ASSIGN_OR_RETURN(out->layout, FingerprintFromWire(message.layout()));
  out->session = message.session();
  out->prompt = prompt->prompt;
  return absl::OkStatus();
}

void ToWire(const turnkeep::Explanation& explanation, Explanation* out) {
  out->set_token_count(explanation.token_count);
  out->set_restorable_tokens(explanation.restorable_tokens);
  out->set_host_bytes(explanation.host_bytes);
  out->set_disk_bytes(explanation.disk_bytes);
  out->set_predicted_us(explanation.predicted_us);
  for (const turnkeep::ExplainPart& part : explanation.parts) {
    ExplainPart* to = out->add_parts();
    to->set_token_begin(part.token_begin);
    to->set_token_count(part.token_count);
    to->set_tier(static_cast<uint32_t>(part.tier));
    to->set_reason(part.reason);
  }
  for (const turnkeep::GpuHolder& holder : explanation.gpu) {
    GpuHolder* to = out->add_gpu();
    to->set_engine(holder.engine);
    to->set_pid(holder.pid);
    to->set_token_count(holder.token_count);
    to->set_chunk_count(holder.chunk_count);
    to->set_bytes(holder.bytes);
  }
  for (const std::string& note : explanation.notes) out->add_notes(note);
  out->set_recompute_us(explanation.recompute_us);
  out->set_declined_tokens(explanation.declined_tokens);
}

absl::StatusOr<turnkeep::Explanation> FromWire(const Explanation& message) {
  turnkeep::Explanation explanation{.token_count = message.token_count(),
                                    .restorable_tokens = message.restorable_tokens(),
                                    .host_bytes = message.host_bytes(),
                                    .disk_bytes = message.disk_bytes(),
                                    .predicted_us = message.predicted_us(),
                                    .recompute_us = message.recompute_us(),
                                    .declined_tokens = message.declined_tokens()};
  for (const ExplainPart& from : message.parts()) {
    turnkeep::ExplainPart& part = explanation.parts.emplace_back();
    part.token_begin = from.token_begin();
    part.token_count = from.token_count();
    TK_ASSIGN_OR_RETURN(part.tier, TierFromWire(from.tier()));
    part.reason = from.reason();
  }
  for (const GpuHolder& from : message.gpu()) {
    explanation.gpu.push_back({.engine = from.engine(),
                               .pid = from.pid(),
                               .token_count = from.token_count(),
                               .chunk_count = from.chunk_count(),
                               .bytes = from.bytes()});
  }
  explanation.notes.assign(message.notes().begin(), message.notes().end());
  return explanation;
}

}  // namespace turnkeep::wire
