#include "core/hint.h"

#include <array>

namespace turnkeep {

namespace {

constexpr std::array<std::string_view, kHintActions> kActionNames = {
    "share", "prefetch", "demote", "pin", "unpin", "retain", "expect", "drop_soon"};
constexpr std::array<std::string_view, kStopReasons> kStopNames = {"unknown", "end_turn",
                                                                   "tool_use", "length"};
constexpr std::array<std::string_view, 5> kOutcomeNames = {"accepted", "clipped", "deferred",
                                                           "rejected", "missing"};

template <typename Value, size_t n>
std::optional<Value> Find(const std::array<std::string_view, n>& names, std::string_view name) {
  for (size_t i = 0; i < n; ++i) {
    if (names[i] == name) return static_cast<Value>(i);
  }
  return std::nullopt;
}

}  // namespace

std::string_view NameOf(HintAction action) { return kActionNames[static_cast<size_t>(action)]; }
std::string_view NameOf(HintOutcome outcome) { return kOutcomeNames[static_cast<size_t>(outcome)]; }
std::string_view NameOf(StopReason reason) { return kStopNames[static_cast<size_t>(reason)]; }

std::optional<HintAction> HintActionOf(std::string_view name) {
  return Find<HintAction>(kActionNames, name);
}
std::optional<StopReason> StopReasonOf(std::string_view name) {
  return Find<StopReason>(kStopNames, name);
}

HintReply AnswerAll(const HintRequest& request, HintOutcome outcome, const std::string& reason) {
  HintReply reply;
  if (request.queue) reply.queue.assign(request.queue->size(), {outcome, reason});
  reply.items.assign(request.items.size(), {outcome, reason});
  reply.speeds.assign(request.speeds.size(), {outcome, reason});
  return reply;
}

}  // namespace turnkeep
