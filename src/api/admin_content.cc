// The documents of the HTTP admin.
#include <algorithm>
#include <charconv>
#include <map>

#include "api/admin.h"
#include "api/status_json.h"
#include "core/status.h"

namespace turnkeep {

namespace {

constexpr uint32_t kDefaultPage = 1000;
constexpr uint32_t kMaxPage = 10'000;

Json SessionJson(const std::string& tenant, const SessionInfo& info) {
  return {{"tenant", tenant},
          {"name", info.name},
          {"generation", info.generation},
          {"layout", info.layout.Hex()},
          {"model", info.model},
          {"token_count", info.token_count},
          {"restorable_tokens", info.restorable_tokens},
          {"chunk_count", info.chunk_count},
          {"kv_bytes", info.kv_bytes},
          {"host_bytes", info.host_bytes},
          {"disk_bytes", info.disk_bytes},
          {"shared_chunks", info.shared_chunks},
          {"created_unix_s", info.created_unix_s},
          {"last_used_unix_s", info.last_used_unix_s},
          {"expires_unix_s", info.expires_unix_s},
          {"pinned", info.pinned},
          {"truncated", info.truncated}};
}

// The value of two hexadecimal digits, or -1.
int HexByte(std::string_view digits) {
  unsigned value = 0;
  if (digits.size() < 2) return -1;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + 2, value, 16);
  return error == std::errc() && stop == digits.data() + 2 ? static_cast<int>(value) : -1;
}

absl::StatusOr<std::string> PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i] == '+' ? ' ' : text[i];
      continue;
    }
    const int byte = HexByte(text.substr(i + 1, 2));
    if (byte < 0) return InvalidArgument("query: '{}' has a '%' without two digits", text);
    out += static_cast<char>(byte);
    i += 2;
  }
  return out;
}

absl::StatusOr<std::map<std::string, std::string>> ParseQuery(std::string_view query) {
  std::map<std::string, std::string> out;
  while (!query.empty()) {
    const size_t end = std::min(query.find('&'), query.size());
    const std::string_view part = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    const size_t equals = std::min(part.find('='), part.size());
    const std::string key(part.substr(0, equals));
    TK_ASSIGN_OR_RETURN(out[key], PercentDecode(part.substr(std::min(equals + 1, part.size()))));
  }
  return out;
}

struct SessionsQuery {
  std::string tenant;
  ListRequest list;
};

absl::StatusOr<SessionsQuery> ParseSessionsQuery(const std::string& text) {
  SessionsQuery query{.tenant = kDefaultTenant, .list = {.limit = kDefaultPage}};
  TK_ASSIGN_OR_RETURN(const auto parts, ParseQuery(text));
  for (const auto& [key, value] : parts) {
    if (key == "tenant") {
      query.tenant = value;
    } else if (key == "prefix") {
      query.list.name_prefix = value;
    } else if (key == "after") {
      query.list.after = value;
    } else if (key == "limit") {
      const char* end = value.data() + value.size();
      const auto [stop, error] = std::from_chars(value.data(), end, query.list.limit);
      if (error != std::errc() || stop != end || query.list.limit == 0 ||
          query.list.limit > kMaxPage) {
        return InvalidArgument("limit: '{}' is not a number from 1 to {}", value, kMaxPage);
      }
    } else {
      return InvalidArgument("query: unknown key '{}'", key);
    }
  }
  return query;
}

struct ActivityQuery {
  std::string tenant;
  ActivityRequest request;
};

absl::StatusOr<ActivityQuery> ParseActivityQuery(const std::string& text) {
  ActivityQuery query{.tenant = kDefaultTenant, .request = {}};
  TK_ASSIGN_OR_RETURN(const auto parts, ParseQuery(text));
  for (const auto& [key, value] : parts) {
    if (key == "tenant") {
      query.tenant = value;
      continue;
    }
    if (key != "after" && key != "limit") return InvalidArgument("query: unknown key '{}'", key);
    uint64_t number = 0;
    const char* end = value.data() + value.size();
    const auto [stop, error] = std::from_chars(value.data(), end, number);
    if (error != std::errc() || stop != end || (key == "limit" && number > kMaxActivity)) {
      return InvalidArgument("{}: '{}' is not a number, or above {}", key, value, kMaxActivity);
    }
    if (key == "after") query.request.after = number;
    if (key == "limit") query.request.limit = static_cast<uint32_t>(number);
  }
  return query;
}

// Its number; opening a tenant that does not exist would create it.
absl::StatusOr<TenantNumber> ExistingTenant(Store& store, const std::string& tenant) {
  const std::vector<std::string> tenants = store.ListTenants();
  if (std::find(tenants.begin(), tenants.end(), tenant) == tenants.end()) {
    return NotFound("tenant: '{}' does not exist", tenant);
  }
  return store.OpenTenant(tenant);
}

AdminAnswer TenantError(const absl::Status& status) {
  return ErrorAnswer(absl::IsNotFound(status) ? 404 : 503, MessageOf(status));
}

}  // namespace

AdminAnswer ActivityAnswer(Store& store, const std::string& text) {
  const auto query = ParseActivityQuery(text);
  if (!query.ok()) return ErrorAnswer(400, MessageOf(query.status()));
  const auto number = ExistingTenant(store, query->tenant);
  if (!number.ok()) return TenantError(number.status());
  return {.body = Dump(ToJson(store.GetActivity(*number, query->request)))};
}

AdminAnswer ErrorAnswer(unsigned status, const std::string& message) {
  return {.status = status, .body = Dump({{"error", message}})};
}

AdminAnswer StatusAnswer(Store& store) {
  const StoreStatus status = store.GetStatus();
  Json counts = Json::array();
  for (const NamedCount& count : status.counts) {
    counts.push_back({{"name", count.name}, {"labels", count.labels}, {"value", count.value}});
  }
  const Json json = {{"version", status.version},
                     {"durability", status.durability},
                     {"policy", status.policy},
                     {"uptime_s", status.uptime_s},
                     {"session_count", status.session_count},
                     {"chunk_count", status.chunk_count},
                     {"open_tickets", status.open_tickets},
                     {"tenants", store.ListTenants()},
                     {"host", ToJson(status.host)},
                     {"disk", ToJson(status.disk)},
                     {"warnings", status.warnings},
                     {"counts", counts}};
  return {.body = Dump(json)};
}

AdminAnswer SessionsAnswer(Store& store, const std::string& text) {
  const auto query = ParseSessionsQuery(text);
  if (!query.ok()) return ErrorAnswer(400, MessageOf(query.status()));
  const auto number = ExistingTenant(store, query->tenant);
  if (!number.ok()) return TenantError(number.status());
  const std::vector<SessionInfo> sessions = store.ListAllSessions(*number, query->list);
  Json list = Json::array();
  for (const SessionInfo& info : sessions) list.push_back(SessionJson(query->tenant, info));
  Json json = {{"tenant", query->tenant}, {"sessions", list}};
  if (sessions.size() == query->list.limit) json["next"] = sessions.back().name;
  return {.body = Dump(json)};
}

}  // namespace turnkeep
