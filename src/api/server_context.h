// What the connections of one server share. Internal to src/api.
//
// Everything here is used by the server's thread only, except where a method says that any
// thread may call it.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>

#include "api/server_metrics.h"
#include "api/server_options.h"
#include "store/store.h"

namespace turnkeep {

class ServerConnection;

// The way from the store's threads to the server's. Shared by the server and the callbacks
// that it has given to the store, which may come after the server is gone: they are then
// dropped, with what they hold.
class Gate {
 public:
  explicit Gate(boost::asio::io_context* io) : io_(io) {}
  // Any thread. Runs `work` on the server's thread, later.
  template <typename Work>
  void Post(Work work) {
    absl::MutexLock lock(&mutex_);
    if (io_ != nullptr) boost::asio::post(*io_, std::move(work));
  }
  // True on the server's own thread, while the gate is open.
  bool OnServerThread() const {
    absl::MutexLock lock(&mutex_);
    return io_ != nullptr && io_->get_executor().running_in_this_thread();
  }
  void Close() {
    absl::MutexLock lock(&mutex_);
    io_ = nullptr;
  }

 private:
  mutable absl::Mutex mutex_;
  boost::asio::io_context* io_ ABSL_GUARDED_BY(mutex_);
};

struct TenantHandle {
  std::string name;
  TenantNumber number = 0;
  // Shared by the server's table and by calls on worker threads.
  std::shared_ptr<KvStore> store;
};

// A call that is to wait for a worker.
struct QueuedCall {
  std::string what;    // names it in the error
  uint64_t bytes = 0;  // what it holds while it waits
  // Of the calls of its connection that wait. Shared by the connection and those calls.
  std::shared_ptr<std::atomic<uint64_t>> connection_bytes;
};

class ServerContext {
 public:
  ServerContext(Store& store, ServerOptions options);
  ~ServerContext();

  Store& store() { return store_; }
  const ServerOptions& options() const { return options_; }
  boost::asio::io_context& io() { return io_; }
  ServerMetrics& metrics() { return metrics_; }
  const std::shared_ptr<Gate>& gate() const { return gate_; }
  uint64_t instance() const { return instance_; }

  // Runs `work` on a worker thread. ResourceExhausted when too many calls are waiting already, or
  // calls that hold too much: a call for which nothing else waits is never too much.
  absl::Status RunOnWorker(const QueuedCall& call, std::function<void()> work);
  uint64_t queued_bytes() const { return queued_bytes_.load(std::memory_order_relaxed); }
  boost::asio::thread_pool& workers() { return workers_; }

  // Any thread; may block for the disk when the tenant is new.
  absl::StatusOr<TenantHandle> OpenTenant(const std::string& name);

  void Add(std::shared_ptr<ServerConnection> connection);
  void Remove(const ServerConnection* connection);
  size_t connection_count() const { return connections_.size(); }
  uint64_t NextConnectionNumber() { return ++last_connection_; }
  void CloseAll(const std::string& reason);

  // Tells clients to unmap the segments that the store has given up since the last call.
  void RevokeReleasedSegments();

  // Counts kept by the connections.
  struct Totals {
    uint64_t tickets = 0;
    uint64_t running_calls = 0;
    uint64_t outbound_bytes = 0;
    uint64_t granted_segments = 0;
  };
  Totals& totals() { return totals_; }
  // The totals as gauges.
  std::vector<NamedCount> Gauges() const;

  bool draining() const { return draining_; }
  void StartDraining() { draining_ = true; }

 private:
  absl::Status CheckRoom(const QueuedCall& call) const;

  Store& store_;
  const ServerOptions options_;
  const uint64_t instance_;
  boost::asio::io_context io_;
  boost::asio::thread_pool workers_;
  const std::shared_ptr<Gate> gate_;
  ServerMetrics metrics_;
  Totals totals_;
  // Calls waiting for a worker or running on one. Relaxed: only a bound and a gauge.
  std::atomic<uint32_t> worker_calls_{0};
  // Held by calls that wait for a worker. Added to by the server's thread alone, so that what was
  // checked still holds; workers take away.
  std::atomic<uint64_t> queued_bytes_{0};
  std::atomic<bool> draining_{false};  // read by calls on workers too
  uint64_t last_connection_ = 0;
  // Sharers: this table, and handlers of the connection that are under way.
  std::map<const ServerConnection*, std::shared_ptr<ServerConnection>> connections_;

  absl::Mutex mutex_;
  std::map<std::string, TenantHandle> tenants_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> released_segments_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace turnkeep
