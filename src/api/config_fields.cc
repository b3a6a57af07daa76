#include "api/config_fields.h"

#include <charconv>

#include "api/quantities.h"
#include "core/status.h"

namespace turnkeep::config_internal {

namespace {

constexpr double kTiB = 1024.0 * kGiB;

void AddListenFields(DaemonConfig& c, std::vector<Field>& out) {
  out.push_back({"listen.socket", "Unix socket for clients; empty: <dir>/turnkeep.sock",
                 &c.server.socket_path});
  out.push_back({"listen.tcp", "loopback address for clients, e.g. 127.0.0.1:7411; empty: none",
                 &c.server.tcp_address});
  out.push_back({"listen.admin_socket",
                 "Unix socket of the HTTP admin; empty: <dir>/admin.sock; none: no socket",
                 &c.server.admin_socket_path});
  out.push_back({"listen.admin_tcp", "loopback address of the HTTP admin; empty: none",
                 &c.server.admin_address});
}

void AddStoreFields(DaemonConfig& c, std::vector<Field>& out) {
  StoreOptions& s = c.store;
  out.push_back({"store.data_dir",
                 "folder of the disk tier; empty: <dir>/data; none: host memory only, nothing "
                 "survives the daemon",
                 &s.data_dir});
  out.push_back({"store.host_bytes", "hard cap of the host tier", Bytes{&s.host_bytes}, 1.0 * kMiB,
                 1024 * kTiB});
  out.push_back({"store.disk_bytes", "hard cap of the disk tier's extent files",
                 Bytes{&s.disk_bytes}, 1.0 * kMiB, 1024 * 1024 * kTiB});
  out.push_back({"store.host_segment_bytes", "unit in which host memory is taken",
                 Bytes{&s.host_segment_bytes}, 64.0 * kKiB, 64.0 * kGiB});
  out.push_back({"store.extent_file_bytes", "size of one extent file", Bytes{&s.extent_file_bytes},
                 1.0 * kMiB, 64.0 * kGiB});
  out.push_back({"store.huge_pages", "back the host tier with huge pages", &s.huge_pages});
  out.push_back(
      {"store.direct_io", "bypass the page cache where the file system can", &s.direct_io});
  out.push_back({"store.io_uring", "use io_uring where the kernel has it", &s.io_uring});
  out.push_back({"store.io_depth", "disk operations in flight", &s.io_depth, 1, kMaxIoQueueDepth});
  out.push_back({"store.disk_write_bytes_per_day", "write budget of the drive; 0: none",
                 Bytes{&s.disk_write_bytes_per_day}, 0, 1024 * 1024 * kTiB});
  out.push_back({"store.durability",
                 "when a commit returns: none (in host memory), write (survives the process), "
                 "sync (survives a power loss)",
                 &s.durability});
  out.push_back({"store.policy", "eviction policy", &s.policy});
  out.push_back({"store.high_watermark", "share of a tier at which eviction starts",
                 &s.high_watermark, 0.01, 1});
  out.push_back({"store.low_watermark", "share of a tier at which eviction stops", &s.low_watermark,
                 0.01, 1});
  out.push_back({"store.max_pinned_share", "share of a tier that pinned sessions may hold",
                 &s.max_pinned_share, 0, 1});
  out.push_back({"store.prefetch_share", "share of the host tier that hinted prefetches may hold",
                 &s.prefetch_share, 0, 1});
  out.push_back({"store.prefetch_bytes_per_second",
                 "what prefetches may read from disk; 0: no bound",
                 Bytes{&s.prefetch_bytes_per_second}, 0, 1024 * kGiB});
  out.push_back(
      {"store.max_sessions", "sessions of all tenants", &s.max_sessions, 1, kMaxSessions});
  out.push_back(
      {"store.default_ttl", "sessions are dropped so long after their last use", &s.default_ttl});
}

void AddLimitFields(DaemonConfig& c, std::vector<Field>& out) {
  ServerOptions& s = c.server;
  out.push_back(
      {"limits.connections", "client connections", &s.max_connections, 1, kMaxConnections});
  out.push_back({"limits.tickets_per_connection", "open saves and restores of one connection",
                 &s.max_tickets_per_connection, 1, kMaxTicketsPerConnection});
  out.push_back({"limits.outbound_queue_bytes",
                 "answers that a client may leave unread before it is disconnected",
                 Bytes{&s.max_outbound_bytes}, 64.0 * kKiB, kMaxOutboundQueueBytes});
  out.push_back(
      {"limits.worker_threads", "threads for calls that block", &s.worker_threads, 1, 256});
  out.push_back({"limits.queued_calls", "calls that may wait for a worker thread",
                 &s.max_queued_calls, 1, 65536});
  out.push_back({"limits.queued_call_bytes",
                 "what the calls that wait for a worker thread may hold",
                 Bytes{&s.max_queued_bytes}, 2.0 * kMaxFrameBytes, 1024 * kGiB});
  out.push_back({"limits.admin_connections", "connections of the HTTP admin",
                 &s.max_admin_connections, 1, 1024});
  out.push_back({"limits.busy_poll_us",
                 "how long the daemon looks for the next request before it sleeps; 0: not at all",
                 &s.busy_poll_us, 0, kMaxBusyPollMicros});
  out.push_back({"timeouts.hello", "for a new connection to introduce itself", &s.hello_timeout});
  out.push_back({"timeouts.admin", "for one HTTP admin request", &s.admin_timeout});
  out.push_back(
      {"timeouts.drain", "at SIGTERM, for running saves and restores to finish", &c.drain_timeout});
  out.push_back({"timeouts.flush", "at SIGTERM, for writing what is only in host memory to disk",
                 &c.flush_timeout});
  out.push_back({"log.level", "trace, debug, info, warn, error or off", &c.log_level});
  out.push_back({"log.format", "text or json, one line an event", &c.log_format});
  out.push_back({"log.file", "appended to; empty: standard error", &c.log_file});
}

absl::Status CheckRange(const Field& field, double value, const std::string& text, bool is_size) {
  if (value >= field.min && value <= field.max) return absl::OkStatus();
  const auto show = [&](double v) {
    return is_size ? BytesText(static_cast<uint64_t>(v)) : fmt::format("{}", v);
  };
  return InvalidArgument("'{}' is outside {} to {}", text, show(field.min), show(field.max));
}

template <typename Number>
absl::Status AssignNumber(const Field& field, const std::string& text, Number* out) {
  Number number{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end) return InvalidArgument("'{}' is not a number", text);
  TK_RETURN_IF_ERROR(CheckRange(field, static_cast<double>(number), text, false));
  *out = number;
  return absl::OkStatus();
}

struct Assigner {
  const Field& field;
  const std::string& text;

