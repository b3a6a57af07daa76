#include "store/decision_log.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace turnkeep {

namespace {

using Kind = PlacementAction::Kind;
using Reason = PlacementAction::Reason;

bool IsEviction(const PlacementAction& action) {
  return action.kind == Kind::kEvictHost || action.kind == Kind::kEvictDisk;
}

std::string_view PurposeOf(Reason reason) {
  switch (reason) {
    case Reason::kWatermark:
      return "to come below the watermark";
    case Reason::kPrefetch:
      return "for a prefetch of what is needed sooner";
    case Reason::kDemoted:
      return "because a hint demoted it";
    case Reason::kDropped:
      return "because a hint said that nobody will use it";
    case Reason::kNoDiskTier:
      return "for others, without a disk tier to go to";
    case Reason::kDiskFull:
      return "for others, with the disk tier full";
    case Reason::kWriteFailed:
      return "for others, and the write to disk failed";
    default:
      return "to make room";
  }
}

std::string Seconds(int64_t ns) { return fmt::format("{:.1f} s", static_cast<double>(ns) * 1e-9); }

std::string ExpectedText(const Decision& decision) {
  const int64_t next = decision.action.next_use;
  if (next == kNoExpectedUse) return "nobody expected it";
  if (next <= decision.now_ns) return "expected next";
  return "expected in " + Seconds(next - decision.now_ns);
}

}  // namespace

void DecisionLog::Add(Decision decision) {
  decision.number = next_++;
  if (IsEviction(decision.action)) evictions_[decision.chunk.Prefix64()] = decision.number;
  ring_.push_back(std::move(decision));
  if (ring_.size() <= kMaxDecisions) return;
  const auto found = evictions_.find(ring_.front().chunk.Prefix64());
  if (found != evictions_.end() && found->second == ring_.front().number) evictions_.erase(found);
  ring_.pop_front();
}

const Decision* DecisionLog::LastEviction(const ChunkId& chunk) const {
  const auto found = evictions_.find(chunk.Prefix64());
  if (found == evictions_.end()) return nullptr;
  const Decision& decision = ring_[found->second - ring_.front().number];
  return decision.chunk == chunk ? &decision : nullptr;
}

std::vector<Decision> DecisionLog::After(uint16_t tenant, uint64_t after, size_t limit) const {
  std::vector<Decision> found;
  for (auto it = ring_.rbegin(); it != ring_.rend() && it->number > after; ++it) {
    if (found.size() == limit) break;
    if (it->tenant == tenant) found.push_back(*it);
  }
  std::reverse(found.begin(), found.end());
  return found;
}

std::string_view WhatOf(const Decision& decision) {
  switch (decision.action.kind) {
    case Kind::kEvictHost:
      return decision.last_copy ? "lost from host" : "evicted from host";
    case Kind::kEvictDisk:
      return decision.last_copy ? "lost from disk" : "evicted from disk";
    case Kind::kWriteToDisk:
      return "written to disk";
    case Kind::kPrefetch:
      return "prefetch";
    case Kind::kCancelPrefetch:
      return "prefetch cancelled";
  }
  return "";
}

std::string WhyOf(const Decision& decision, std::string_view policy) {
  const PlacementAction& action = decision.action;
  if (action.kind == Kind::kPrefetch) return ExpectedText(decision);
  if (action.kind == Kind::kCancelPrefetch) return "nobody expects it any more";
  const std::string_view part = action.reason == Reason::kDropped ? " among the dropped"
                                : action.keep > kPolicyKeep       ? " among the retained"
                                                                  : "";
  return fmt::format("policy {}: the first to go of {} chunks{}, unused for {}, {}; {}", policy,
                     action.of_chunks, part, Seconds(action.idle_ns), ExpectedText(decision),
                     PurposeOf(action.reason));
}

}  // namespace turnkeep
