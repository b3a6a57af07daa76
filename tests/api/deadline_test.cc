// A store that does not answer: the daemon keeps the request's time, and a late result leaves
// nothing behind.
#include <atomic>

#include <gtest/gtest.h>

#include "api/raw_connection.h"
#include "api/server.h"
#include "testing/client_factory.h"
#include "testing/kv_pattern.h"
#include "testing/layouts.h"

namespace turnkeep::testing {
namespace {

// Begins a save only when it is told to.
class HeldStore : public Store {
 public:
  using SaveDone = std::function<void(absl::StatusOr<std::unique_ptr<SaveOperation>>)>;
  explicit HeldStore(Store& store) : store_(store) {}

  void BeginSave(TenantNumber tenant, const SaveRequest& request, SaveDone done) override {
    store_.BeginSave(
        tenant, request, [this, done](absl::StatusOr<std::unique_ptr<SaveOperation>> result) {
          absl::MutexLock lock(&mutex_);
          held_ = [done, kept = std::make_shared<decltype(result)>(std::move(result))] {
            done(std::move(*kept));
          };
        });
  }
  // Lets the held save begin.
  void LetGo() {
    std::function<void()> held;
    {
      absl::MutexLock lock(&mutex_);
      held.swap(held_);
    }
    ASSERT_TRUE(held);
    held();
  }

  absl::Status Close(absl::Duration deadline) override { return store_.Close(deadline); }
  absl::StatusOr<TenantNumber> OpenTenant(const std::string& name) override {
    return store_.OpenTenant(name);
  }
  absl::StatusOr<std::unique_ptr<KvStore>> ForTenant(const std::string& name) override {
    return store_.ForTenant(name);
  }
  void BeginImport(TenantNumber tenant, const ImportRequest& request, SaveDone done) override {
    store_.BeginImport(tenant, request, std::move(done));
  }
  void BeginRestore(TenantNumber tenant, const RestoreRequest& request, RestoreDone done,
                    std::function<bool()> abandoned) override {
    store_.BeginRestore(tenant, request, std::move(done), std::move(abandoned));
  }
  absl::StatusOr<SegmentGrant> Segment(uint32_t segment) override {
    return store_.Segment(segment);
  }
  void ObserveReleasedSegments(std::function<void(uint32_t)> observer) override {
    store_.ObserveReleasedSegments(std::move(observer));
  }
  absl::StatusOr<VerifyReport> Verify(TenantNumber tenant, const VerifyRequest& request,
                                      const std::function<void(uint64_t, uint64_t)>& progress,
                                      const std::function<bool()>& cancelled) override {
    if (request.session.empty()) return store_.Verify(tenant, request, progress, cancelled);
    // One that never ends by itself.
    ++verifying;
    while (!cancelled()) absl::SleepFor(absl::Milliseconds(1));
    --verifying;
    return Unavailable("given up");
  }
  std::atomic<int> verifying{0};

  std::unique_ptr<GpuEngine> OpenGpuEngine(TenantNumber tenant, std::string name,
                                           int64_t pid) override {
    return store_.OpenGpuEngine(tenant, std::move(name), pid);
  }
  StoreStatus GetStatus() override { return store_.GetStatus(); }
  Activity GetActivity(TenantNumber tenant, const ActivityRequest& request) override {
    return store_.GetActivity(tenant, request);
  }
  std::vector<SessionInfo> ListAllSessions(TenantNumber tenant,
                                           const ListRequest& request) override {
    return store_.ListAllSessions(tenant, request);
  }
  std::vector<std::string> ListTenants() override { return store_.ListTenants(); }

 private:
  Store& store_;
  absl::Mutex mutex_;
  std::function<void()> held_ ABSL_GUARDED_BY(mutex_);
};

TEST(Deadline, IsKeptByTheDaemonAndTheLateResultIsDropped) {
  const std::string dir = [] {
    std::string path = "/tmp/turnkeep-test-XXXXXX";
    TK_CHECK(::mkdtemp(path.data()) != nullptr);
    return path;
  }();
  auto store = Store::Open({.host_bytes = 16 * kMiB});
  ASSERT_TRUE(store.ok()) << store.status();
  HeldStore held(**store);
  auto server = Server::Start(held, {.socket_path = dir + "/s"});
  ASSERT_TRUE(server.ok()) << server.status();
  Fingerprint layout;
  {
    auto client = Client::Connect({.socket_path = dir + "/s"});
    ASSERT_TRUE(client.ok()) << client.status();
    layout = *(*client)->RegisterLayout(SmallLayout());
  }
  RawConnection raw(dir + "/s");
  ASSERT_TRUE(raw.Hello());
  wire::BeginSaveRequest request;
  request.set_ticket(1);
  request.set_session("late");
  request.set_layout(wire::IdBytes(layout));
  const std::vector<uint32_t> tokens = MakeTokens(1, 64);
  const absl::Time start = absl::Now();
  ASSERT_TRUE(raw.SendFrame({.type = wire::BEGIN_SAVE, .request_id = 1, .time_limit_us = 100'000},
                            request.SerializeAsString(),
                            {reinterpret_cast<const char*>(tokens.data()), tokens.size() * 4}));
  const absl::Status error = raw.ReceiveError();
  EXPECT_TRUE(absl::IsDeadlineExceeded(error)) << error;
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(100));
  held.LetGo();
  EXPECT_TRUE(Eventually(
      [&] { return (*server)->counts().tickets == 0 && (*store)->GetStatus().open_tickets == 0; }));
  server->reset();
  ::rmdir(dir.c_str());
}

// A verify that nobody waits for any more, or not so long, is given up.
TEST(Deadline, AVerifyEndsWithItsClientItsTimeAndTheDaemon) {
  const std::string dir = [] {
    std::string path = "/tmp/turnkeep-test-XXXXXX";
    TK_CHECK(::mkdtemp(path.data()) != nullptr);
    return path;
  }();
  auto store = Store::Open({.host_bytes = 16 * kMiB});
  ASSERT_TRUE(store.ok()) << store.status();
  HeldStore held(**store);
  auto server = Server::Start(held, {.socket_path = dir + "/s"});
  ASSERT_TRUE(server.ok()) << server.status();
  wire::VerifyRequest request;
  request.set_session("endless");
  const auto begin = [&](RawConnection& raw, uint64_t time_limit_us) {
    ASSERT_TRUE(raw.Hello());
    ASSERT_TRUE(
        raw.SendFrame({.type = wire::VERIFY, .request_id = 1, .time_limit_us = time_limit_us},
                      request.SerializeAsString()));
    ASSERT_TRUE(Eventually([&] { return held.verifying == 1; }));
  };
  {
    RawConnection gone(dir + "/s");
    begin(gone, 0);
  }
  EXPECT_TRUE(Eventually([&] { return held.verifying == 0; }));
  RawConnection late(dir + "/s");
  begin(late, 300'000);
  const absl::Status error = late.ReceiveError();
  EXPECT_TRUE(absl::IsDeadlineExceeded(error)) << error;
  EXPECT_TRUE(Eventually([&] { return held.verifying == 0; }));
  RawConnection stopped(dir + "/s");
  begin(stopped, 0);
  const absl::Status drained = (*server)->Drain(absl::Seconds(60));
  EXPECT_TRUE(drained.ok()) << drained;
  EXPECT_TRUE(Eventually([&] { return held.verifying == 0; }));
  server->reset();
  ::rmdir(dir.c_str());
}

}  // namespace
}  // namespace turnkeep::testing
