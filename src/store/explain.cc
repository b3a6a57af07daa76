// Nothing is hidden: what a restore would find and why the rest is missing, and the prefix
// tree that sessions share.

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "core/units.h"
#include "store/store_impl.h"

namespace turnkeep {

namespace {

void AddPart(Explanation* out, uint64_t tokens, Tier tier, const std::string& reason) {
  if (tokens == 0) return;
  if (!out->parts.empty() && out->parts.back().tier == tier && out->parts.back().reason == reason) {
    out->parts.back().token_count += tokens;
    return;
  }
  const uint64_t begin =
      out->parts.empty() ? 0 : out->parts.back().token_begin + out->parts.back().token_count;
  out->parts.push_back(
      {.token_begin = begin, .token_count = tokens, .tier = tier, .reason = reason});
}

}  // namespace

// The decision that took the last copy, while it is remembered.
const Decision* StoreImpl::DecisionOf(const ChunkEntry& entry) const {
  const bool evicted = entry.missing_reason == MissingReason::kEvictedForRoom ||
                       entry.missing_reason == MissingReason::kEvictedNoDiskTier ||
                       entry.missing_reason == MissingReason::kEvictedDiskFull ||
                       entry.missing_reason == MissingReason::kDiskWriteFailed;
  const Decision* decision = evicted ? state_.decisions.LastEviction(entry.id) : nullptr;
  const bool the_last = decision != nullptr && decision->last_copy &&
                        decision->unix_s == int64_t{entry.missing_since_unix_s};
  return the_last ? decision : nullptr;
}

std::string StoreImpl::WhyMissing(const ChunkEntry& entry) const {
  if (entry.host_damaged && !entry.disk.IsNull())
    return "its damaged host copy is still in use by a restore";
  if (entry.missing_reason == MissingReason::kNeverSaved)
    return std::string(NameOf(entry.missing_reason));
  return fmt::format("{} (policy {}, {})", NameOf(entry.missing_reason), state_.options.policy,
                     UnixTimeText(entry.missing_since_unix_s));
}

void StoreImpl::ExplainSpans(const std::vector<Span>& spans, const Tenant& tenant,
                             const LayoutInfo& layout, Explanation* out) {
  const Admission::Verdict verdict = JudgeSpans(tenant.number, layout, spans, {});
  bool restorable = true;
  std::string alike;  // why the chunk before is missing, without the chunk's own numbers
  for (const Span& span : spans) {
    const ChunkEntry& entry = state_.catalog[span.chunk];
    const Tier tier = entry.InHost()                                 ? Tier::kHost
                      : !entry.disk.IsNull() && entry.host.is_null() ? Tier::kDisk
                                                                     : Tier::kNone;
    if (tier == Tier::kNone) {
      restorable = false;
      const std::string why = WhyMissing(entry);
      const Decision* decision = DecisionOf(entry);
      if (std::exchange(alike, why) == why) {
        out->parts.back().token_count += span.count;
      } else if (decision != nullptr) {
        AddPart(out, span.count, tier,
                fmt::format("{}; {}", why, WhyOf(*decision, state_.options.policy)));
      } else {
        AddPart(out, span.count, tier, why);
      }
      continue;
    }
    alike.clear();
    const bool declined = verdict.declined > 0 && out->restorable_tokens >= verdict.tokens;
    AddPart(out, span.count, tier,
            !restorable ? "stored, but of no use while tokens before it are missing"
            : declined  ? "stored, but declined: prefilling it takes less time than loading it"
                        : "");
    if (!restorable) continue;
    out->restorable_tokens += span.count;
    const uint64_t bytes = layout.Geometry(entry.token_count).payload_bytes;
    (tier == Tier::kHost ? out->host_bytes : out->disk_bytes) += bytes;
  }
  Predict(layout, verdict, out);
}

void StoreImpl::ExplainGpu(uint32_t tenant, const std::vector<Span>& spans,
                           Explanation* out) const {
  for (const auto& engine : gpu_.EnginesOf(tenant)) {
    GpuHolder holder{.engine = engine->name, .pid = engine->pid};
    ChunkIndex previous = kNoChunk;
    for (const Span& span : spans) {
      const auto at = engine->chunks.find(state_.catalog[span.chunk].id);
      if (at == engine->chunks.end()) continue;
      holder.token_count += span.count;
      // A truncation may leave two parts of one chunk, side by side.
      if (std::exchange(previous, span.chunk) == span.chunk) continue;
      ++holder.chunk_count;
      holder.bytes += at->second;
    }
    if (holder.chunk_count > 0) out->gpu.push_back(std::move(holder));
  }
}

void StoreImpl::ExplainNeverSaved(const Tenant& tenant, const LayoutInfo& layout,
                                  const Prompt& prompt, const PromptMatch& match,
                                  Explanation* out) {
  const uint64_t left = prompt.token_count() - match.token_count;
  if (left == 0) return;
  // The chunk that would come next: was it there once?
  const ChunkId parent = BindingOf(state_, tenant, layout, match.spans);
  const auto count = static_cast<uint32_t>(std::min<uint64_t>(left, layout.layout.chunk_tokens));
  const PromptMatcher matcher(&state_, &tenant, &layout, prompt, nullptr);
  const auto id = matcher.IdAt(parent, match.token_count, count);
  const Forgotten* forgotten = id.has_value() ? state_.FindForgotten(*id) : nullptr;
  if (forgotten != nullptr && (!id.has_value() || state_.catalog.Find(*id) == kNoChunk)) {
    AddPart(out, left, Tier::kNone,
            fmt::format("{} ({})", forgotten->reason, UnixTimeText(forgotten->unix_s)));
    return;
  }
  AddPart(out, left, Tier::kNone, match.stop_reason.empty() ? "never saved" : match.stop_reason);
  // Or is it there under another layout?
  for (const auto& other : state_.registry.layouts()) {
    if (!other || other.get() == &layout || prompt.hashed()) continue;
    const HeaderTokens none;
    const PromptMatch there =
        PromptMatcher(&state_, &tenant, other.get(), prompt, &none).DownTree();
    if (there.token_count <= match.token_count) continue;
    const auto differences = DiffLayouts(layout.layout, other->layout, 4);
    std::string fields;
    for (const LayoutDifference& d : differences) {
      fields += fmt::format("{}{} ({} asked for, {} stored)", fields.empty() ? "" : ", ", d.field,
                            d.left, d.right);
    }
    out->notes.push_back(fmt::format("{} tokens are stored under layout {}, which differs in {}",
                                     there.token_count, other->fingerprint.ShortHex(), fields));
  }
}

absl::StatusOr<Explanation> StoreImpl::Explain(TenantNumber tenant_number,
                                               const ExplainRequest& request) {
  absl::MutexLock lock(&state_.mu);
  TK_RETURN_IF_ERROR(CheckOpen());
  ExpireSessions();
  TK_ASSIGN_OR_RETURN(const Tenant* tenant, TenantOf(tenant_number));
  const bool by_prompt = request.prompt.token_count() > 0;
  if (request.session.empty() && !by_prompt)
    return InvalidArgument("explain: neither session nor prompt is given");
  Explanation out;
  const LayoutInfo* layout = nullptr;
  if (!request.layout.IsZero()) {
    TK_ASSIGN_OR_RETURN(layout, LayoutOf(request.layout));
  }
  if (!request.session.empty()) {
    TK_ASSIGN_OR_RETURN(const Session* session, SessionOf(tenant_number, request.session));
    const LayoutInfo* stored = state_.registry.LayoutAt(session->layout);
    if (layout == nullptr) layout = stored;
    if (layout != stored) {
      for (const LayoutDifference& d : DiffLayouts(layout->layout, stored->layout)) {
        out.notes.push_back(
            fmt::format("the session was saved under another layout: {} is {} here and {} there",
                        d.field, d.left, d.right));
      }
      out.token_count = by_prompt ? request.prompt.token_count() : session->token_count;
      AddPart(&out, out.token_count, Tier::kNone, "saved under another layout");
      return out;
    }
    if (!by_prompt) {
      out.token_count = session->token_count;
      ExplainSpans(session->spans, *tenant, *layout, &out);
      ExplainGpu(tenant->number, session->spans, &out);
    }
  }
  if (by_prompt) TK_RETURN_IF_ERROR(ExplainPrompt(*tenant, request, layout, &out));
  return out;
}

// With `layout` null: under the layout that has most of the prompt.
absl::Status StoreImpl::ExplainPrompt(const Tenant& tenant, const ExplainRequest& request,
                                      const LayoutInfo* layout, Explanation* out) {
  std::vector<const LayoutInfo*> candidates = {layout};
  if (layout == nullptr) {
    candidates.clear();
    for (const auto& known : state_.registry.layouts()) {
      if (known && CheckPrompt(request.prompt, known->layout).ok())
        candidates.push_back(known.get());
    }
  }
  out->token_count = request.prompt.token_count();
  if (candidates.empty()) {
    AddPart(out, out->token_count, Tier::kNone,
            "no layout is registered, so nothing was ever saved");
    return absl::OkStatus();
  }
  PromptMatch best;
  const LayoutInfo* best_layout = nullptr;
  for (const LayoutInfo* candidate : candidates) {
    TK_RETURN_IF_ERROR(CheckPrompt(request.prompt, candidate->layout));
    PromptMatch found = MatchWithHeaders([&](const HeaderTokens& headers) {
      state_.mu.AssertHeld();
      PromptMatcher matcher(&state_, &tenant, candidate, request.prompt, &headers);
      const Session* session =
          request.session.empty() ? nullptr : state_.sessions.Find(tenant.number, request.session);
      return session != nullptr ? matcher.AlongSession(*session) : matcher.DownTree();
    });
    if (best_layout == nullptr || found.token_count > best.token_count) {
      best = std::move(found);
      best_layout = candidate;
    }
  }
  ExplainSpans(best.spans, tenant, *best_layout, out);
  ExplainGpu(tenant.number, best.spans, out);
  ExplainNeverSaved(tenant, *best_layout, request.prompt, best, out);
  return absl::OkStatus();
}

// ---- tree ------------------------------------------------------------------------

void StoreImpl::AddRun(ChunkIndex first, uint32_t depth, uint64_t token_begin, const EndsAt& ends,
                       std::vector<TreeNode>* out, std::vector<PendingRun>* pending) {
  constexpr size_t kMaxNames = 8;
  TreeNode node{.depth = depth, .token_begin = token_begin};
  const ChunkEntry& head = state_.catalog[first];
  node.first_chunk = head.id;
  node.layout = state_.registry.LayoutAt(head.layout)->fingerprint;
  node.session_count = head.session_refs;
  ChunkIndex chunk = first;
  for (;;) {
    const ChunkEntry& entry = state_.catalog[chunk];
    node.token_count += entry.token_count;
    if (entry.token_count > 0) ++node.chunk_count;
    const uint64_t slot_bytes = entry.slot_blocks * kBlockBytes;
    if (entry.InHost()) node.host_bytes += slot_bytes;
    if (!entry.disk.IsNull()) node.disk_bytes += slot_bytes;
    const auto ending = ends.find(chunk);
    if (ending != ends.end()) {
      for (const std::string* name : ending->second) {
        if (node.ends_here.size() < kMaxNames) node.ends_here.push_back(*name);
      }
    }
    const ChunkIndex child = entry.first_child;
    const bool goes_on = child != kNoChunk && state_.catalog[child].next_sibling == kNoChunk &&
                         ending == ends.end() &&
                         state_.catalog[child].session_refs == entry.session_refs;
    if (!goes_on) break;
    chunk = child;
  }
  for (ChunkIndex child = state_.catalog[chunk].first_child; child != kNoChunk;
       child = state_.catalog[child].next_sibling) {
    pending->push_back({child, depth + 1, token_begin + node.token_count});
  }
  out->push_back(std::move(node));
}

absl::StatusOr<std::vector<TreeNode>> StoreImpl::Tree(TenantNumber tenant_number,
                                                      const TreeRequest& request) {
  if (request.max_nodes == 0) return InvalidArgument("tree: max_nodes is 0");
  absl::MutexLock lock(&state_.mu);
  TK_RETURN_IF_ERROR(CheckOpen());
  ExpireSessions();
  TK_ASSIGN_OR_RETURN(const Tenant* tenant, TenantOf(tenant_number));
  EndsAt ends;
  for (const auto& [name, session] : state_.sessions.OfTenant(tenant->number)) {
    if (!session->spans.empty()) ends[session->spans.back().chunk].push_back(&name);
  }
  // Roots: plain contexts begin at a layout's root, truncated ones at a view.
  std::vector<PendingRun> pending;
  for (ChunkIndex i = state_.catalog.end(); i-- > 0;) {
    const ChunkEntry& entry = state_.catalog[i];
    if (!entry.in_use || entry.tenant != tenant->number || entry.parent != kNoChunk) continue;
    if (entry.token_count > 0) {
      pending.push_back({i, 0, 0});
      continue;
    }
    for (ChunkIndex child = entry.first_child; child != kNoChunk;
         child = state_.catalog[child].next_sibling) {
      pending.push_back({child, 0, 0});
    }
  }
  std::vector<TreeNode> nodes;
  while (!pending.empty() && nodes.size() < request.max_nodes) {
    const PendingRun run = pending.back();
    pending.pop_back();
    AddRun(run.first, run.depth, run.token_begin, ends, &nodes, &pending);
  }
  return nodes;
}

}  // namespace turnkeep
