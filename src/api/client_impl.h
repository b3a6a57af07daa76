// The state of a Client. Internal to client*.cc.
#pragma once

#include <memory>
#include <thread>

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/synchronization/mutex.h>

#include "api/client.h"
#include "api/client_connection.h"
#include "api/client_tickets.h"

namespace turnkeep {

class Client::Impl {
 public:
  explicit Impl(ClientOptions options) : options_(std::move(options)) {}
  ~Impl();

  // Makes the first connection, then starts the thread that reads it and replaces it.
  absl::Status Start();

  // The current connection, or Unavailable with the reason.
  absl::StatusOr<std::shared_ptr<ClientConnection>> Connection() const;
  ServerInfo info() const;
  absl::Time RequestDeadline() const { return absl::Now() + options_.request_timeout; }

  void Remember(const Fingerprint& fingerprint, const KvLayout& layout, bool registered);
  // Null when it is not known here.
  std::shared_ptr<const ClientLayout> Find(const Fingerprint& fingerprint) const;

  template <typename Reply, typename Request>
  absl::StatusOr<Reply> Call(wire::MessageType type, const Request& request,
                             std::span<const std::byte> raw = {}) const {
    TK_ASSIGN_OR_RETURN(const auto connection, Connection());
    return connection->Call<Reply>(type, request, RequestDeadline(), raw);
  }

 private:
  struct KnownLayout {
    std::shared_ptr<const ClientLayout> info;
    bool registered = false;  // by us: registered again after a reconnect
  };

  absl::Status ConnectOnce();
  absl::Status RegisterAgain(ClientConnection& connection);
  void Run();

  const ClientOptions options_;
  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Sharers: this one and the tickets begun on it.
  std::shared_ptr<ClientConnection> connection_ ABSL_GUARDED_BY(mutex_);
  absl::Status why_disconnected_ ABSL_GUARDED_BY(mutex_);
  ServerInfo info_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Fingerprint, KnownLayout> layouts_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace turnkeep
