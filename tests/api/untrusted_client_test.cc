// What the daemon believes of a client that does not wait for answers, takes others' places, or
// asks for more than there is room for: no other tenant's bytes, no ticket that outlives its
// request, and no request of a connection whose tenant is not known yet.
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/odd_store_fixture.h"
#include "api/raw_connection.h"
#include "api/server.h"
#include "core/status.h"
#include "testing/eventually.h"
#include "testing/kv_pattern.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

std::string TokenBytes(uint64_t seed, uint64_t count) {
  const std::vector<uint32_t> tokens = MakeTokens(seed, count);
  return std::string(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 4);
}

wire::Hello HelloOf(const std::string& client) {
  wire::Hello hello;
  hello.set_min_version(1);
  hello.set_max_version(1);
  hello.set_client(client);
  return hello;
}

struct Begin {
  uint64_t request = 0;        // 0: the ticket's number
  std::string tokens;          // of a restore; without them it is of the session
  uint64_t token_count = 128;  // of a save
  uint64_t time_limit_us = 0;
};

class UntrustedClient : public OddStoreTest {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(OddStoreTest::SetUp());
    ASSERT_TRUE(SaveAll(*kv_, pattern_, {.session = "s", .context = &context_}).ok());
  }

  void Serve(ServerOptions options = {}) {
    options.socket_path = socket();
    auto server = Server::Start(*odd_, std::move(options));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  static wire::FrameHeader HeaderOf(wire::MessageType type, uint64_t ticket, const Begin& begin) {
    return {.type = static_cast<uint16_t>(type),
            .request_id = begin.request == 0 ? ticket : begin.request,
            .time_limit_us = begin.time_limit_us};
  }
  bool SendBeginSave(RawConnection& raw, uint64_t ticket, const Begin& begin = {}) {
    wire::BeginSaveRequest message;
    message.set_ticket(ticket);
    message.set_session("t");
    message.set_layout(wire::IdBytes(pattern_.fingerprint()));
    message.set_space_deadline_us(1'000'000);
    return raw.SendFrame(HeaderOf(wire::BEGIN_SAVE, ticket, begin), message.SerializeAsString(),
                         TokenBytes(77, begin.token_count));
  }
  bool SendBeginRestore(RawConnection& raw, uint64_t ticket, const Begin& begin = {}) {
    wire::BeginRestoreRequest message;
    message.set_ticket(ticket);
    if (begin.tokens.empty()) message.set_session("s");
    message.set_layout(wire::IdBytes(pattern_.fingerprint()));
    message.set_max_tokens(UINT64_MAX);
    message.set_deadline_us(60'000'000);
    return raw.SendFrame(HeaderOf(wire::BEGIN_RESTORE, ticket, begin), message.SerializeAsString(),
                         begin.tokens);
  }
  // Ticket 1 a save and ticket 2 a restore, of which the store has not answered either.
  void BeginBoth(RawConnection& raw) {
    ASSERT_TRUE(raw.Hello());
    odd_->Hold();
    ASSERT_TRUE(SendBeginSave(raw, 1) && SendBeginRestore(raw, 2));
    ASSERT_TRUE(Eventually([&] { return store_->GetStatus().open_tickets == 2; }));
  }
  bool LeftNothing() {
    return Eventually(
        [&] { return server_->counts().tickets == 0 && store_->GetStatus().open_tickets == 0; });
  }
  template <typename Message>
  static absl::Status Ask(RawConnection& raw, wire::MessageType type, const Message& message) {
    EXPECT_TRUE(raw.Request(type, 99, message));
    return raw.ReceiveError();
  }

  const KvContext context_ = ContextOf(3, 128);
};

