#include "api/server_context.h"

#include <algorithm>
#include <random>

#include "api/server_connection.h"
#include "core/status.h"

namespace turnkeep {

namespace {

uint64_t RandomInstance() {
  std::random_device random;
  return (uint64_t{random()} << 32) | random();
}

}  // namespace

ServerContext::ServerContext(Store& store, ServerOptions options)
    : store_(store),
      options_(std::move(options)),
      instance_(RandomInstance()),
      workers_(options_.worker_threads),
      gate_(std::make_shared<Gate>(&io_)) {
  store_.ObserveReleasedSegments([this, gate = gate_](uint32_t segment) {
    bool first = false;
    {
      absl::MutexLock lock(&mutex_);
      first = released_segments_.empty();
      released_segments_.push_back(segment);
    }
    if (first) gate->Post([this] { RevokeReleasedSegments(); });
  });
}

ServerContext::~ServerContext() {
  store_.ObserveReleasedSegments(nullptr);
  gate_->Close();
  workers_.join();
}

absl::Status ServerContext::CheckRoom(const QueuedCall& call) const {
  if (worker_calls_.load(std::memory_order_relaxed) >=
      options_.max_queued_calls + options_.worker_threads) {
    return ResourceExhausted("{}: {} calls are waiting already", call.what,
                             options_.max_queued_calls);
  }
  const uint64_t limit = options_.max_queued_bytes;
  const uint64_t all = queued_bytes();
  const uint64_t own = call.connection_bytes->load(std::memory_order_relaxed);
  if (all == 0 || own + call.bytes <= limit - std::min(limit, all + call.bytes))
    return absl::OkStatus();
  return ResourceExhausted(
      "{}: {} bytes cannot wait: {} of this connection and {} of all are waiting already, the "
      "limit is {}, and no connection may have more of it than it leaves free",
      call.what, call.bytes, own, all, limit);
}

absl::Status ServerContext::RunOnWorker(const QueuedCall& call, std::function<void()> work) {
  TK_RETURN_IF_ERROR(CheckRoom(call));
  worker_calls_.fetch_add(1, std::memory_order_relaxed);
  queued_bytes_.fetch_add(call.bytes, std::memory_order_relaxed);
  call.connection_bytes->fetch_add(call.bytes, std::memory_order_relaxed);
  boost::asio::post(
      workers_, [this, bytes = call.bytes, own = call.connection_bytes, work = std::move(work)] {
        queued_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
        own->fetch_sub(bytes, std::memory_order_relaxed);
        work();
        worker_calls_.fetch_sub(1, std::memory_order_relaxed);
      });
  return absl::OkStatus();
}

absl::StatusOr<TenantHandle> ServerContext::OpenTenant(const std::string& name) {
  {
    absl::MutexLock lock(&mutex_);
    const auto it = tenants_.find(name);
    if (it != tenants_.end()) return it->second;
  }
  TenantHandle handle{.name = name};
  TK_ASSIGN_OR_RETURN(handle.number, store_.OpenTenant(name));
  TK_ASSIGN_OR_RETURN(handle.store, store_.ForTenant(name));
  absl::MutexLock lock(&mutex_);
  return tenants_.try_emplace(name, std::move(handle)).first->second;
}

void ServerContext::Add(std::shared_ptr<ServerConnection> connection) {
  const ServerConnection* key = connection.get();
  connections_[key] = std::move(connection);
}

void ServerContext::Remove(const ServerConnection* connection) { connections_.erase(connection); }

void ServerContext::CloseAll(const std::string& reason) {
  const auto connections = std::exchange(connections_, {});
  for (const auto& [key, connection] : connections) connection->Close(reason);
}

void ServerContext::RevokeReleasedSegments() {
  std::vector<uint32_t> released;
  {
    absl::MutexLock lock(&mutex_);
    released.swap(released_segments_);
  }
  if (released.empty()) return;
  const auto connections = connections_;  // a slow one may be removed on the way
  for (const auto& [key, connection] : connections) connection->RevokeSegments(released);
}

std::vector<NamedCount> ServerContext::Gauges() const {
  const auto gauge = [](const char* name, const char* help, uint64_t value) {
    return NamedCount{
        .name = name, .help = help, .value = static_cast<double>(value), .monotonic = false};
  };
  return {gauge("server_connections", "Client connections", connections_.size()),
          gauge("server_tickets", "Tickets of client connections", totals_.tickets),
          gauge("server_running_calls", "Requests begun and not answered", totals_.running_calls),
          gauge("server_worker_calls", "Calls waiting for a worker or running on one",
                worker_calls_.load(std::memory_order_relaxed)),
          gauge("server_queued_call_bytes", "Held by calls that wait for a worker", queued_bytes()),
          gauge("server_outbound_queue_bytes", "Answers that clients have not read yet",
                totals_.outbound_bytes),
          gauge("server_granted_segments", "Host segments mapped by clients, over all of them",
                totals_.granted_segments)};
}

}  // namespace turnkeep
