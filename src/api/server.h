// The daemon's front: a Store behind a Unix socket (and TCP on loopback when configured), with
// the HTTP admin beside it.
//
// One thread runs everything that does not block; a bounded pool runs the calls that may
// (Verify, Explain, sessions). A client that sends what it must not gets an error, and past
// that is disconnected with a logged reason. When a client's socket hangs up or its process
// ends, its tickets are destroyed at once.
//
// Thread-safe. Destroy before the Store.
//
//   TK_ASSIGN_OR_RETURN(auto server, Server::Start(*store, {.socket_path =
//   "/run/tk/turnkeep.sock"})); … server->Drain(absl::Seconds(10)); server.reset();
//   store->Close(…);
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "api/server_options.h"
#include "store/store.h"

namespace turnkeep {

// The tenant that a process of user `uid` speaks for. PermissionDenied: none.
absl::StatusOr<std::string> TenantForUid(const std::vector<TenantRule>& rules, uint32_t uid,
                                         uint32_t own_uid);
// The tenant with this token, compared in constant time. PermissionDenied: none.
absl::StatusOr<std::string> TenantForToken(const std::vector<TenantRule>& rules,
                                           const std::string& token);

struct ServerCounts {
  uint64_t connections = 0;
  uint64_t tickets = 0;
  uint64_t running_calls = 0;  // begun and not answered
  uint64_t queued_bytes = 0;   // held by calls that wait for a worker
  uint64_t outbound_bytes = 0;
  uint64_t granted_segments = 0;  // over all connections
  uint64_t disconnects = 0;       // by the server, since the start
};

class Server {
 public:
  // Makes the sockets (folders 0700, sockets 0600) and begins to answer. AlreadyExists:
  // somebody answers on the socket. InvalidArgument names the option.
  static absl::StatusOr<std::unique_ptr<Server>> Start(Store& store, ServerOptions options);
  // Disconnects everybody and removes the sockets.
  ~Server();

  // Accepts and begins nothing new, and waits until what runs is done. DeadlineExceeded: something
  // still runs; the destructor abandons it.
  absl::Status Drain(absl::Duration deadline);

  ServerCounts counts() const;
  // The ports chosen when the options said 0; 0: not listening.
  uint16_t tcp_port() const;
  uint16_t admin_port() const;

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace turnkeep
