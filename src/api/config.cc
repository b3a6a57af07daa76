#include "api/config.h"

#include <sys/stat.h>

#include <charconv>
#include <fstream>
#include <set>
#include <sstream>

#include <toml++/toml.h>

#include "api/config_fields.h"
#include "api/paths.h"
#include "core/ids.h"
#include "core/status.h"

namespace turnkeep {

namespace {

using config_internal::Assign;
using config_internal::Field;
using config_internal::FieldsOf;

// Reads whole files of at most this size.
constexpr size_t kMaxConfigBytes = 1 * kMiB;

absl::StatusOr<std::string> ReadWholeFile(const std::string& what, const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return ErrnoStatus(errno, fmt::format("open {} {}", what, path));
  std::string text(kMaxConfigBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return Unavailable("read {} {}", what, path);
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kMaxConfigBytes) {
    return InvalidArgument("{} {}: more than {} bytes", what, path, kMaxConfigBytes);
  }
  return text;
}

// A file with a secret in it must be the owner's alone.
absl::Status CheckPrivate(const std::string& what, const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if ((info.st_mode & 077) != 0) {
    return InvalidArgument(
        "{}: {} has mode {:04o}; with a token in it, others must not read it "
        "(chmod 600)",
        what, path, info.st_mode & 07777);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  TK_RETURN_IF_ERROR(CheckPrivate("token_file", path));
  TK_ASSIGN_OR_RETURN(std::string token, ReadWholeFile("token_file", path));
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r')) token.pop_back();
  return token;
}

// Scalars as the text that a flag would have.
std::optional<std::string> TextOf(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return fmt::format("{}", number->get());
  if (const auto* number = node.as_floating_point()) return fmt::format("{}", number->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  return std::nullopt;
}

class FileLoader {
 public:
  FileLoader(const std::string& path, DaemonConfig& config)
      : path_(path), config_(config), fields_(FieldsOf(config)) {}

  absl::Status Load() {
    TK_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile("configuration", path_));
    toml::table table;
    try {
      table = toml::parse(text, path_);
    } catch (const toml::parse_error& error) {
      return InvalidArgument("{}:{}: {}", path_, error.source().begin.line, error.description());
    }
    return LoadTable(table, "");
  }

 private:
  template <typename... Args>
  absl::Status At(const toml::node& node, fmt::format_string<Args...> format, Args&&... args) {
    return InvalidArgument("{}:{}: {}", path_, node.source().begin.line,
                           fmt::format(format, std::forward<Args>(args)...));
  }

  bool IsSection(const std::string& name) const {
    for (const Field& field : fields_) {
      if (field.name.starts_with(name + ".")) return true;
    }
    return false;
  }

  absl::Status LoadTable(const toml::table& table, const std::string& prefix) {
    for (const auto& [key, node] : table) {
      const std::string name = prefix + std::string(key.str());
      if (name == "tenant") {
        TK_RETURN_IF_ERROR(LoadTenants(node));
      } else if (node.is_table() && IsSection(name)) {
        TK_RETURN_IF_ERROR(LoadTable(*node.as_table(), name + "."));
      } else {
        TK_RETURN_IF_ERROR(LoadValue(name, node));
      }
    }
    return absl::OkStatus();
  }

  absl::Status LoadValue(const std::string& name, const toml::node& node) {
    for (const Field& field : fields_) {
      if (field.name != name) continue;
      const std::optional<std::string> text = TextOf(node);
      if (!text) return At(node, "{}: must be a single value", name);
      const absl::Status status = Assign(field, *text);
      return status.ok() ? status : At(node, "{}: {}", name, MessageOf(status));
    }
    return At(node, "{}: unknown key", name);
  }

  absl::Status LoadTenants(const toml::node& node) {
    const toml::array* list = node.as_array();
    if (list == nullptr) return At(node, "tenant: must be written as [[tenant]]");
    for (const toml::node& entry : *list) {
      const toml::table* table = entry.as_table();
      if (table == nullptr) return At(entry, "tenant: must be written as [[tenant]]");
      TK_RETURN_IF_ERROR(LoadTenant(*table));
    }
    return absl::OkStatus();
  }

  absl::Status LoadTenant(const toml::table& table) {
    TenantRule rule;
    for (const auto& [key, node] : table) {
      const std::string name(key.str());
      const auto* text = node.as_string();
      if (name == "uids") {
        TK_RETURN_IF_ERROR(LoadUids(node, rule));
      } else if (name != "name" && name != "token" && name != "token_file") {
        return At(node, "tenant.{}: unknown key", name);
      } else if (text == nullptr) {
        return At(node, "tenant.{}: must be a string", name);
      } else if (name == "name") {
        rule.name = text->get();
      } else if (name == "token") {
        const absl::Status status = CheckPrivate("tenant.token", path_);
        if (!status.ok()) return At(node, "{}", MessageOf(status));
        rule.token = text->get();
      } else {
        auto token = ReadToken(text->get());
        if (!token.ok()) return At(node, "tenant.token_file: {}", MessageOf(token.status()));
        rule.token = *token;
      }
    }
    if (rule.name.empty()) return At(table, "tenant.name: missing");
    config_.server.tenants.push_back(std::move(rule));
    return absl::OkStatus();
  }

  absl::Status LoadUids(const toml::node& node, TenantRule& rule) {
    const toml::array* list = node.as_array();
    if (list == nullptr) return At(node, "tenant.uids: must be a list of user ids");
    for (const toml::node& entry : *list) {
      const auto* uid = entry.as_integer();
      if (uid == nullptr || uid->get() < 0 || uid->get() >= int64_t{0xFFFFFFFF}) {
        return At(entry, "tenant.uids: must be user ids from 0 to 4294967294");
      }
      rule.uids.push_back(static_cast<uint32_t>(uid->get()));
    }
    return absl::OkStatus();
  }

  const std::string& path_;
  DaemonConfig& config_;
  const std::vector<Field> fields_;
};

// "NAME:UID,UID" or "NAME:UID,UID:TOKEN_FILE"; either part may be empty.
absl::Status AddTenantFlag(const std::string& text, DaemonConfig& config) {
  TenantRule rule;
  std::istringstream parts(text);
  std::string uids;
  std::string token_file;
  std::getline(parts, rule.name, ':');
  std::getline(parts, uids, ':');
  std::getline(parts, token_file);
  std::istringstream uid_list(uids);
  for (std::string uid; std::getline(uid_list, uid, ',');) {
    uint32_t number = 0;
    const auto [stop, error] = std::from_chars(uid.data(), uid.data() + uid.size(), number);
    if (error != std::errc() || stop != uid.data() + uid.size()) {
      return InvalidArgument("--tenant '{}': '{}' is not a user id; write NAME:UID,UID:TOKEN_FILE",
                             text, uid);
    }
    rule.uids.push_back(number);
  }
  if (!token_file.empty()) {
    auto token = ReadToken(token_file);
    if (!token.ok()) return InvalidArgument("--tenant '{}': {}", text, MessageOf(token.status()));
    rule.token = *token;
  }
  std::erase_if(config.server.tenants, [&](const TenantRule& r) { return r.name == rule.name; });
  config.server.tenants.push_back(std::move(rule));
  return absl::OkStatus();
}

absl::Status ApplyOverrides(const ConfigSources& sources, DaemonConfig& config) {
  const std::vector<Field> fields = FieldsOf(config);
  for (const auto& [key, text] : sources.overrides) {
    if (key == "tenant") {
      TK_RETURN_IF_ERROR(AddTenantFlag(text, config));
      continue;
    }
    bool known = false;
    for (const Field& field : fields) {
      if (field.name != key) continue;
      known = true;
      const absl::Status status = Assign(field, text);
      if (!status.ok()) return InvalidArgument("--{}: {}", key, MessageOf(status));
    }
    if (!known) return InvalidArgument("--{}: unknown key", key);
  }
  return absl::OkStatus();
}

absl::Status FillPaths(DaemonConfig& config) {
  const bool needs_dir = config.server.socket_path.empty() ||
                         config.server.admin_socket_path.empty() || config.store.data_dir.empty();
  if (config.dir.empty() && needs_dir) {
    TK_ASSIGN_OR_RETURN(config.dir, DefaultDir());
  }
  if (config.server.socket_path.empty()) config.server.socket_path = SocketPathIn(config.dir);
  if (config.server.admin_socket_path.empty()) {
    config.server.admin_socket_path = AdminSocketPathIn(config.dir);
  }
  if (config.store.data_dir.empty()) config.store.data_dir = DataDirIn(config.dir);
  if (config.server.admin_socket_path == "none") config.server.admin_socket_path.clear();
  if (config.store.data_dir == "none") config.store.data_dir.clear();
  return absl::OkStatus();
}

absl::Status CheckTenants(const ServerOptions& server) {
  std::set<std::string> names;
  std::set<uint32_t> uids;
  std::set<std::string> tokens;
  for (const TenantRule& rule : server.tenants) {
    TK_RETURN_IF_ERROR(ValidateName("tenant.name", rule.name));
    if (!names.insert(rule.name).second) {
      return InvalidArgument("tenant.name: '{}' is given twice", rule.name);
    }
    for (const uint32_t uid : rule.uids) {
      if (!uids.insert(uid).second) {
        return InvalidArgument("tenant.uids: user {} is in two tenants", uid);
      }
    }
    if (rule.token.empty()) continue;
    if (rule.token.size() < kMinTokenBytes || rule.token.size() > kMaxTokenBytes) {
      return InvalidArgument("tenant.token: of '{}' has {} bytes, must be {} to {}", rule.name,
                             rule.token.size(), kMinTokenBytes, kMaxTokenBytes);
    }
    if (!tokens.insert(rule.token).second) {
      return InvalidArgument("tenant.token: of '{}' is another tenant's too", rule.name);
    }
  }
  if (!server.tcp_address.empty() && tokens.empty()) {
    return InvalidArgument("listen.tcp: '{}' needs a tenant with a token", server.tcp_address);
  }
  return absl::OkStatus();
}

absl::Status Check(const DaemonConfig& config) {
  const ServerOptions& server = config.server;
  TK_RETURN_IF_ERROR(CheckSocketPath("listen.socket", server.socket_path));
  if (!server.admin_socket_path.empty()) {
    TK_RETURN_IF_ERROR(CheckSocketPath("listen.admin_socket", server.admin_socket_path));
    if (server.admin_socket_path == server.socket_path) {
      return InvalidArgument("listen.admin_socket: '{}' is the clients' socket",
                             server.admin_socket_path);
    }
  }
  if (!server.tcp_address.empty()) {
    TK_RETURN_IF_ERROR(ParseLoopbackAddress("listen.tcp", server.tcp_address).status());
  }
  if (!server.admin_address.empty()) {
    TK_RETURN_IF_ERROR(ParseLoopbackAddress("listen.admin_tcp", server.admin_address).status());
  }
  TK_RETURN_IF_ERROR(CheckTenants(server));
  if (config.store.low_watermark > config.store.high_watermark) {
    return InvalidArgument("store.low_watermark: {} is above store.high_watermark, {}",
                           config.store.low_watermark, config.store.high_watermark);
  }
  if (config.store.host_segment_bytes > config.store.host_bytes) {
    return InvalidArgument("store.host_segment_bytes: {} is above store.host_bytes, {}",
                           config.store.host_segment_bytes, config.store.host_bytes);
  }
  if (config.store.extent_file_bytes > config.store.disk_bytes) {
    return InvalidArgument("store.extent_file_bytes: {} is above store.disk_bytes, {}",
                           config.store.extent_file_bytes, config.store.disk_bytes);
  }
  static const std::set<std::string> kLevels = {"trace", "debug", "info", "warn", "error", "off"};
  if (!kLevels.contains(config.log_level)) {
    return InvalidArgument("log.level: '{}' is not trace, debug, info, warn, error or off",
                           config.log_level);
  }
  if (config.log_format != "text" && config.log_format != "json") {
    return InvalidArgument("log.format: '{}' is neither text nor json", config.log_format);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DaemonConfig> LoadConfig(const ConfigSources& sources) {
  DaemonConfig config;
  if (!sources.file.empty()) TK_RETURN_IF_ERROR(FileLoader(sources.file, config).Load());
  TK_RETURN_IF_ERROR(ApplyOverrides(sources, config));
  TK_RETURN_IF_ERROR(FillPaths(config));
  TK_RETURN_IF_ERROR(Check(config));
  return config;
}

std::string ConfigToToml(const DaemonConfig& config) {
  DaemonConfig copy = config;
  if (copy.server.admin_socket_path.empty()) copy.server.admin_socket_path = "none";
  if (copy.store.data_dir.empty()) copy.store.data_dir = "none";
  std::string out;
  std::string section;
  for (const Field& field : FieldsOf(copy)) {
    const size_t dot = field.name.find('.');
    const std::string name = dot == std::string::npos ? field.name : field.name.substr(dot + 1);
    if (dot != std::string::npos && field.name.substr(0, dot) != section) {
      section = field.name.substr(0, dot);
      out += fmt::format("\n[{}]\n", section);
    }
    out += fmt::format("# {}\n{} = {}\n", field.help, name, TomlValue(field));
  }
  for (const TenantRule& rule : config.server.tenants) {
    out += fmt::format("\n[[tenant]]\nname = {}\nuids = [{}]\n",
                       config_internal::TomlQuote(rule.name), fmt::join(rule.uids, ", "));
    if (!rule.token.empty()) out += "# token = (not shown)\n";
  }
  return out;
}

std::vector<ConfigKey> ConfigKeys() {
  DaemonConfig defaults;
  std::vector<ConfigKey> keys;
  for (const Field& field : FieldsOf(defaults)) {
    keys.push_back({.name = field.name, .help = field.help, .default_text = TomlValue(field)});
  }
  return keys;
}

}  // namespace turnkeep
