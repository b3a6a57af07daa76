// Hints: from what the engine's scheduler tells to what the placement is told.
#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include "core/hint.h"
#include "core/status.h"
#include "core/units.h"
#include "store/store_impl.h"

namespace turnkeep {

namespace {

HintAnswer Answer(HintOutcome outcome, std::string reason = "") {
  return {.outcome = outcome, .reason = std::move(reason)};
}

HintAnswer NotFoundAnswer(const absl::Status& status) {
  return Answer(absl::IsNotFound(status) ? HintOutcome::kMissing : HintOutcome::kRejected,
                MessageOf(status));
}

int64_t InNs(absl::Duration duration) {
  return absl::ToInt64Nanoseconds(std::clamp(duration, absl::ZeroDuration(), kFurthestHint));
}

bool IsAboutSession(HintAction action) {
  return action == HintAction::kPin || action == HintAction::kUnpin;
}

HintAnswer PartAnswer(const HintedChunks& found) {
  if (found.stored_tokens == found.asked_tokens) return Answer(HintOutcome::kAccepted);
  return Answer(HintOutcome::kClipped,
                fmt::format("{} of {} tokens are stored", found.stored_tokens, found.asked_tokens));
}

absl::StatusOr<Expectations::When> WhenOf(const HintItem& item, int64_t now) {
  Expectations::When when{.next_use = now + InNs(item.expected_in.value_or(absl::ZeroDuration())),
                          .times = {},
                          .expires_ns = 0};
  if (item.expected_times.empty()) return when;
  if (item.expected_times.size() > kMaxExpectedTimes) {
    return InvalidArgument("{} expected times, the limit is {}", item.expected_times.size(),
                           kMaxExpectedTimes);
  }
  for (const absl::Duration time : item.expected_times) when.times.push_back(now + InNs(time));
  std::sort(when.times.begin(), when.times.end());
  when.next_use = when.times[(when.times.size() - 1) / 2];
  return when;
}

}  // namespace

// ---- targets ---------------------------------------------------------------------

std::string StoreImpl::NameOfTarget(const std::string& session, const Prompt& prompt,
                                    const Fingerprint& layout) {
  if (!session.empty()) return "s" + session;
  // Of prefixes only a hash is kept: two that meet would share one expectation, no more.
  const std::string_view tokens(reinterpret_cast<const char*>(prompt.tokens.data()),
                                prompt.tokens.size_bytes());
  size_t hash = std::hash<std::string_view>()(tokens);
  for (const BlockHash& block : prompt.block_hashes) {
    hash = hash * 31 + std::hash<std::string>()(block);
  }
  return fmt::format("t{:016x}{}", hash, layout.ShortHex());
}

absl::StatusOr<HintedChunks> StoreImpl::FindHinted(TenantNumber tenant_number,
                                                   const HintTarget& target) {
  HintedChunks found;
  std::vector<Span> spans;
  const LayoutInfo* layout = nullptr;
  if (!target.session.empty()) {
    TK_ASSIGN_OR_RETURN(const Session* session, SessionOf(tenant_number, target.session));
    spans = session->spans;
    found.asked_tokens = session->token_count;
    found.turn = session->last_turn;
    layout = state_.registry.LayoutAt(session->layout);
  } else {
    const Prompt prompt = target.prompt();
    if (prompt.token_count() == 0) return InvalidArgument("neither a session nor tokens are given");
    TK_ASSIGN_OR_RETURN(const Tenant* tenant, TenantOf(tenant_number));
    TK_ASSIGN_OR_RETURN(layout, LayoutOf(target.layout));
    TK_RETURN_IF_ERROR(CheckPrompt(prompt, layout->layout));
    // Whole chunks only: no header is read for a hint.
    const HeaderTokens no_headers;
    spans = PromptMatcher(&state_, tenant, layout, prompt, &no_headers).DownTree().spans;
    found.asked_tokens = prompt.token_count();
  }
  found.asked_tokens = std::min(found.asked_tokens, target.max_tokens);
  for (const Span& span : spans) {
    const ChunkEntry& entry = state_.catalog[span.chunk];
    // What follows a missing chunk is of no use without it.
    if (!entry.HasData() || found.stored_tokens >= found.asked_tokens) break;
    found.stored_tokens += span.count;
    found.tail = entry.token_count < layout->layout.chunk_tokens;
    if (!found.chunks.empty() && found.chunks.back() == span.chunk) continue;
    found.chunks.push_back(span.chunk);
    if (!entry.InHost()) found.disk_bytes += entry.slot_blocks * kBlockBytes;
  }
  found.stored_tokens = std::min(found.stored_tokens, found.asked_tokens);
  if (found.stored_tokens == 0) return NotFound("nothing of it is stored");
  found.turn.context_tokens = found.asked_tokens;
  found.backwards.assign(found.chunks.rbegin(), found.chunks.rend());
  // A view may show one chunk twice.
  std::sort(found.chunks.begin(), found.chunks.end());
  found.chunks.erase(std::unique(found.chunks.begin(), found.chunks.end()), found.chunks.end());
  return found;
}

// ---- expected uses ---------------------------------------------------------------

Expectations::Changed StoreImpl::TellExpected() {
  return [this](ChunkIndex chunk, int64_t next_use) {
    state_.mu.AssertHeld();
    state_.NotifyExpected(chunk, next_use);
  };
}

Expectations::Changed StoreImpl::TellRetained() {
  return [this](ChunkIndex chunk, int64_t lowest) {
    state_.mu.AssertHeld();
    state_.NotifyKeep(chunk, lowest == kNoExpectedUse ? kPolicyKeep : static_cast<int8_t>(-lowest));
  };
}

std::string StoreImpl::WhyFull(const Expectations& kept, const Expectations::Name& name,
                               const HintedChunks& found) {
  const uint64_t tenants = std::max<uint64_t>(1, state_.registry.tenant_count());
  const uint64_t max_names = kMaxExpectations / tenants;
  const uint64_t max_chunks = kMaxExpectedChunks / tenants;
  const Expectations::Usage usage = kept.UsageOf(name.tenant);
  const Expectations::Entry* before = kept.Find(name);
  const uint64_t replaced = before == nullptr ? 0 : before->chunks.size();
  const char* what = &kept == &retained_ ? "retained" : "expected";
  if (before == nullptr && usage.names >= max_names) {
    return fmt::format("{} sessions and prefixes are {} already, a tenant's limit is {}",
                       usage.names, what, max_names);
  }
  if (usage.links - replaced + found.chunks.size() > max_chunks) {
    return fmt::format("{} chunks are {} already, a tenant's limit is {}", usage.links, what,
                       max_chunks);
  }
  return "";
}

HintAnswer StoreImpl::ExpectUse(const Expectations::Name& name, const HintedChunks& found,
                                Expectations::When when) {
  if (const std::string full = WhyFull(expectations_, name, found); !full.empty())
    return Answer(HintOutcome::kRejected, full);
  const int64_t last = when.times.empty() ? when.next_use : when.times.back();
  when.expires_ns = std::max(state_.NowNs(), last) + kHintGraceNs;
  expectations_.Set(name, std::move(when), found.chunks, TellExpected());
  return PrefetchAnswer(found);
}

HintAnswer StoreImpl::PrefetchAnswer(const HintedChunks& found) {
  HintAnswer answer = PartAnswer(found);
  if (found.disk_bytes == 0) return answer;
  const auto window = static_cast<uint64_t>(static_cast<double>(state_.options.host_bytes) *
                                            state_.options.prefetch_share);
  uint64_t waiting_bytes = 0;
  for (const ChunkIndex chunk : found.chunks) {
    const bool comes = state_.placement.InHost(chunk) || state_.placement.Prefetching(chunk);
    if (!comes) waiting_bytes += state_.catalog[chunk].slot_blocks * kBlockBytes;
  }
  const std::string part = answer.reason.empty() ? "" : answer.reason + "; ";
  if (waiting_bytes == 0) {
    answer.reason = fmt::format("{}{} bytes are on their way from disk", part, found.disk_bytes);
    return answer;
  }
  if (window == 0) {
    return Answer(HintOutcome::kClipped,
                  part + "prefetch_share is 0: it counts for eviction, and is not prefetched");
  }
  const Placement::PrefetchUsage usage = state_.placement.prefetch();
  return Answer(
      HintOutcome::kDeferred,
      fmt::format("{}{} bytes wait on disk; prefetches hold {} of their {} bytes of host "
                  "memory, and what is needed sooner stays",
                  part, waiting_bytes, usage.in_flight_bytes + usage.unused_bytes, window));
}

// ---- single items ----------------------------------------------------------------

HintAnswer StoreImpl::HintExpect(const Expectations::Name& name, const HintedChunks& found,
                                 const HintItem& item) {
  const bool timed = item.expected_in.has_value() || !item.expected_times.empty();
  if (item.stop == StopReason::kUnknown && !timed) {
    return Answer(HintOutcome::kRejected, "neither a stop reason nor a time is given");
  }
  if (item.stop != StopReason::kUnknown) {
    TurnInfo turn = found.turn;
    turn.stop = item.stop;
    state_.NotifyTurn(turn, found.backwards, found.tail);
  }
  if (timed) {
    absl::StatusOr<Expectations::When> when = WhenOf(item, state_.NowNs());
    if (!when.ok()) return Answer(HintOutcome::kRejected, MessageOf(when.status()));
    return ExpectUse(name, found, *std::move(when));
  }
  HintAnswer answer = PartAnswer(found);
  if (answer.reason.empty() && state_.options.policy != "next_use") {
    answer.reason = fmt::format("policy {} does not learn from stop reasons; next_use does",
                                state_.options.policy);
  }
  return answer;
}

HintAnswer StoreImpl::Demote(const Expectations::Name& name, const HintedChunks& found,
                             HintAction action) {
  expectations_.Erase(name, TellExpected());
  const bool drop = action == HintAction::kDropSoon;
  if (drop) retained_.Erase(name, TellRetained());
  if (!drop && !state_.has_disk()) {
    return Answer(HintOutcome::kRejected, "there is no disk tier that would keep it");
  }
  size_t kept = 0;
  for (const ChunkIndex chunk : found.chunks) {
    // What another session shows, or somebody else expects or retains, stays.
    if (state_.catalog[chunk].session_refs > 1 || expectations_.Expects(chunk) ||
        retained_.Expects(chunk)) {
      ++kept;
    } else if (drop) {
      state_.NotifyKeep(chunk, kDropSoonKeep);
    } else {
      state_.Notify(PlacementEvent::Kind::kDemoteWanted, chunk);
    }
  }
  if (kept == 0) return PartAnswer(found);
  return Answer(HintOutcome::kClipped,
                fmt::format("{} of {} chunks stay for others", kept, found.chunks.size()));
}

HintAnswer StoreImpl::Retain(const Expectations::Name& name, const HintedChunks& found,
                             const HintItem& item) {
  if (item.priority < 0) {
    return Answer(HintOutcome::kRejected,
                  fmt::format("priority {}: 0 to {}", item.priority, kMaxRetainPriority));
  }
  if (item.priority == 0) {
    retained_.Erase(name, TellRetained());
    return Answer(HintOutcome::kAccepted);
  }
  if (item.ttl && *item.ttl <= absl::ZeroDuration()) {
    return Answer(HintOutcome::kRejected,
                  fmt::format("ttl {} is not positive", absl::FormatDuration(*item.ttl)));
  }
  if (const std::string full = WhyFull(retained_, name, found); !full.empty())
    return Answer(HintOutcome::kRejected, full);
  const int64_t now = state_.NowNs();
  const int32_t priority = std::min(item.priority, kMaxRetainPriority);
  retained_.Set(name,
                {.next_use = -int64_t{priority},
                 .times = {},
                 .expires_ns = now + InNs(item.ttl.value_or(kFurthestHint))},
                found.chunks, TellRetained());
  if (priority < item.priority) {
    return Answer(HintOutcome::kClipped,
                  fmt::format("priority {} counts as {}", item.priority, kMaxRetainPriority));
  }
  if (!item.target.session.empty()) {
    const Session* session = state_.sessions.Find(name.tenant, item.target.session);
    const int64_t expires_s = session == nullptr ? 0 : session->expires_unix_s();
    const int64_t until_s =
        state_.UnixSeconds() +
        absl::ToInt64Seconds(std::min(item.ttl.value_or(kFurthestHint), kFurthestHint));
    if (item.ttl && expires_s != 0 && expires_s < until_s) {
      return Answer(HintOutcome::kClipped,
                    fmt::format("the session itself ends at {}", UnixTimeText(expires_s)));
    }
  }
  return PartAnswer(found);
}

HintAnswer StoreImpl::HintChunks(TenantNumber tenant, const HintItem& item) {
  absl::MutexLock lock(&state_.mu);
  if (const absl::Status open = CheckOpen(); !open.ok()) return NotFoundAnswer(open);
  ExpireSessions();
  const absl::StatusOr<HintedChunks> found = FindHinted(tenant, item.target);
  if (!found.ok()) return NotFoundAnswer(found.status());
  const HintTarget& target = item.target;
  const Expectations::Name name{static_cast<uint16_t>(tenant), Expectations::Source::kHint,
                                NameOfTarget(target.session, target.prompt(), target.layout)};
  switch (item.action) {
    case HintAction::kPrefetch: {
      absl::StatusOr<Expectations::When> when = WhenOf(item, state_.NowNs());
      if (!when.ok()) return Answer(HintOutcome::kRejected, MessageOf(when.status()));
      return ExpectUse(name, *found, *std::move(when));
    }
    case HintAction::kExpect:
      return HintExpect(name, *found, item);
    case HintAction::kDemote:
    case HintAction::kDropSoon:
      return Demote(name, *found, item.action);
    case HintAction::kRetain:
      return Retain(name, *found, item);
    default: {  // share
      HintAnswer answer = PartAnswer(*found);
      if (answer.reason.empty())
        answer.reason = fmt::format("{} tokens are stored, once for all", found->stored_tokens);
      return answer;
    }
  }
}

HintAnswer StoreImpl::HintSession(TenantNumber tenant, const HintItem& item) {
  const std::string& session = item.target.session;
  if (session.empty()) {
    return Answer(HintOutcome::kRejected, "only sessions can be pinned; retain takes prefixes");
  }
  const bool pin = item.action == HintAction::kPin;
  if (pin && item.ttl) {
    return Answer(HintOutcome::kRejected, "a pin has no end of its own; retain takes a ttl");
  }
  const auto info = SetPinned(tenant, session, pin);
  if (!info.ok()) return NotFoundAnswer(info.status());
  if (!pin || info->restorable_tokens == info->token_count) return Answer(HintOutcome::kAccepted);
  return Answer(HintOutcome::kClipped, fmt::format("{} of {} tokens are stored",
                                                   info->restorable_tokens, info->token_count));
}

// ---- the waiting queue -----------------------------------------------------------

// Who keeps the order keeps the place, so that nothing has to be told of it again; who comes in
// between gets a place in between. `ceiling`: the first place that somebody later has.
HintAnswer StoreImpl::HintWaiting(TenantNumber tenant, const WaitingRequest& waiting,
                                  int64_t ceiling, std::set<std::string>* names,
                                  int64_t* last_place) {
  const absl::StatusOr<HintedChunks> found = FindHinted(tenant, waiting.target);
  if (!found.ok()) return NotFoundAnswer(found.status());
  const HintTarget& target = waiting.target;
  const Expectations::Name name{static_cast<uint16_t>(tenant), Expectations::Source::kQueue,
                                NameOfTarget(target.session, target.prompt(), target.layout)};
  if (names->contains(name.what)) {
    return Answer(HintOutcome::kAccepted, "it is in the queue already, at a sooner place");
  }
  const Expectations::Entry* before = expectations_.Find(name);
  const bool keeps =
      before != nullptr && before->when.next_use > *last_place && before->when.next_use <= ceiling;
  const int64_t room = ceiling == kNoExpectedUse ? 2 * kPlaceNs : ceiling - *last_place;
  const int64_t step = std::clamp<int64_t>(room / 2, 1, kPlaceNs);
  const int64_t place = keeps ? before->when.next_use : *last_place + step;
  HintAnswer answer = ExpectUse(name, *found, {.next_use = place, .times = {}, .expires_ns = 0});
  if (answer.outcome != HintOutcome::kRejected) {
    names->insert(name.what);
    *last_place = place;
  }
  return answer;
}

// For each the first place that the queue before gave to somebody behind it. Returns where the
// queue begins: now, or before the places that stay.
int64_t StoreImpl::OldPlaces(TenantNumber tenant, const std::vector<WaitingRequest>& queue,
                             const std::vector<size_t>& order, std::vector<int64_t>* ceilings) {
  int64_t first = kNoExpectedUse;
  for (size_t i = order.size(); i-- > 0;) {
    (*ceilings)[order[i]] = first;
    const HintTarget& target = queue[order[i]].target;
    const Expectations::Entry* entry =
        expectations_.Find({static_cast<uint16_t>(tenant), Expectations::Source::kQueue,
                            NameOfTarget(target.session, target.prompt(), target.layout)});
    if (entry != nullptr) first = std::min(first, entry->when.next_use);
  }
  return std::min(state_.NowNs(), first) - kPlaceNs;
}

std::vector<HintAnswer> StoreImpl::HintQueue(TenantNumber tenant,
                                             const std::vector<WaitingRequest>& queue) {
  std::vector<HintAnswer> answers(queue.size());
  std::vector<size_t> order(queue.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (queue[a].priority != queue[b].priority) return queue[a].priority > queue[b].priority;
    return queue[a].waited > queue[b].waited;
  });
  std::set<std::string> names;
  std::vector<Expectations::Name> old;
  std::vector<int64_t> ceilings(queue.size(), kNoExpectedUse);
  int64_t last_place = 0;
  {
    absl::MutexLock lock(&state_.mu);
    old = expectations_.QueueOf(static_cast<uint16_t>(tenant));
    // The last place leaves first: a prefetch that is cancelled makes no room for one that will be.
    std::sort(old.begin(), old.end(), [this](const auto& a, const auto& b) {
      state_.mu.AssertHeld();
      return expectations_.Find(a)->when.next_use > expectations_.Find(b)->when.next_use;
    });
    last_place = OldPlaces(tenant, queue, order, &ceilings);
  }
  for (const size_t i : order) {
    // The lock is taken for each, so that a long queue holds up nobody.
    absl::MutexLock lock(&state_.mu);
    const absl::Status open = CheckOpen();
    answers[i] = open.ok() ? HintWaiting(tenant, queue[i], ceilings[i], &names, &last_place)
                           : NotFoundAnswer(open);
  }
  for (const Expectations::Name& name : old) {
    if (names.contains(name.what)) continue;
    absl::MutexLock lock(&state_.mu);
    expectations_.Erase(name, TellExpected());
  }
  return answers;
}