// Whatever the store says that the slots of a ticket lie in: the descriptor of a segment is all of
// its bytes.
TEST_F(UntrustedClient, ASegmentOfAnotherTenantIsNotGiven) {
  odd_->others_segments = true;
  Serve();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(SendBeginSave(raw, 1));
  const absl::Status save = raw.ReceiveError();
  EXPECT_TRUE(absl::IsInternal(save)) << save;
  EXPECT_THAT(MessageOf(save), HasSubstr("belongs to tenant"));
  ASSERT_TRUE(SendBeginRestore(raw, 2));
  const absl::Status restore = raw.ReceiveError();
  EXPECT_TRUE(absl::IsInternal(restore)) << restore;
  EXPECT_EQ(server_->counts().granted_segments, 0u);
  EXPECT_TRUE(LeftNothing());
}

TEST_F(UntrustedClient, ASegmentIsGivenOnceAndTakenFromWhomItWasGivenTo) {
  Serve();
  RawConnection raw(socket());
  RawConnection another(socket());
  ASSERT_TRUE(raw.Hello() && another.Hello());
  for (const uint64_t ticket : {1, 2, 3}) {
    ASSERT_TRUE(SendBeginRestore(raw, ticket));
    ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_RESTORE);
  }
  EXPECT_EQ(server_->counts().granted_segments, 1u);
  for (uint32_t segment = 0; segment < 10; ++segment) odd_->ReleaseSegment(segment);
  ASSERT_TRUE(Eventually([&] { return server_->counts().granted_segments == 0; }));
  EXPECT_EQ(raw.Receive()->header().type, wire::SEGMENT_REVOKE);
  ASSERT_TRUE(another.Request(wire::STATUS, 1, wire::Empty()));
  EXPECT_EQ(another.Receive()->header().type, wire::STATUS) << "it was given none";
}

// ---- before the greeting ---------------------------------------------------------

// With a request that a worker would take, and with one that the server's thread would.
class BeforeTheGreeting : public UntrustedClient,
                          public ::testing::WithParamInterface<wire::MessageType> {};

TEST_P(BeforeTheGreeting, NothingIsTaken) {
  Serve();
  odd_->Hold();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Request(wire::HELLO, 0, HelloOf("raw")));
  ASSERT_TRUE(Eventually([&] { return odd_->waiting() == 1; }));
  ASSERT_TRUE(GetParam() == wire::STATUS ? raw.Request(wire::STATUS, 1, wire::Empty())
                                         : SendBeginRestore(raw, 1));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("before the hello"));
  // The tenant comes after the end, and opens nothing.
  odd_->LetGo();
  EXPECT_TRUE(raw.SeesEnd());
  SendBeginRestore(raw, 2);
  EXPECT_TRUE(Eventually([&] { return server_->counts().connections == 0; }));
  EXPECT_TRUE(LeftNothing());
}
INSTANTIATE_TEST_SUITE_P(Types, BeforeTheGreeting,
                         ::testing::Values(wire::STATUS, wire::BEGIN_RESTORE));

TEST_F(UntrustedClient, ASecondHelloEndsTheConnection) {
  Serve();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  EXPECT_THAT(MessageOf(Ask(raw, wire::HELLO, HelloOf("raw"))), HasSubstr("after the hello"));
  EXPECT_TRUE(raw.SeesEnd());
}

// Both ends of a Unix socket are this process here: the user of one thread is changed.
TEST_F(UntrustedClient, AnotherUsersProcessIsRefused) {
  constexpr uid_t kNobody = 65534;
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  Serve();
  // As if the folder were everybody's.
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(socket().c_str(), 0666), 0);
  absl::Status refused;
  std::thread([&] {
    ASSERT_EQ(::syscall(SYS_setresuid, -1, kNobody, -1), 0);
    RawConnection raw(socket());
    refused = Ask(raw, wire::HELLO, HelloOf("raw"));
    EXPECT_TRUE(raw.SeesEnd());
  }).join();
  EXPECT_TRUE(absl::IsPermissionDenied(refused)) << refused;
  EXPECT_THAT(MessageOf(refused), HasSubstr("user 65534 belongs to no tenant"));
}

// ---- tickets that have not begun -------------------------------------------------