  absl::Status operator()(std::string* out) const {
    *out = text;
    return absl::OkStatus();
  }
  absl::Status operator()(Bytes out) const {
    TK_ASSIGN_OR_RETURN(const uint64_t bytes, ParseBytes(text));
    TK_RETURN_IF_ERROR(CheckRange(field, static_cast<double>(bytes), text, true));
    *out.value = bytes;
    return absl::OkStatus();
  }
  absl::Status operator()(uint32_t* out) const { return AssignNumber(field, text, out); }
  absl::Status operator()(double* out) const { return AssignNumber(field, text, out); }
  absl::Status operator()(bool* out) const {
    if (text != "true" && text != "false") {
      return InvalidArgument("'{}' is neither true nor false", text);
    }
    *out = text == "true";
    return absl::OkStatus();
  }
  absl::Status operator()(absl::Duration* out) const {
    TK_ASSIGN_OR_RETURN(*out, ParseDuration(text));
    return absl::OkStatus();
  }
  absl::Status operator()(Durability* out) const {
    TK_ASSIGN_OR_RETURN(*out, DurabilityFromName(text));
    return absl::OkStatus();
  }
};

struct Printer {
  std::string operator()(const std::string* v) const { return TomlQuote(*v); }
  std::string operator()(Bytes v) const { return TomlQuote(BytesText(*v.value)); }
  std::string operator()(const uint32_t* v) const { return fmt::format("{}", *v); }
  std::string operator()(const double* v) const {
    const std::string text = fmt::format("{}", *v);
    return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
  }
  std::string operator()(const bool* v) const { return *v ? "true" : "false"; }
  std::string operator()(const absl::Duration* v) const { return TomlQuote(DurationText(*v)); }
  std::string operator()(const Durability* v) const { return TomlQuote(std::string(NameOf(*v))); }
};

}  // namespace

std::vector<Field> FieldsOf(DaemonConfig& config) {
  std::vector<Field> fields;
  fields.push_back({"dir", "folder of everything that is not said below", &config.dir});
  AddListenFields(config, fields);
  AddStoreFields(config, fields);
  AddLimitFields(config, fields);
  return fields;
}

absl::Status Assign(const Field& field, const std::string& text) {
  return std::visit(Assigner{field, text}, field.target);
}

std::string TomlValue(const Field& field) { return std::visit(Printer{}, field.target); }

std::string TomlQuote(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      out += fmt::format("\\u{:04X}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace turnkeep::config_internal