void StoreImpl::FulfilExpectations(TenantNumber tenant, const std::string& session,
                                   const Prompt& prompt, const Fingerprint& layout) {
  if (expectations_.size() == 0) return;
  const auto number = static_cast<uint16_t>(tenant);
  const std::string what = NameOfTarget(session, prompt, layout);
  expectations_.Erase({number, Expectations::Source::kQueue, what}, TellExpected());
  expectations_.Erase({number, Expectations::Source::kHint, what}, TellExpected());
}

// What was said of a session goes on being said of it.
void StoreImpl::RenameHints(uint16_t tenant, const std::string& from, const std::string& to) {
  using Source = Expectations::Source;
  for (const Source source : {Source::kQueue, Source::kHint}) {
    expectations_.Rename({tenant, source, "s" + from}, {tenant, source, "s" + to}, TellExpected());
  }
  retained_.Rename({tenant, Source::kHint, "s" + from}, {tenant, Source::kHint, "s" + to},
                   TellRetained());
}

// ---- the call --------------------------------------------------------------------

HintReply StoreImpl::Hint(TenantNumber tenant, const HintRequest& request) {
  const size_t count =
      request.items.size() + request.speeds.size() + (request.queue ? request.queue->size() : 0);
  if (count > kMaxHintItems) {
    return AnswerAll(request, HintOutcome::kRejected,
                     fmt::format("{} items, the limit is {}", count, kMaxHintItems));
  }
  HintReply reply;
  if (request.queue) reply.queue = HintQueue(tenant, *request.queue);
  for (const EngineSpeed& speed : request.speeds) reply.speeds.push_back(SetSpeed(tenant, speed));
  reply.items.reserve(request.items.size());
  for (const HintItem& item : request.items) {
    reply.items.push_back(IsAboutSession(item.action) ? HintSession(tenant, item)
                                                      : HintChunks(tenant, item));
  }
  return reply;
}

}  // namespace turnkeep
