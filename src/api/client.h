// turnkeep::Client: the store's interface (core/kv_store.h) over a connection to
// turnkeepd. Links neither RocksDB nor liburing.
//
// Over a Unix socket, layer pages lie in the daemon's own memory segments, mapped into
// this process: a save writes into them, a restore reads from them. Over TCP (loopback,
// with a token) page bytes travel in frames and tickets hold copies.
//
// Thread-safe; many calls may run at once on the one connection. Calls block until the
// answer is there, at most ClientOptions::request_timeout (Commit and WaitLayer: their
// deadline). When the connection is lost, running calls fail with Unavailable; an open
// restore keeps the layers that had arrived (their memory stays valid, and is verified as
// ever) and misses the rest; a background thread reconnects, and until it has, calls fail
// with Unavailable at once.
//
// Tickets may outlive the client: they then behave as after a lost connection.
//
//   TK_ASSIGN_OR_RETURN(auto client, Client::Connect({.socket_path = path}));
//   TK_ASSIGN_OR_RETURN(Fingerprint layout, client->RegisterLayout(MyLayout()));
//   TK_ASSIGN_OR_RETURN(auto restore, client->BeginRestore({.session = "alice", .layout =
//   layout}));
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "core/kv_store.h"

namespace turnkeep {

struct ClientOptions {
  std::string socket_path;             // a Unix socket, or
  std::string tcp_address;             // "127.0.0.1:7411" or "[::1]:7411", with
  std::string tcp_token;               // the token of the tenant
  std::string client_name = "client";  // for the daemon's log
  absl::Duration connect_timeout = absl::Seconds(5);
  absl::Duration request_timeout = absl::Seconds(30);
  // Between attempts to reconnect, doubling from the first to the second.
  absl::Duration min_backoff = absl::Milliseconds(10);
  absl::Duration max_backoff = absl::Seconds(1);
  // How long a caller looks for its answer before it sleeps: waking an idle core takes longer
  // than most answers. Zero: sleeps at once.
  absl::Duration busy_poll = absl::Microseconds(50);
  bool reconnect = true;
  // Return a client also when no daemon answers, and go on trying in the background.
  bool start_disconnected = false;
};

// What the daemon said at the last successful connect.
struct ServerInfo {
  std::string version;
  std::string tenant;
  uint32_t protocol_version = 0;
  bool shared_memory = false;
  uint64_t instance = 0;  // differs after every start of the daemon
};

class Client : public KvStore {
 public:
  // Unavailable: nobody answers. PermissionDenied: not a tenant. FailedPrecondition: the
  // daemon speaks another protocol version (the message names both). InvalidArgument: options.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(ClientOptions options);
  ~Client() override;

  bool connected() const;
  ServerInfo server_info() const;

  absl::StatusOr<Fingerprint> RegisterLayout(const KvLayout& layout) override;
  absl::StatusOr<KvLayout> GetLayout(const Fingerprint& fingerprint) override;
  absl::StatusOr<std::unique_ptr<SaveTicket>> BeginSave(const SaveRequest& request) override;
  absl::StatusOr<std::unique_ptr<RestoreTicket>> BeginRestore(
      const RestoreRequest& request) override;
  absl::StatusOr<std::unique_ptr<SaveTicket>> BeginImport(const ImportRequest& request) override;
  absl::StatusOr<SessionInfo> ForkSession(const ForkRequest& request) override;
  absl::StatusOr<SessionInfo> TruncateSession(const TruncateRequest& request) override;
  absl::StatusOr<SessionInfo> RenameSession(const std::string& from,
                                            const std::string& to) override;
  absl::Status DropSession(const std::string& name) override;
  absl::StatusOr<SessionInfo> PinSession(const std::string& name) override;
  absl::StatusOr<SessionInfo> UnpinSession(const std::string& name) override;
  absl::StatusOr<SessionInfo> SetSessionTtl(const std::string& name, absl::Duration ttl) override;
  absl::StatusOr<std::vector<SessionInfo>> ListSessions(const ListRequest& request) override;
  absl::StatusOr<SessionInfo> StatSession(const std::string& name) override;
  absl::StatusOr<SessionDetail> ShowSession(const std::string& name) override;
  HintReply Hint(const HintRequest& request) override;
  absl::StatusOr<Activity> GetActivity(const ActivityRequest& request) override;
  absl::StatusOr<Explanation> Explain(const ExplainRequest& request) override;
  absl::StatusOr<std::vector<TreeNode>> Tree(const TreeRequest& request) override;
  // Takes as long as it takes: no request_timeout.
  absl::StatusOr<VerifyReport> Verify(
      const VerifyRequest& request,
      const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress) override;
  absl::StatusOr<StoreStatus> Status() override;
  // Unavailable: not connected; the daemon has then forgotten the report before as well.
  absl::Status ReportGpuResidency(std::span<const GpuChunk> chunks) override;

 private:
  class Impl;  // client_impl.h
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace turnkeep