TEST_F(UntrustedClient, ATicketThatHasNotBegunCannotBeUsed) {
  Serve();
  RawConnection raw(socket());
  ASSERT_NO_FATAL_FAILURE(BeginBoth(raw));
  wire::TicketRef save;
  save.set_ticket(1);
  EXPECT_THAT(MessageOf(Ask(raw, wire::COMMIT, save)), HasSubstr("no save has ticket 1"));
  wire::CutRequest cut;
  cut.set_ticket(2);
  EXPECT_THAT(MessageOf(Ask(raw, wire::CUT, cut)), HasSubstr("no restore has ticket 2"));
  wire::PageRead read;
  read.set_ticket(2);
  EXPECT_THAT(MessageOf(Ask(raw, wire::PAGE_READ, read)), HasSubstr("no restore has ticket 2"));
  wire::PageWrite write;
  write.set_ticket(1);
  EXPECT_THAT(MessageOf(Ask(raw, wire::PAGE_WRITE, write)), HasSubstr("no save has ticket 1"));
  EXPECT_TRUE(raw.SeesEnd()) << "there is no reply that could carry the error";
  raw.Close();
  EXPECT_TRUE(Eventually([&] { return server_->counts().tickets == 0; }));
  odd_->LetGo();
  EXPECT_TRUE(LeftNothing());
}

TEST_F(UntrustedClient, DamageOfARestoreThatHasNotBegunIsNotReported) {
  Serve();
  RawConnection raw(socket());
  ASSERT_NO_FATAL_FAILURE(BeginBoth(raw));
  wire::DamageReport report;
  report.set_ticket(2);
  EXPECT_THAT(MessageOf(Ask(raw, wire::REPORT_DAMAGE, report)),
              HasSubstr("no restore has ticket 2"));
}

TEST_F(UntrustedClient, ATicketThatIsReleasedBeforeItBeginsLeavesNothing) {
  Serve();
  RawConnection raw(socket());
  ASSERT_NO_FATAL_FAILURE(BeginBoth(raw));
  for (const uint64_t ticket : {1, 2}) {
    wire::TicketRef ref;
    ref.set_ticket(ticket);
    ASSERT_TRUE(raw.Request(wire::RELEASE, 0, ref));
  }
  ASSERT_TRUE(Eventually([&] { return server_->counts().tickets == 0; }));
  odd_->LetGo();
  for (int i = 0; i < 2; ++i) {
    const absl::Status late = raw.ReceiveError();
    EXPECT_TRUE(absl::IsUnavailable(late)) << late;
    EXPECT_THAT(MessageOf(late), HasSubstr("was released"));
  }
  EXPECT_TRUE(LeftNothing());
}

// Page writes and reads are checked against the ticket's layout: of the first they would reach past
// the slots of the second.
TEST_F(UntrustedClient, WhatBeginsAfterItsReleaseIsNotTheNextTicketOfThatNumber) {
  Serve();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  odd_->Hold();
  wire::TicketRef ref;
  for (const uint64_t ticket : {1, 2}) {
    ref.set_ticket(ticket);
    const auto begin = [&](uint64_t request) {
      return ticket == 1 ? SendBeginSave(raw, ticket, {.request = request})
                         : SendBeginRestore(raw, ticket, {.request = request});
    };
    ASSERT_TRUE(begin(10 * ticket) && raw.Request(wire::RELEASE, 0, ref) && begin(10 * ticket + 1));
  }
  ASSERT_TRUE(Eventually([&] { return odd_->held() == 4; }));
  odd_->LetGo();
  for (const uint64_t request : {10, 11, 20, 21}) {
    SCOPED_TRACE(request);
    const auto answer = raw.Receive();
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->header().request_id, request);
    EXPECT_EQ(answer->header().type == wire::ERROR, request % 10 == 0);
  }
  EXPECT_EQ(server_->counts().tickets, 2u);
  EXPECT_EQ(store_->GetStatus().open_tickets, 2u) << "what was released is gone";
}

