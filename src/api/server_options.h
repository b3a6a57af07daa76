// What a Server is started with. Plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/time/time.h>

#include "core/limits.h"

namespace turnkeep {

// Who may speak for a tenant: processes of some users over the Unix socket, and whoever
// knows the token over TCP.
struct TenantRule {
  std::string name;
  std::vector<uint32_t> uids;
  std::string token;  // empty: not over TCP
};
inline constexpr size_t kMinTokenBytes = 16;
inline constexpr size_t kMaxTokenBytes = 256;
// The tenant of the daemon's own user and of root, unless a rule says otherwise.
inline constexpr const char* kDefaultTenant = "default";

struct ServerOptions {
  std::string socket_path;        // required
  std::string tcp_address;        // loopback only; empty: none
  std::string admin_socket_path;  // empty: none
  std::string admin_address;      // loopback only; empty: none
  std::vector<TenantRule> tenants;

  uint32_t max_connections = kMaxConnections;
  uint32_t max_tickets_per_connection = kMaxTicketsPerConnection;
  uint64_t max_outbound_bytes = kMaxOutboundQueueBytes;  // per connection
  uint32_t max_frame_bytes = kMaxFrameBytes;
  uint32_t worker_threads = 4;      // for calls that block
  uint32_t max_queued_calls = 256;  // waiting for a worker
  // What they hold, those of all connections together; no connection may have more of it than it
  // leaves free. One alone has half, more than any one call holds, and a few never have all.
  uint64_t max_queued_bytes = 512 * kMiB;
  uint32_t max_admin_connections = 64;
  // How long the server's thread looks for more after it has had something to do, before it
  // sleeps: waking an idle core takes longer than most answers. 0: sleeps at once.
  uint32_t busy_poll_us = 50;
  absl::Duration hello_timeout = absl::Seconds(5);
  absl::Duration admin_timeout = absl::Seconds(10);
};

}  // namespace turnkeep
