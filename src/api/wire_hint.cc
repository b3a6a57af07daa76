// Hints to and from their messages.
#include <cstring>

#include "api/wire_messages.h"
#include "core/hint.h"
#include "core/status.h"

namespace turnkeep::wire {

namespace {

void ToWire(const turnkeep::HintTarget& target, HintTarget* out) {
  if (target.max_tokens != kMaxSessionTokens) out->set_max_tokens(target.max_tokens);
  if (!target.session.empty()) return out->set_session(target.session);
  out->set_layout(IdBytes(target.layout));
  // Little-endian, as all tokens on the wire.
  out->set_tokens(reinterpret_cast<const char*>(target.tokens.data()),
                  target.tokens.size() * sizeof(uint32_t));
  for (const BlockHash& hash : target.block_hashes) out->add_block_hashes(hash);
  out->set_hashed_token_count(target.hashed_token_count);
}

absl::Status FromWire(const HintTarget& message, turnkeep::HintTarget* out) {
  out->session = message.session();
  if (message.has_max_tokens()) out->max_tokens = message.max_tokens();
  if (!out->session.empty()) return absl::OkStatus();
  TK_ASSIGN_OR_RETURN(out->layout, FingerprintFromWire(message.layout()));
  const std::string& bytes = message.tokens();
  if (bytes.size() % sizeof(uint32_t) != 0) {
    return InvalidArgument("hint: {} bytes are not whole tokens", bytes.size());
  }
  out->tokens.resize(bytes.size() / sizeof(uint32_t));
  if (!bytes.empty()) std::memcpy(out->tokens.data(), bytes.data(), bytes.size());
  out->block_hashes.assign(message.block_hashes().begin(), message.block_hashes().end());
  out->hashed_token_count = message.hashed_token_count();
  return absl::OkStatus();
}

absl::StatusOr<turnkeep::HintItem> FromWire(const HintItem& message) {
  turnkeep::HintItem item;
  TK_RETURN_IF_ERROR(FromWire(message.target(), &item.target));
  if (message.action() >= kHintActions) {
    return InvalidArgument("hint: action {} is not known", message.action());
  }
  if (message.stop() >= kStopReasons) {
    return InvalidArgument("hint: stop reason {} is not known", message.stop());
  }
  item.action = static_cast<HintAction>(message.action());
  item.stop = static_cast<StopReason>(message.stop());
  if (message.has_expected_in_us()) item.expected_in = FromMicros(message.expected_in_us());
  for (const int64_t us : message.expected_times_us()) {
    // One above the limit tells the store as well as a million would.
    if (item.expected_times.size() > kMaxExpectedTimes) break;
    item.expected_times.push_back(FromMicros(us));
  }
  if (message.has_ttl_us()) item.ttl = FromMicros(message.ttl_us());
  item.priority = message.priority();
  return item;
}

void ToWire(const turnkeep::HintAnswer& answer, HintAnswer* out) {
  out->set_outcome(static_cast<uint32_t>(answer.outcome));
  out->set_reason(answer.reason);
}

turnkeep::HintAnswer FromWire(const HintAnswer& message) {
  const auto last = static_cast<uint32_t>(HintOutcome::kMissing);
  return {.outcome = message.outcome() <= last ? static_cast<HintOutcome>(message.outcome())
                                               : HintOutcome::kRejected,
          .reason = message.reason()};
}

}  // namespace

void ToWire(const turnkeep::HintRequest& request, HintRequest* out) {
  out->set_replaces_queue(request.queue.has_value());
  if (request.queue) {
    for (const turnkeep::WaitingRequest& waiting : *request.queue) {
      WaitingRequest* to = out->add_queue();
      ToWire(waiting.target, to->mutable_target());
      to->set_waited_us(ToMicros(waiting.waited));
      to->set_priority(waiting.priority);
    }
  }
  for (const turnkeep::HintItem& item : request.items) {
    HintItem* to = out->add_items();
    to->set_action(static_cast<uint32_t>(item.action));
    ToWire(item.target, to->mutable_target());
    if (item.expected_in) to->set_expected_in_us(ToMicros(*item.expected_in));
    to->set_stop(static_cast<uint32_t>(item.stop));
    for (const absl::Duration time : item.expected_times) {
      to->add_expected_times_us(ToMicros(time));
    }
    if (item.ttl) to->set_ttl_us(ToMicros(*item.ttl));
    to->set_priority(item.priority);
  }
  for (const turnkeep::EngineSpeed& speed : request.speeds) {
    EngineSpeed* to = out->add_speeds();
    to->set_layout(IdBytes(speed.layout));
    to->set_prefill_tokens_per_s(speed.prefill_tokens_per_s);
    to->set_copy_bytes_per_s(speed.copy_bytes_per_s);
    to->set_prefill_half_speed_tokens(speed.prefill_half_speed_tokens);
  }
}

absl::StatusOr<turnkeep::HintRequest> FromWire(const HintRequest& message) {
  // Before they are taken apart: an item of two bytes becomes one of hundreds.
  const size_t count = static_cast<size_t>(message.queue_size()) +
                       static_cast<size_t>(message.items_size()) +
                       static_cast<size_t>(message.speeds_size());
  if (count > kMaxHintItems) {
    return InvalidArgument("hint: {} items, the limit is {}", count, kMaxHintItems);
  }
  turnkeep::HintRequest request;
  if (message.replaces_queue()) {
    request.queue.emplace();
    for (const WaitingRequest& from : message.queue()) {
      turnkeep::WaitingRequest& waiting = request.queue->emplace_back();
      TK_RETURN_IF_ERROR(FromWire(from.target(), &waiting.target));
      waiting.waited = FromMicros(from.waited_us());
      waiting.priority = from.priority();
    }
  }
  for (const HintItem& from : message.items()) {
    TK_ASSIGN_OR_RETURN(request.items.emplace_back(), FromWire(from));
  }
  for (const EngineSpeed& from : message.speeds()) {
    turnkeep::EngineSpeed& speed = request.speeds.emplace_back();
    TK_ASSIGN_OR_RETURN(speed.layout, FingerprintFromWire(from.layout()));
    speed.prefill_tokens_per_s = from.prefill_tokens_per_s();
    speed.copy_bytes_per_s = from.copy_bytes_per_s();
    speed.prefill_half_speed_tokens = from.prefill_half_speed_tokens();
  }
  return request;
}

void ToWire(const turnkeep::HintReply& reply, HintReply* out) {
  for (const turnkeep::HintAnswer& answer : reply.queue) ToWire(answer, out->add_queue());
  for (const turnkeep::HintAnswer& answer : reply.items) ToWire(answer, out->add_items());
  for (const turnkeep::HintAnswer& answer : reply.speeds) ToWire(answer, out->add_speeds());
}

turnkeep::HintReply FromWire(const HintReply& message) {
  turnkeep::HintReply reply;
  for (const HintAnswer& answer : message.queue()) reply.queue.push_back(FromWire(answer));
  for (const HintAnswer& answer : message.items()) reply.items.push_back(FromWire(answer));
  for (const HintAnswer& answer : message.speeds()) reply.speeds.push_back(FromWire(answer));
  return reply;
}

}  // namespace turnkeep::wire
