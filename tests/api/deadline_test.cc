// A store that does not answer: the daemon keeps the request's time, and a late result leaves
// nothing behind.
#include <atomic>
#include <memory>

#include <gtest/gtest.h>

#include "api/forwarding_store.h"
#include "api/raw_connection.h"
#include "api/server.h"
#include "testing/client_factory.h"
#include "testing/kv_pattern.h"
#include "testing/layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

// Begins a save only when it is told to, and has verifies that never end by themselves.
class HeldStore : public ForwardingStore {
 public:
  using ForwardingStore::ForwardingStore;

  void BeginSave(TenantNumber tenant, const SaveRequest& request, SaveDone done) override {
    below().BeginSave(
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

  absl::StatusOr<VerifyReport> Verify(TenantNumber tenant, const VerifyRequest& request,
                                      const std::function<void(uint64_t, uint64_t)>& progress,
                                      const std::function<bool()>& cancelled) override {
    if (request.session.empty()) return below().Verify(tenant, request, progress, cancelled);
    ++verifying;
    while (!cancelled()) absl::SleepFor(absl::Milliseconds(1));
    --verifying;
    return Unavailable("given up");
  }
  std::atomic<int> verifying{0};

 private:
  absl::Mutex mutex_;
  std::function<void()> held_ ABSL_GUARDED_BY(mutex_);
};

class Deadline : public ::testing::Test {
 protected:
  void SetUp() override {
    auto store = Store::Open({.host_bytes = 16 * kMiB});
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    held_ = std::make_unique<HeldStore>(*store_);
    auto server = Server::Start(*held_, {.socket_path = socket()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::string socket() const { return directory_.path() + "/s"; }

  TemporaryDirectory directory_{"/tmp"};
  std::unique_ptr<Store> store_;
  std::unique_ptr<HeldStore> held_;
  std::unique_ptr<Server> server_;
};

TEST_F(Deadline, IsKeptByTheDaemonAndTheLateResultIsDropped) {
  Fingerprint layout;
  {
    auto client = Client::Connect({.socket_path = socket()});
    ASSERT_TRUE(client.ok()) << client.status();
    layout = *(*client)->RegisterLayout(SmallLayout());
  }
  RawConnection raw(socket());
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
  held_->LetGo();
  EXPECT_TRUE(Eventually(
      [&] { return server_->counts().tickets == 0 && store_->GetStatus().open_tickets == 0; }));
}

// A verify that nobody waits for any more, or not so long, is given up.
TEST_F(Deadline, AVerifyEndsWithItsClientItsTimeAndTheDaemon) {
  wire::VerifyRequest request;
  request.set_session("endless");
  const auto begin = [&](RawConnection& raw, uint64_t time_limit_us) {
    ASSERT_TRUE(raw.Hello());
    ASSERT_TRUE(
        raw.SendFrame({.type = wire::VERIFY, .request_id = 1, .time_limit_us = time_limit_us},
                      request.SerializeAsString()));
    ASSERT_TRUE(Eventually([&] { return held_->verifying == 1; }));
  };
  {
    RawConnection gone(socket());
    begin(gone, 0);
  }
  EXPECT_TRUE(Eventually([&] { return held_->verifying == 0; }));
  RawConnection late(socket());
  begin(late, 300'000);
  const absl::Status error = late.ReceiveError();
  EXPECT_TRUE(absl::IsDeadlineExceeded(error)) << error;
  EXPECT_TRUE(Eventually([&] { return held_->verifying == 0; }));
  RawConnection stopped(socket());
  begin(stopped, 0);
  const absl::Status drained = server_->Drain(absl::Seconds(60));
  EXPECT_TRUE(drained.ok()) << drained;
  EXPECT_TRUE(Eventually([&] { return held_->verifying == 0; }));
}

}  // namespace
}  // namespace turnkeep::testing
