#include "testing/client_factory.h"

#include <utility>

namespace turnkeep::testing {

DaemonHarness::DaemonHarness(HarnessOptions options) : options_(std::move(options)) {
  ServerOptions& server = options_.server;
  server.socket_path = socket_path();
  if (options_.tcp) server.tcp_address = "127.0.0.1:0";
  if (options_.admin) {
    server.admin_socket_path = admin_socket_path();
    server.admin_address = "127.0.0.1:0";
  }
  for (const char* tenant : {"default", "other", "alice", "bob"}) {
    server.tenants.push_back({.name = tenant, .token = TokenOf(tenant)});
  }
  Start();
}

DaemonHarness::~DaemonHarness() { Die(); }

void DaemonHarness::Start() {
  StoreOptions store_options{.host_bytes = options_.host_bytes,
                             .host_segment_bytes = options_.host_segment_bytes,
                             .clock = options_.clock};
  if (options_.disk_bytes > 0) {
    store_options.data_dir = directory_.path() + "/data";
    store_options.disk_bytes = options_.disk_bytes;
    store_options.wrap_device = options_.wrap_device;
    store_options.extent_file_bytes = 4 * kMiB;
  }
  auto store = Store::Open(store_options);
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
  auto server = Server::Start(*store_, options_.server);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
}

void DaemonHarness::Die() {
  server_.reset();
  store_.reset();
}

void DaemonHarness::Stop() {
  const absl::Status drained = server_->Drain(absl::Seconds(10));
  EXPECT_TRUE(drained.ok()) << drained;
  server_.reset();
  const absl::Status closed = store_->Close(absl::Seconds(30));
  EXPECT_TRUE(closed.ok()) << closed;
  store_.reset();
}

std::string DaemonHarness::socket_path() const {
  return socket_directory_.path() + "/turnkeep.sock";
}
std::string DaemonHarness::admin_socket_path() const {
  return socket_directory_.path() + "/admin.sock";
}

std::string DaemonHarness::TokenOf(const std::string& tenant) {
  return "a token of tenant " + tenant;
}

ClientOptions DaemonHarness::UnixOptions() const {
  return {.socket_path = socket_path(), .client_name = "test"};
}

ClientOptions DaemonHarness::TcpOptions(const std::string& tenant) const {
  return {.tcp_address = "127.0.0.1:" + std::to_string(server_->tcp_port()),
          .tcp_token = TokenOf(tenant),
          .client_name = "test"};
}

std::unique_ptr<Client> DaemonHarness::UnixClient() {
  auto client = Client::Connect(UnixOptions());
  EXPECT_TRUE(client.ok()) << client.status();
  return client.ok() ? *std::move(client) : nullptr;
}

std::unique_ptr<Client> DaemonHarness::TcpClient(const std::string& tenant) {
  auto client = Client::Connect(TcpOptions(tenant));
  EXPECT_TRUE(client.ok()) << client.status();
  return client.ok() ? *std::move(client) : nullptr;
}

namespace {

class ClientSuiteStore : public SuiteStore {
 public:
  ClientSuiteStore(const SuiteStoreOptions& options, bool over_tcp)
      : daemon_({.host_bytes = options.host_bytes,
                 .disk_bytes = options.disk_bytes,
                 .tcp = true,
                 .clock = &clock_}) {
    client_ = over_tcp ? daemon_.TcpClient() : daemon_.UnixClient();
  }
  ~ClientSuiteStore() override { client_.reset(); }

  KvStore& kv() override { return *client_; }
  // Over the Unix socket this process is one user, so one tenant; others speak TCP.
  std::unique_ptr<KvStore> Tenant(const std::string& name) override {
    return daemon_.TcpClient(name);
  }
  ManualClock* clock() override { return &clock_; }

 private:
  ManualClock clock_;
  DaemonHarness daemon_;
  std::unique_ptr<Client> client_;
};

}  // namespace

std::unique_ptr<SuiteStore> MakeUnixClientSuiteStore(const SuiteStoreOptions& options) {
  return std::make_unique<ClientSuiteStore>(options, /*over_tcp=*/false);
}
std::unique_ptr<SuiteStore> MakeTcpClientSuiteStore(const SuiteStoreOptions& options) {
  return std::make_unique<ClientSuiteStore>(options, /*over_tcp=*/true);
}

}  // namespace turnkeep::testing