TEST_F(UntrustedClient, ProgressOfARestoreThatHasEndedIsNotTheNextOnes) {
  odd_->late_progress = true;
  Serve();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(SendBeginRestore(raw, 1));
  ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_RESTORE);
  wire::TicketRef ref;
  ref.set_ticket(1);
  ASSERT_TRUE(raw.Request(wire::RELEASE, 0, ref) && SendBeginRestore(raw, 1));
  ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_RESTORE);
  ASSERT_TRUE(raw.Request(wire::STATUS, 2, wire::Empty()));
  ASSERT_EQ(raw.Receive()->header().type, wire::STATUS);
  EXPECT_EQ(raw.progress_frames(), 0);
}

TEST_F(UntrustedClient, ARestoreThatBeginsTooLateLeavesNothing) {
  Serve();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  odd_->Hold();
  ASSERT_TRUE(SendBeginRestore(raw, 1, {.time_limit_us = 100'000}));
  const absl::Status late = raw.ReceiveError();
  EXPECT_TRUE(absl::IsDeadlineExceeded(late)) << late;
  odd_->LetGo();
  EXPECT_TRUE(LeftNothing());
}

// Else a restore that waits for room would be answered when nobody hears it.
TEST_F(UntrustedClient, ARestoreWaitsForRoomNoLongerThanItsRequestMayTake) {
  Serve();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(SendBeginRestore(raw, 1, {.time_limit_us = 20'000'000}));
  ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_RESTORE);
  EXPECT_GT(odd_->restore_deadline, absl::ZeroDuration());
  EXPECT_LE(odd_->restore_deadline, absl::Seconds(18));
}

TEST_F(UntrustedClient, ANumberIsOneTicketsWhateverItsKind) {
  Serve();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(SendBeginSave(raw, 1));
  ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_SAVE);
  ASSERT_TRUE(SendBeginRestore(raw, 2));
  ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_RESTORE);
  ASSERT_TRUE(SendBeginRestore(raw, 1));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("ticket 1 is in use"));
  ASSERT_TRUE(SendBeginSave(raw, 2));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("ticket 2 is in use"));
  wire::BeginImportRequest import;
  import.set_ticket(2);
  import.set_layout(wire::IdBytes(pattern_.fingerprint()));
  EXPECT_THAT(MessageOf(Ask(raw, wire::BEGIN_IMPORT, import)), HasSubstr("ticket 2 is in use"));
  EXPECT_EQ(server_->counts().tickets, 2u);
}

// The store seals what is in the slots then.
TEST_F(UntrustedClient, AWriteWhileTheCommitIsUnderWayChangesNothing) {
  Serve();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(SendBeginSave(raw, 1));
  ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_SAVE);
  wire::PageWrite write;
  write.set_ticket(1);
  wire::TicketRef ref;
  ref.set_ticket(1);
  odd_->Hold();
  ASSERT_TRUE(raw.Request(wire::PAGE_WRITE, 0, write, std::string(64, 'p')) &&
              raw.Request(wire::COMMIT, 2, ref) &&
              raw.Request(wire::PAGE_WRITE, 0, write, std::string(64, 'q')) &&
              raw.Request(wire::STATUS, 3, wire::Empty()));
  ASSERT_EQ(raw.Receive()->header().type, wire::STATUS) << "all has been seen";
  odd_->LetGo();
  ASSERT_EQ(raw.Receive()->header().type, wire::COMMIT);
  ASSERT_TRUE(raw.BeginRestore(4, "t", pattern_.fingerprint()));
  wire::PageRead read;
  read.set_ticket(4);
  read.set_length(64);
  ASSERT_TRUE(raw.Request(wire::PAGE_READ, 5, read));
  const auto page = raw.Receive();
  ASSERT_TRUE(page.has_value());
  ASSERT_EQ(page->header().type, wire::PAGE_READ);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(page->raw().data()), page->raw().size()),
            std::string(64, 'p'));
}

