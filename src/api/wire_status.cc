// The part of wire_messages.h that is about seeing: sessions, tree, status.
#include "api/wire_messages.h"

namespace turnkeep::wire {

void ToWire(const turnkeep::SessionInfo& info, SessionInfo* out) {
  out->set_name(info.name);
  out->set_generation(info.generation);
  out->set_layout(IdBytes(info.layout));
  out->set_model(info.model);
  out->set_token_count(info.token_count);
  out->set_restorable_tokens(info.restorable_tokens);
  out->set_chunk_count(info.chunk_count);
  out->set_kv_bytes(info.kv_bytes);
  out->set_host_bytes(info.host_bytes);
  out->set_disk_bytes(info.disk_bytes);
  out->set_gpu_bytes(info.gpu_bytes);
  out->set_shared_chunks(info.shared_chunks);
  out->set_created_unix_s(info.created_unix_s);
  out->set_last_used_unix_s(info.last_used_unix_s);
  out->set_expires_unix_s(info.expires_unix_s);
  out->set_pinned(info.pinned);
  out->set_truncated(info.truncated);
}

absl::StatusOr<turnkeep::SessionInfo> FromWire(const SessionInfo& message) {
  turnkeep::SessionInfo info;
  info.name = message.name();
  info.generation = message.generation();
  TK_ASSIGN_OR_RETURN(info.layout, FingerprintFromWire(message.layout()));
  info.model = message.model();
  info.token_count = message.token_count();
  info.restorable_tokens = message.restorable_tokens();
  info.chunk_count = message.chunk_count();
  info.kv_bytes = message.kv_bytes();
  info.host_bytes = message.host_bytes();
  info.disk_bytes = message.disk_bytes();
  info.gpu_bytes = message.gpu_bytes();
  info.shared_chunks = message.shared_chunks();
  info.created_unix_s = message.created_unix_s();
  info.last_used_unix_s = message.last_used_unix_s();
  info.expires_unix_s = message.expires_unix_s();
  info.pinned = message.pinned();
  info.truncated = message.truncated();
  return info;
}

void ToWire(const turnkeep::SessionDetail& detail, SessionDetail* out) {
  ToWire(detail.info, out->mutable_info());
  out->set_root(IdBytes(detail.root));
  out->mutable_spans()->Reserve(static_cast<int>(detail.spans.size()));
  for (const turnkeep::SessionSpan& span : detail.spans) {
    SessionSpan* to = out->add_spans();
    to->set_token_begin(span.token_begin);
    to->set_token_count(span.token_count);
    to->set_first_in_chunk(span.first_in_chunk);
    to->set_chunk_token_count(span.chunk_token_count);
    to->set_chunk(IdBytes(span.chunk));
    to->set_stored_position(span.stored_position);
    to->set_slot_bytes(span.slot_bytes);
    to->set_in_host(span.in_host);
    to->set_on_disk(span.on_disk);
    to->set_session_count(span.session_count);
    to->set_pin_count(span.pin_count);
    to->set_missing_reason(span.missing_reason);
    to->set_gpu_engines(span.gpu_engines);
  }
}

absl::StatusOr<turnkeep::SessionDetail> FromWire(const SessionDetail& message) {
  turnkeep::SessionDetail detail;
  TK_ASSIGN_OR_RETURN(detail.info, FromWire(message.info()));
  TK_ASSIGN_OR_RETURN(detail.root, ChunkIdFromWire(message.root()));
  detail.spans.reserve(message.spans_size());
  for (const SessionSpan& from : message.spans()) {
    turnkeep::SessionSpan& span = detail.spans.emplace_back();
    span.token_begin = from.token_begin();
    span.token_count = from.token_count();
    span.first_in_chunk = from.first_in_chunk();
    span.chunk_token_count = from.chunk_token_count();
    TK_ASSIGN_OR_RETURN(span.chunk, ChunkIdFromWire(from.chunk()));
    span.stored_position = from.stored_position();
    span.slot_bytes = from.slot_bytes();
    span.in_host = from.in_host();
    span.on_disk = from.on_disk();
    span.session_count = from.session_count();
    span.pin_count = from.pin_count();
    span.missing_reason = from.missing_reason();
    span.gpu_engines = from.gpu_engines();
  }
  return detail;
}

void ToWire(const turnkeep::TreeNode& node, TreeNode* out) {
  out->set_depth(node.depth);
  out->set_token_begin(node.token_begin);
  out->set_token_count(node.token_count);
  out->set_chunk_count(node.chunk_count);
  out->set_host_bytes(node.host_bytes);
  out->set_disk_bytes(node.disk_bytes);
  out->set_session_count(node.session_count);
  for (const std::string& name : node.ends_here) out->add_ends_here(name);
  out->set_layout(IdBytes(node.layout));
  out->set_first_chunk(IdBytes(node.first_chunk));
}

absl::StatusOr<turnkeep::TreeNode> FromWire(const TreeNode& message) {
  turnkeep::TreeNode node;
  node.depth = message.depth();
  node.token_begin = message.token_begin();
  node.token_count = message.token_count();
  node.chunk_count = message.chunk_count();
  node.host_bytes = message.host_bytes();
  node.disk_bytes = message.disk_bytes();
  node.session_count = message.session_count();
  node.ends_here.assign(message.ends_here().begin(), message.ends_here().end());
  TK_ASSIGN_OR_RETURN(node.layout, FingerprintFromWire(message.layout()));
  TK_ASSIGN_OR_RETURN(node.first_chunk, ChunkIdFromWire(message.first_chunk()));
  return node;
}

void ToWire(const turnkeep::VerifyReport& report, VerifyReport* out) {
  out->set_chunks_checked(report.chunks_checked);
  out->set_bytes_checked(report.bytes_checked);
  out->set_host_copies_damaged(report.host_copies_damaged);
  out->set_disk_copies_damaged(report.disk_copies_damaged);
  out->set_copies_dropped(report.copies_dropped);
  for (const std::string& problem : report.problems) out->add_problems(problem);
}

turnkeep::VerifyReport FromWire(const VerifyReport& message) {
  turnkeep::VerifyReport report{.chunks_checked = message.chunks_checked(),
                                .bytes_checked = message.bytes_checked(),
                                .host_copies_damaged = message.host_copies_damaged(),
                                .disk_copies_damaged = message.disk_copies_damaged(),
                                .copies_dropped = message.copies_dropped()};
  report.problems.assign(message.problems().begin(), message.problems().end());
  return report;
}

namespace {

void TierToWire(const turnkeep::TierStatus& tier, TierStatus* out) {
  out->set_capacity_bytes(tier.capacity_bytes);
  out->set_reserved_bytes(tier.reserved_bytes);
  out->set_used_bytes(tier.used_bytes);
  out->set_pinned_bytes(tier.pinned_bytes);
  out->set_chunk_count(tier.chunk_count);
  out->set_description(tier.description);
}

turnkeep::TierStatus TierFromWire(const TierStatus& message) {
  return {.capacity_bytes = message.capacity_bytes(),
          .reserved_bytes = message.reserved_bytes(),
          .used_bytes = message.used_bytes(),
          .pinned_bytes = message.pinned_bytes(),
          .chunk_count = message.chunk_count(),
          .description = message.description()};
}

}  // namespace

void ToWire(const turnkeep::StoreStatus& status, StoreStatus* out) {
  out->set_version(status.version);
  out->set_durability(status.durability);
  out->set_policy(status.policy);
  out->set_uptime_s(status.uptime_s);
  out->set_session_count(status.session_count);
  out->set_chunk_count(status.chunk_count);
  out->set_open_tickets(status.open_tickets);
  TierToWire(status.host, out->mutable_host());
  TierToWire(status.disk, out->mutable_disk());
  for (const std::string& warning : status.warnings) out->add_warnings(warning);
  for (const turnkeep::NamedCount& count : status.counts) {
    NamedCount* to = out->add_counts();
    to->set_name(count.name);
    to->set_labels(count.labels);
    to->set_help(count.help);
    to->set_value(count.value);
    to->set_monotonic(count.monotonic);
  }
  for (const turnkeep::NamedHistogram& histogram : status.histograms) {
    NamedHistogram* to = out->add_histograms();
    to->set_name(histogram.name);
    to->set_help(histogram.help);
    to->mutable_upper_bounds()->Add(histogram.upper_bounds.begin(), histogram.upper_bounds.end());
    to->mutable_counts()->Add(histogram.counts.begin(), histogram.counts.end());
    to->set_sum(histogram.sum);
  }
}

turnkeep::StoreStatus FromWire(const StoreStatus& message) {
  turnkeep::StoreStatus status;
  status.version = message.version();
  status.durability = message.durability();
  status.policy = message.policy();
  status.uptime_s = message.uptime_s();
  status.session_count = message.session_count();
  status.chunk_count = message.chunk_count();
  status.open_tickets = message.open_tickets();
  status.host = TierFromWire(message.host());
  status.disk = TierFromWire(message.disk());
  status.warnings.assign(message.warnings().begin(), message.warnings().end());
  for (const NamedCount& count : message.counts()) {
    status.counts.push_back({.name = count.name(),
                             .labels = count.labels(),
                             .help = count.help(),
                             .value = count.value(),
                             .monotonic = count.monotonic()});
  }
  for (const NamedHistogram& histogram : message.histograms()) {
    status.histograms.push_back(
        {.name = histogram.name(),
         .help = histogram.help(),
         .upper_bounds = {histogram.upper_bounds().begin(), histogram.upper_bounds().end()},
         .counts = {histogram.counts().begin(), histogram.counts().end()},
         .sum = histogram.sum()});
  }
  return status;
}

}  // namespace turnkeep::wire
