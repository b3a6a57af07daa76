#include "connect.h"

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "api/client.h"
#include "api/paths.h"
#include "core/status.h"

namespace turnkeep {
namespace {

std::string FromEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

absl::Status NobodyAnswers(const absl::Status& status, const GlobalOptions& global,
                           const std::string& address) {
  const std::string start = !global.dir.empty() ? "turnkeepd --dir " + global.dir : "turnkeepd";
  return Unavailable("no daemon answers at {} ({}); start one with: {}", address, MessageOf(status),
                     start);
}

}  // namespace

absl::StatusOr<std::string> ResolveSocket(const GlobalOptions& global) {
  if (!global.socket.empty() && !global.dir.empty()) {
    return InvalidArgument("--socket {} and --dir {}: only one of them can say where the daemon is",
                           global.socket, global.dir);
  }
  std::string path = global.socket;
  std::string what = "--socket";
  if (path.empty() && !global.dir.empty()) {
    path = SocketPathIn(global.dir);
    what = "--dir";
  }
  if (path.empty()) {
    path = FromEnvironment("TURNKEEP_SOCKET");
    what = "TURNKEEP_SOCKET";
  }
  if (path.empty()) {
    TK_ASSIGN_OR_RETURN(const std::string dir, DefaultDir());
    path = SocketPathIn(dir);
    what = "TURNKEEP_DIR";
  }
  TK_RETURN_IF_ERROR(CheckSocketPath(what, path));
  return path;
}

absl::StatusOr<Connection> ConnectToDaemon(const GlobalOptions& global) {
  ClientOptions options{.client_name = "turnkeep",
                        .connect_timeout = global.timeout,
                        .request_timeout = global.timeout};
  std::string address = global.tcp;
  if (!global.tcp.empty()) {
    options.tcp_address = global.tcp;
    options.tcp_token = FromEnvironment("TURNKEEP_TOKEN");
    if (options.tcp_token.empty()) {
      return InvalidArgument("--tcp {}: the token of the tenant must be in $TURNKEEP_TOKEN",
                             global.tcp);
    }
  } else {
    TK_ASSIGN_OR_RETURN(options.socket_path, ResolveSocket(global));
    address = options.socket_path;
  }
  auto client = Client::Connect(std::move(options));
  if (client.status().code() == absl::StatusCode::kUnavailable) {
    return NobodyAnswers(client.status(), global, address);
  }
  TK_RETURN_IF_ERROR(client.status());
  const ServerInfo info = (*client)->server_info();
  Connection connection{.address = address,
                        .tenant = info.tenant,
                        .transport = info.shared_memory ? "shared memory" : "frames"};
  connection.store = client->get();
  connection.owner = *std::move(client);
  return connection;
}

}  // namespace turnkeep
