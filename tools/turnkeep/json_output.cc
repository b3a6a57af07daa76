#include "json_output.h"

namespace turnkeep {
namespace {

Json ToJson(const SessionSpan& span) {
  Json tiers = Json::array();
  if (span.in_host) tiers.push_back("host");
  if (span.on_disk) tiers.push_back("disk");
  if (span.gpu_engines > 0) tiers.push_back("gpu");
  return {{"token_begin", span.token_begin},
          {"token_count", span.token_count},
          {"first_in_chunk", span.first_in_chunk},
          {"chunk_token_count", span.chunk_token_count},
          {"chunk", span.chunk.Hex()},
          {"stored_position", span.stored_position},
          {"slot_bytes", span.slot_bytes},
          {"tiers", std::move(tiers)},
          {"session_count", span.session_count},
          {"pin_count", span.pin_count},
          {"missing_reason", span.missing_reason}};
}

Json ToJson(const ExplainPart& part) {
  return {{"token_begin", part.token_begin},
          {"token_count", part.token_count},
          {"tier", NameOf(part.tier)},
          {"reason", part.reason}};
}

Json ToJson(const GpuHolder& holder) {
  return {{"engine", holder.engine},           {"pid", holder.pid},
          {"tier", NameOf(Tier::kGpu)},        {"token_count", holder.token_count},
          {"chunk_count", holder.chunk_count}, {"bytes", holder.bytes}};
}

Json ToJson(const NamedCount& count) {
  return {{"name", count.name},
          {"labels", count.labels},
          {"help", count.help},
          {"value", count.value},
          {"monotonic", count.monotonic}};
}

Json ToJson(const NamedHistogram& histogram) {
  return {{"name", histogram.name},
          {"help", histogram.help},
          {"upper_bounds", histogram.upper_bounds},
          {"counts", histogram.counts},
          {"sum", histogram.sum}};
}

// After all that it calls: names of this file are not found later.
template <typename T>
Json ListOf(const std::vector<T>& values) {
  Json list = Json::array();
  for (const T& value : values) list.push_back(ToJson(value));
  return list;
}

}  // namespace

Json ToJson(const SessionInfo& info) {
  return {{"name", info.name},
          {"generation", info.generation},
          {"layout", info.layout.Hex()},
          {"model", info.model},
          {"token_count", info.token_count},
          {"restorable_tokens", info.restorable_tokens},
          {"chunk_count", info.chunk_count},
          {"kv_bytes", info.kv_bytes},
          {"gpu_bytes", info.gpu_bytes},
          {"host_bytes", info.host_bytes},
          {"disk_bytes", info.disk_bytes},
          {"shared_chunks", info.shared_chunks},
          {"created_unix_s", info.created_unix_s},
          {"last_used_unix_s", info.last_used_unix_s},
          {"expires_unix_s", info.expires_unix_s},
          {"pinned", info.pinned},
          {"truncated", info.truncated}};
}

Json ToJson(const SessionDetail& detail) {
  Json json = ToJson(detail.info);
  json["root"] = detail.root.Hex();
  json["spans"] = ListOf(detail.spans);
  return json;
}

Json ToJson(const TreeNode& node) {
  return {{"depth", node.depth},
          {"token_begin", node.token_begin},
          {"token_count", node.token_count},
          {"chunk_count", node.chunk_count},
          {"host_bytes", node.host_bytes},
          {"disk_bytes", node.disk_bytes},
          {"session_count", node.session_count},
          {"ends_here", node.ends_here},
          {"layout", node.layout.Hex()},
          {"first_chunk", node.first_chunk.Hex()}};
}

Json ToJson(const Explanation& explanation) {
  return {{"token_count", explanation.token_count},
          {"restorable_tokens", explanation.restorable_tokens},
          {"host_bytes", explanation.host_bytes},
          {"disk_bytes", explanation.disk_bytes},
          {"predicted_us", explanation.predicted_us},
          {"recompute_us", explanation.recompute_us},
          {"declined_tokens", explanation.declined_tokens},
          {"parts", ListOf(explanation.parts)},
          {"gpu", ListOf(explanation.gpu)},
          {"notes", explanation.notes}};
}

Json ToJson(const VerifyReport& report) {
  return {{"chunks_checked", report.chunks_checked},
          {"bytes_checked", report.bytes_checked},
          {"host_copies_damaged", report.host_copies_damaged},
          {"disk_copies_damaged", report.disk_copies_damaged},
          {"copies_dropped", report.copies_dropped},
          {"problems", report.problems}};
}

Json ToJson(const StoreStatus& status) {
  return {{"version", status.version},
          {"durability", status.durability},
          {"policy", status.policy},
          {"uptime_s", status.uptime_s},
          {"session_count", status.session_count},
          {"chunk_count", status.chunk_count},
          {"open_tickets", status.open_tickets},
          {"host", ToJson(status.host)},
          {"disk", ToJson(status.disk)},
          {"warnings", status.warnings},
          {"counts", ListOf(status.counts)},
          {"histograms", ListOf(status.histograms)}};
}

Json ToJson(const SessionFileInfo& info) {
  return {{"session", info.session},
          {"model", info.model},
          {"layout", info.layout.Hex()},
          {"token_count", info.token_count},
          {"chunk_count", info.chunk_count},
          {"file_bytes", info.file_bytes},
          {"exported_unix_s", info.exported_unix_s},
          {"sha256", info.sha256_hex}};
}

}  // namespace turnkeep
