// What edits or shows sessions without moving KV: fork, truncate, rename, drop, pin, time to
// live, list, show.

#include <algorithm>
#include <utility>

#include <absl/synchronization/notification.h>

#include "core/check.h"
#include "core/status.h"
#include "core/units.h"
#include "store/store_impl.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

namespace {

// A structural change is in the index before its caller hears of it.
class Persisted {
 public:
  std::function<void(PersistResult)> Callback() {
    return [shared = shared_](const PersistResult& result) {
      shared->status = result.index;
      shared->done.Notify();
    };
  }
  absl::Status Wait() {
    shared_->done.WaitForNotification();
    return shared_->status;
  }

 private:
  struct Shared {
    absl::Notification done;
    absl::Status status;
  };
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace

// ---- views -----------------------------------------------------------------------

Session* StoreImpl::CreateSession(TenantNumber tenant, const std::string& name,
                                  const LayoutInfo& layout) {
  Session* session =
      state_.sessions.Create(static_cast<uint16_t>(tenant), name, state_.next_session++);
  session->layout = layout.number;
  session->created_unix_s = session->last_used_unix_s = state_.UnixSeconds();
  if (state_.options.default_ttl != absl::InfiniteDuration()) {
    session->ttl_s = std::max<int64_t>(1, absl::ToInt64Seconds(state_.options.default_ttl));
    state_.sessions.UpdateExpiry(session);
  }
  return session;
}

void StoreImpl::SetView(Session* session, std::vector<Span> view, std::string_view reason) {
  const auto same =
      std::mismatch(session->spans.begin(), session->spans.end(), view.begin(), view.end());
  for (auto it = same.second; it != view.end(); ++it)
    state_.AddSessionRef(it->chunk, session->pinned);
  std::vector<Span> dropped(same.first, session->spans.end());
  session->spans = std::move(view);
  session->spans.shrink_to_fit();
  for (const Span& span : dropped) state_.DropSessionRef(span.chunk, session->pinned, reason);
  session->token_count = 0;
  for (const Span& span : session->spans) session->token_count += span.count;
  ++session->generation;
}

std::vector<Span> StoreImpl::Slice(const Session& session, uint64_t begin, uint64_t end) const {
  std::vector<Span> slice;
  uint64_t at = 0;
  for (const Span& span : session.spans) {
    const uint64_t from = std::max(at, begin);
    const uint64_t to = std::min(at + span.count, end);
    if (from < to) {
      slice.push_back({span.chunk, static_cast<uint16_t>(span.first + (from - at)),
                       static_cast<uint16_t>(to - from)});
    }
    at += span.count;
  }
  return slice;
}

void StoreImpl::EraseSession(Session* session, std::string_view reason) {
  FulfilExpectations(session->tenant, session->name, {}, {});
  retained_.Erase({session->tenant, Expectations::Source::kHint, "s" + session->name},
                  TellRetained());
  for (const Span& span : session->spans)
    state_.DropSessionRef(span.chunk, session->pinned, reason);
  state_.sessions.Erase(session);
}

SessionChange StoreImpl::ChangeOf(Session* session, size_t first_changed_span) {
  SessionChange change;
  IndexBatch& batch = change.batch;
  if (writer_->IndexIsBehind(session->number)) first_changed_span = 0;
  change.whole = first_changed_span < kSlicesPerSpanBlock;
  if (change.whole) session->persisted_span_blocks = session->most_span_blocks;
  const auto blocks =
      static_cast<uint32_t>(DivideRoundUp(session->spans.size(), kSlicesPerSpanBlock));
  batch.PutSession({.number = session->number,
                    .name = session->name,
                    .generation = session->generation,
                    .token_count = session->token_count,
                    .created_unix_s = session->created_unix_s,
                    .last_used_unix_s = session->last_used_unix_s,
                    .expires_unix_s = session->expires_unix_s(),
                    .span_blocks = blocks,
                    .tenant = session->tenant,
                    .layout = session->layout,
                    .pinned = session->pinned});
  for (uint32_t block = static_cast<uint32_t>(first_changed_span / kSlicesPerSpanBlock);
       block < blocks; ++block) {
    SpanBlock span_block{.session = session->number, .block_index = block};
    const size_t begin = size_t{block} * kSlicesPerSpanBlock;
    const size_t end = std::min(begin + kSlicesPerSpanBlock, session->spans.size());
    for (size_t i = begin; i < end; ++i) {
      const Span& span = session->spans[i];
      span_block.slices.push_back(
          {.chunk = state_.catalog[span.chunk].id, .first = span.first, .count = span.count});
    }
    batch.PutSpanBlock(span_block);
  }
  if (session->persisted_span_blocks > blocks) {
    batch.DeleteSpanBlocks(session->number, blocks, session->persisted_span_blocks);
  }
  session->persisted_span_blocks = blocks;
  session->most_span_blocks = std::max(session->most_span_blocks, blocks);
  return change;
}

void StoreImpl::PersistSession(Session* session, size_t first_changed_span,
                               std::function<void(PersistResult)> done) {
  if (!state_.has_disk()) return done({.index = absl::OkStatus()});
  std::vector<ChunkIndex> chunks;
  if (state_.options.durability != Durability::kNone) {
    for (const Span& span : session->spans) {
      const ChunkEntry& entry = state_.catalog[span.chunk];
      if (entry.disk.IsNull() && entry.InHost()) chunks.push_back(span.chunk);
    }
  }
  writer_->Persist(session->number, ChangeOf(session, first_changed_span), chunks, std::move(done));
}

void StoreImpl::ExpireSessions() {
  while (Session* session = state_.sessions.NextExpired(state_.UnixSeconds())) {
    ++state_.counters.sessions_expired;
    SessionChange end;
    end.batch.DeleteSession(session->number, session->most_span_blocks);
    const uint64_t number = session->number;
    state_.RememberSession(session->tenant, session->name, "reached the end of its time to live");
    EraseSession(session, "its session's time to live ended");
    writer_->Persist(number, std::move(end), {}, [](const PersistResult&) {});
  }
}

// ---- edits -----------------------------------------------------------------------

absl::StatusOr<SessionInfo> StoreImpl::ForkSession(TenantNumber tenant,
                                                   const ForkRequest& request) {
  TK_RETURN_IF_ERROR(ValidateName("target", request.target));
  Persisted persisted;
  SessionInfo info;
  {
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    TK_ASSIGN_OR_RETURN(const Session* source, SessionOf(tenant, request.source));
    if (state_.sessions.Find(static_cast<uint16_t>(tenant), request.target) != nullptr) {
      return AlreadyExists("fork '{}': target '{}' exists", request.source, request.target);
    }
    const uint64_t tokens = request.token_count.value_or(source->token_count);
    if (tokens > source->token_count) {
      return InvalidArgument("fork '{}': token_count {} is above the session's {}", request.source,
                             tokens, source->token_count);
    }
    if (state_.sessions.size() >= state_.options.max_sessions) {
      return ResourceExhausted("fork '{}': max_sessions = {} is reached", request.source,
                               state_.options.max_sessions);
    }
    std::vector<Span> view = Slice(*source, 0, tokens);
    Session* target =
        CreateSession(tenant, request.target, *state_.registry.LayoutAt(source->layout));
    SetView(target, std::move(view), "");
    info = InfoOf(*target);
    PersistSession(target, 0, persisted.Callback());
  }
  TK_RETURN_IF_ERROR(persisted.Wait());
  return info;
}

absl::StatusOr<SessionInfo> StoreImpl::TruncateSession(TenantNumber tenant,
                                                       const TruncateRequest& request) {
  Persisted persisted;
  SessionInfo info;
  {
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    TK_ASSIGN_OR_RETURN(Session * session, SessionOf(tenant, request.session));
    if (request.expected_generation != 0 && request.expected_generation != session->generation) {
      return FailedPrecondition(
          "truncate '{}': the writer expects generation {}, the session is at {}", request.session,
          request.expected_generation, session->generation);
    }
    if (request.drop_begin >= request.drop_end || request.drop_end > session->token_count) {
      return InvalidArgument(
          "truncate '{}': drop_begin {} and drop_end {} are no range of its {} tokens",
          request.session, request.drop_begin, request.drop_end, session->token_count);
    }
    std::vector<Span> view = Slice(*session, 0, request.drop_begin);
    const std::vector<Span> rest = Slice(*session, request.drop_end, session->token_count);
    const size_t first_changed = view.empty() ? 0 : view.size() - 1;
    view.insert(view.end(), rest.begin(), rest.end());
    SetView(session, std::move(view), "its session was truncated");
    session->last_used_unix_s = state_.UnixSeconds();
    info = InfoOf(*session);
    PersistSession(session, first_changed, persisted.Callback());
  }
  TK_RETURN_IF_ERROR(persisted.Wait());
  return info;
}

absl::StatusOr<SessionInfo> StoreImpl::RenameSession(TenantNumber tenant, const std::string& from,
                                                     const std::string& to) {
  TK_RETURN_IF_ERROR(ValidateName("to", to));
  Persisted persisted;
  SessionInfo info;
  {
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    TK_ASSIGN_OR_RETURN(Session * session, SessionOf(tenant, from));
    if (state_.sessions.Find(static_cast<uint16_t>(tenant), to) != nullptr) {
      return AlreadyExists("rename '{}': '{}' exists", from, to);
    }
    state_.RememberSession(session->tenant, from, "was renamed");
    state_.sessions.Rename(session, to);
    RenameHints(session->tenant, from, to);
    ++session->generation;
    info = InfoOf(*session);
    PersistSession(session, session->spans.size(), persisted.Callback());
  }
  TK_RETURN_IF_ERROR(persisted.Wait());
  return info;
}

absl::Status StoreImpl::DropSession(TenantNumber tenant, const std::string& name) {
  Persisted persisted;
  {
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    TK_ASSIGN_OR_RETURN(Session * session, SessionOf(tenant, name));
    SessionChange end;
    end.batch.DeleteSession(session->number, session->most_span_blocks);
    const uint64_t number = session->number;
    state_.RememberSession(session->tenant, name, "was dropped");
    EraseSession(session, "its session was dropped");
    writer_->Persist(number, std::move(end), {}, persisted.Callback());
  }
  return persisted.Wait();
}

absl::StatusOr<SessionInfo> StoreImpl::SetPinned(TenantNumber tenant, const std::string& name,
                                                 bool pinned) {
  Persisted persisted;
  SessionInfo info;
  {
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    TK_ASSIGN_OR_RETURN(Session * session, SessionOf(tenant, name));
    if (session->pinned == pinned) return InfoOf(*session);
    if (pinned) {
      const SessionInfo before = InfoOf(*session);
      if (!state_.placement.MayPin(Tier::kHost, before.host_bytes) ||
          !state_.placement.MayPin(Tier::kDisk, before.disk_bytes)) {
        return ResourceExhausted(
            "pin '{}': {} bytes in host memory and {} on disk would pass max_pinned_share = {} of "
            "a tier ({} of {} "
            "and {} of {} are pinned)",
            name, before.host_bytes, before.disk_bytes, state_.options.max_pinned_share,
            state_.placement.host().pinned_bytes, state_.placement.host().capacity_bytes,
            state_.placement.disk().pinned_bytes, state_.placement.disk().capacity_bytes);
      }
    }
    for (const Span& span : session->spans) {
      state_.Notify(pinned ? Kind::kPinned : Kind::kUnpinned, span.chunk);
    }
    session->pinned = pinned;
    info = InfoOf(*session);
    PersistSession(session, session->spans.size(), persisted.Callback());
  }
  TK_RETURN_IF_ERROR(persisted.Wait());
  return info;
}

absl::StatusOr<SessionInfo> StoreImpl::SetTtl(TenantNumber tenant, const std::string& name,
                                              absl::Duration ttl) {
  if (ttl <= absl::ZeroDuration()) {
    return InvalidArgument("ttl '{}': {} is not positive", name, absl::FormatDuration(ttl));
  }
  Persisted persisted;
  SessionInfo info;
  {
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    TK_ASSIGN_OR_RETURN(Session * session, SessionOf(tenant, name));
    session->ttl_s =
        ttl == absl::InfiniteDuration() ? 0 : std::max<int64_t>(1, absl::ToInt64Seconds(ttl));
    session->last_used_unix_s = state_.UnixSeconds();
    state_.sessions.UpdateExpiry(session);
    info = InfoOf(*session);
    PersistSession(session, session->spans.size(), persisted.Callback());
  }
  TK_RETURN_IF_ERROR(persisted.Wait());
  return info;
}

// ---- looking ---------------------------------------------------------------------

SessionInfo StoreImpl::InfoOf(const Session& session) {
  const LayoutInfo& layout = *state_.registry.LayoutAt(session.layout);
  SessionInfo info{.name = session.name,
                   .generation = session.generation,
                   .layout = layout.fingerprint,
                   .model = layout.layout.model,
                   .token_count = session.token_count,
                   .chunk_count = session.spans.size(),
                   .created_unix_s = session.created_unix_s,
                   .last_used_unix_s = session.last_used_unix_s,
                   .expires_unix_s = session.expires_unix_s(),
                   .pinned = session.pinned};
  const GpuResidency::Engines engines = gpu_.EnginesOf(session.tenant);
  bool all_so_far = true;
  ChunkIndex previous = kNoChunk;
  for (const Span& span : session.spans) {
    const ChunkEntry& entry = state_.catalog[span.chunk];
    const uint64_t slot_bytes = entry.slot_blocks * kBlockBytes;
    all_so_far = all_so_far && entry.HasData();
    if (all_so_far) info.restorable_tokens += span.count;
    // A truncation may leave two parts of one chunk, side by side.
    const bool again = std::exchange(previous, span.chunk) == span.chunk;
    if (again) --info.chunk_count;
    if (again) continue;
    info.kv_bytes += layout.Geometry(entry.token_count).payload_bytes;
    for (const auto& engine : engines) {
      const auto at = engine->chunks.find(entry.id);
      if (at == engine->chunks.end()) continue;
      info.gpu_bytes += at->second;
      break;
    }
    if (entry.InHost()) info.host_bytes += slot_bytes;
    if (!entry.disk.IsNull()) info.disk_bytes += slot_bytes;
    if (entry.session_refs > 1) ++info.shared_chunks;
    if (span.count != entry.token_count) info.truncated = true;
  }
  const ChunkId root = state_.registry.TenantAt(session.tenant)->hasher.Root(layout.fingerprint);
  if (!session.spans.empty()) {
    const ChunkIndex parent = state_.catalog[session.spans[0].chunk].parent;
    // The parent of a chunk that was lost at a restart is not known.
    if (parent != kNoChunk && state_.catalog[parent].id != root) info.truncated = true;
  }
  return info;
}

absl::StatusOr<SessionInfo> StoreImpl::StatSession(TenantNumber tenant, const std::string& name) {
  absl::MutexLock lock(&state_.mu);
  TK_RETURN_IF_ERROR(CheckOpen());
  ExpireSessions();
  TK_ASSIGN_OR_RETURN(const Session* session, SessionOf(tenant, name));
  return InfoOf(*session);
}

std::vector<SessionInfo> StoreImpl::ListAllSessions(TenantNumber tenant,
                                                    const ListRequest& request) {
  std::vector<SessionInfo> list;
  absl::MutexLock lock(&state_.mu);
  ExpireSessions();
  const SessionTable::ByName& names = state_.sessions.OfTenant(static_cast<uint16_t>(tenant));
  auto it = request.after.empty() ? names.lower_bound(request.name_prefix)
                                  : names.upper_bound(request.after);
  if (!request.after.empty() && request.after < request.name_prefix)
    it = names.lower_bound(request.name_prefix);
  for (; it != names.end() && list.size() < request.limit; ++it) {
    if (it->first.compare(0, request.name_prefix.size(), request.name_prefix) != 0) break;
    list.push_back(InfoOf(*it->second));
  }
  return list;
}

absl::StatusOr<SessionDetail> StoreImpl::ShowSession(TenantNumber tenant, const std::string& name) {
  absl::MutexLock lock(&state_.mu);
  TK_RETURN_IF_ERROR(CheckOpen());
  ExpireSessions();
  TK_ASSIGN_OR_RETURN(const Session* session, SessionOf(tenant, name));
  const LayoutInfo& layout = *state_.registry.LayoutAt(session->layout);
  SessionDetail detail{.info = InfoOf(*session),
                       .root = state_.registry.TenantAt(tenant)->hasher.Root(layout.fingerprint)};
  const GpuResidency::Engines engines = gpu_.EnginesOf(session->tenant);
  uint64_t at = 0;
  for (const Span& span : session->spans) {
    const ChunkEntry& entry = state_.catalog[span.chunk];
    SessionSpan shown{.token_begin = at,
                      .token_count = span.count,
                      .first_in_chunk = span.first,
                      .chunk_token_count = entry.token_count,
                      .chunk = entry.id,
                      .stored_position = uint64_t{entry.position_base} + span.first,
                      .slot_bytes = entry.slot_blocks * kBlockBytes,
                      .in_host = entry.InHost(),
                      .on_disk = !entry.disk.IsNull(),
                      .session_count = entry.session_refs,
                      .pin_count = entry.host_pins + (session->pinned ? 1u : 0u)};
    if (!entry.HasData()) shown.missing_reason = WhyMissing(entry);
    for (const auto& engine : engines) shown.gpu_engines += engine->chunks.contains(entry.id);
    detail.spans.push_back(std::move(shown));
    at += span.count;
  }
  return detail;
}

}  // namespace turnkeep
