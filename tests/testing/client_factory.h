// A store behind a server in this process, on a directory of its own, and clients of it.
//
//   DaemonHarness daemon({.disk_bytes = 64 * kMiB, .tcp = true});
//   auto client = daemon.UnixClient();
//   daemon.Die(); daemon.Start();   // as a killed and restarted daemon
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "api/client.h"
#include "api/server.h"
#include "disk_tier/block_device.h"
#include "store/kv_store_suite.h"
#include "store/store.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {

struct HarnessOptions {
  uint64_t host_bytes = 256 * kMiB;
  uint64_t disk_bytes = 0;  // 0: no disk tier
  uint64_t host_segment_bytes = 64 * kMiB;
  bool tcp = false;
  bool admin = false;
  Clock* clock = Clock::System();
  ServerOptions server;  // its addresses are filled in
  // With a disk tier: StoreOptions::wrap_device.
  std::function<std::unique_ptr<BlockDevice>(std::unique_ptr<BlockDevice>)> wrap_device;
};

// Not thread-safe. Errors while starting fail the test.
class DaemonHarness {
 public:
  explicit DaemonHarness(HarnessOptions options = {});
  ~DaemonHarness();

  void Start();
  // Ends the daemon without closing the store: what durability does not promise is lost.
  void Die();
  // Ends it in order.
  void Stop();

  Store& store() { return *store_; }
  Server& server() { return *server_; }
  bool running() const { return server_ != nullptr; }
  const std::string& dir() const { return directory_.path(); }
  std::string socket_path() const;
  std::string admin_socket_path() const;

  // A token that lets TCP clients speak for `tenant`: "default", "other", "alice" or "bob".
  static std::string TokenOf(const std::string& tenant);
  ClientOptions UnixOptions() const;
  ClientOptions TcpOptions(const std::string& tenant = "default") const;
  std::unique_ptr<Client> UnixClient();
  std::unique_ptr<Client> TcpClient(const std::string& tenant = "default");

 private:
  TemporaryDirectory directory_;
  TemporaryDirectory socket_directory_{"/tmp"};
  HarnessOptions options_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Server> server_;
};

// For the suite of tests/store: the interface is a client's, over a Unix socket or TCP.
std::unique_ptr<SuiteStore> MakeUnixClientSuiteStore(const SuiteStoreOptions& options);
std::unique_ptr<SuiteStore> MakeTcpClientSuiteStore(const SuiteStoreOptions& options);

}  // namespace turnkeep::testing
