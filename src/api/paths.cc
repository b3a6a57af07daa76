#include "api/paths.h"

#include <arpa/inet.h>

#include <charconv>
#include <cstdlib>

#include "core/status.h"

namespace turnkeep {

absl::StatusOr<std::string> DefaultDir() {
  if (const char* dir = std::getenv("TURNKEEP_DIR"); dir != nullptr && *dir != '\0') return dir;
  if (const char* data = std::getenv("XDG_DATA_HOME"); data != nullptr && *data != '\0') {
    return std::string(data) + "/turnkeep";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    return std::string(home) + "/.local/share/turnkeep";
  }
  return FailedPrecondition("no folder for Turnkeep: give --dir, or set TURNKEEP_DIR or HOME");
}

std::string SocketPathIn(const std::string& dir) { return dir + "/turnkeep.sock"; }
std::string AdminSocketPathIn(const std::string& dir) { return dir + "/admin.sock"; }
std::string DataDirIn(const std::string& dir) { return dir + "/data"; }

absl::Status CheckSocketPath(const std::string& what, const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos) {
    return InvalidArgument("{}: '{}' is not a path", what, path);
  }
  if (path.size() > kMaxSocketPathBytes) {
    return InvalidArgument("{}: '{}' has {} bytes, a Unix socket's path at most {}", what, path,
                           path.size(), kMaxSocketPathBytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<LoopbackAddress> ParseLoopbackAddress(const std::string& what,
                                                     const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) {
    return InvalidArgument("{}: '{}' is not ADDRESS:PORT", what, text);
  }
  LoopbackAddress address{.host = text.substr(0, colon)};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (error != std::errc() || stop != end) {
    return InvalidArgument("{}: '{}' has no port from 0 to 65535", what, text);
  }
  if (address.host == "localhost") address.host = "127.0.0.1";
  if (address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']') {
    address.host = address.host.substr(1, address.host.size() - 2);
    address.v6 = true;
    in6_addr v6{};
    if (inet_pton(AF_INET6, address.host.c_str(), &v6) != 1) {
      return InvalidArgument("{}: '{}' is not a numeric IPv6 address", what, text);
    }
    if (!IN6_IS_ADDR_LOOPBACK(&v6)) {
      return InvalidArgument("{}: '{}' is not a loopback address; other machines must not reach it",
                             what, text);
    }
    return address;
  }
  in_addr v4{};
  if (inet_pton(AF_INET, address.host.c_str(), &v4) != 1) {
    return InvalidArgument("{}: '{}' is not a numeric address", what, text);
  }
  if ((ntohl(v4.s_addr) >> 24) != 127) {
    return InvalidArgument("{}: '{}' is not a loopback address; other machines must not reach it",
                           what, text);
  }
  return address;
}

}  // namespace turnkeep