// ---- more than there is room for -------------------------------------------------

// Longer prompts than are matched at once wait for a worker, as imports do.
TEST_F(UntrustedClient, WhatFindsNoWorkerIsRefusedAndLeavesNothing) {
  Serve({.worker_threads = 1, .max_queued_calls = 1});
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  odd_->Hold();
  ASSERT_TRUE(raw.Request(wire::VERIFY, 1, wire::VerifyRequest()));
  ASSERT_TRUE(Eventually([&] { return odd_->waiting() == 1; }));
  ASSERT_TRUE(raw.Request(wire::STATUS, 2, wire::Empty()));
  constexpr uint64_t kLong = 16'385;
  wire::BeginImportRequest import;
  import.set_ticket(5);
  import.set_layout(wire::IdBytes(pattern_.fingerprint()));
  ASSERT_TRUE(raw.Request(wire::STATUS, 3, wire::Empty()));
  ASSERT_TRUE(SendBeginSave(raw, 3, {.token_count = kLong}) &&
              SendBeginRestore(raw, 4, {.tokens = TokenBytes(78, kLong)}));
  ASSERT_TRUE(raw.Request(wire::BEGIN_IMPORT, 5, import));
  for (const char* what : {"status", "begin save", "begin restore", "begin import"}) {
    const absl::Status refused = raw.ReceiveError();
    EXPECT_TRUE(absl::IsResourceExhausted(refused)) << what << ": " << refused;
    EXPECT_THAT(MessageOf(refused), HasSubstr(what));
  }
  EXPECT_EQ(server_->counts().tickets, 0u);
  RawConnection another(socket());
  EXPECT_THAT(MessageOf(Ask(another, wire::HELLO, HelloOf("raw"))),
              HasSubstr("hello: 1 calls are waiting already"));
  EXPECT_TRUE(another.SeesEnd());
  odd_->LetGo();
  for (const wire::MessageType type : {wire::VERIFY, wire::STATUS}) {
    const auto answer = raw.Receive();
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->header().type, type);
  }
}

TEST_F(UntrustedClient, NothingOfARequestComesAfterItsAnswer) {
  odd_->late_progress = true;
  Serve();
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  odd_->Hold();
  ASSERT_TRUE(raw.SendFrame({.type = wire::VERIFY, .request_id = 1, .time_limit_us = 100'000}, ""));
  const absl::Status late = raw.ReceiveError();
  EXPECT_TRUE(absl::IsDeadlineExceeded(late)) << late;
  odd_->LetGo();
  ASSERT_TRUE(Eventually([&] { return odd_->waiting() == 0; }));
  ASSERT_TRUE(raw.Request(wire::STATUS, 2, wire::Empty()));
  EXPECT_EQ(raw.Receive()->header().type, wire::STATUS);
}

TEST_F(UntrustedClient, ACallThatWaitsTooLongForAWorkerIsNotRun) {
  Serve({.worker_threads = 1});
  RawConnection raw(socket());
  ASSERT_TRUE(raw.Hello());
  odd_->Hold();
  ASSERT_TRUE(raw.Request(wire::VERIFY, 1, wire::VerifyRequest()));
  ASSERT_TRUE(Eventually([&] { return odd_->waiting() == 1; }));
  wire::SessionRef ref;
  ref.set_session("s");
  ASSERT_TRUE(raw.SendFrame({.type = wire::DROP, .request_id = 2, .time_limit_us = 50'000},
                            ref.SerializeAsString()));
  const absl::Status late = raw.ReceiveError();
  EXPECT_TRUE(absl::IsDeadlineExceeded(late)) << late;
  odd_->LetGo();
  ASSERT_EQ(raw.Receive()->header().type, wire::VERIFY);
  ASSERT_TRUE(raw.Request(wire::STAT, 3, ref));
  EXPECT_EQ(raw.Receive()->header().type, wire::STAT) << "it was dropped after the client was told";
}

}  // namespace
}  // namespace turnkeep::testing
