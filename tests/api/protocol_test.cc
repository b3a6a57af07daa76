// What a client that does not keep to the protocol gets: an error or the end of its
// connection, and nobody else notices.
#include <memory>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/raw_connection.h"
#include "core/limits.h"
#include "core/status.h"
#include "testing/client_factory.h"
#include "testing/layouts.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

class Protocol : public ::testing::Test {
 protected:
  // Others are still served.
  void ExpectServing() {
    auto client = daemon_.UnixClient();
    ASSERT_TRUE(client);
    EXPECT_TRUE(client->Status().ok());
  }
  Fingerprint RegisterSmall() { return *daemon_.UnixClient()->RegisterLayout(SmallLayout()); }

  // A save of `tokens` tokens on `raw`; its tickets are up to the test.
  wire::BeginSaveRequest SaveRequestOf(uint64_t ticket, const Fingerprint& layout) {
    wire::BeginSaveRequest message;
    message.set_ticket(ticket);
    message.set_session("s" + std::to_string(ticket));
    message.set_layout(wire::IdBytes(layout));
    message.set_space_deadline_us(1'000'000);
    return message;
  }

  DaemonHarness daemon_{HarnessOptions{.host_bytes = 16 * kMiB,
                                       .server = {.max_connections = 8,
                                                  .max_tickets_per_connection = 4,
                                                  .max_outbound_bytes = 1 * kMiB,
                                                  .max_frame_bytes = 4 * kMiB,
                                                  .hello_timeout = absl::Milliseconds(300)}}};
};

std::string Tokens(size_t count, uint32_t first = 1) {
  std::vector<uint32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = first + static_cast<uint32_t>(i);
  return std::string(reinterpret_cast<const char*>(tokens.data()), count * 4);
}

TEST_F(Protocol, WrongMagicEndsTheConnection) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.SendBytes(std::string(64, 'x')));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("magic"));
  EXPECT_TRUE(raw.SeesEnd());
  ExpectServing();
}

TEST_F(Protocol, WrongVersionIsAnsweredNamingBoth) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.SendFrame({.version = 7, .type = wire::HELLO}, ""));
  const absl::Status error = raw.ReceiveError();
  EXPECT_TRUE(absl::IsFailedPrecondition(error));
  EXPECT_THAT(MessageOf(error), HasSubstr("version 7"));
  EXPECT_THAT(MessageOf(error), HasSubstr("versions 1 to 1"));
  EXPECT_TRUE(raw.SeesEnd());
}

TEST_F(Protocol, HelloOfANewerClientIsAnsweredNamingBoth) {
  RawConnection raw(daemon_.socket_path());
  wire::Hello hello;
  hello.set_min_version(3);
  hello.set_max_version(5);
  ASSERT_TRUE(raw.Request(wire::HELLO, 0, hello));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("3 to 5"));
  EXPECT_TRUE(raw.SeesEnd());
}

TEST_F(Protocol, OversizedFrameEndsTheConnection) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(raw.SendBytes(wire::EncodeFrameHead({.type = wire::LIST}, "", 5 * kMiB)));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("the limit is 4194304"));
  EXPECT_TRUE(raw.SeesEnd());
  ExpectServing();
}

TEST_F(Protocol, HalfAFrameAndAHangUpLeaveNothing) {
  const uint64_t before = daemon_.server().counts().connections;
  for (const size_t cut : {1, 20, 39, 41, 60}) {
    RawConnection raw(daemon_.socket_path());
    ASSERT_TRUE(raw.Hello());
    const std::string frame = wire::EncodeFrameHead({.type = wire::LIST}, std::string(30, 'p'), 0);
    ASSERT_TRUE(raw.SendBytes(std::string_view(frame).substr(0, cut)));
  }
  EXPECT_TRUE(Eventually([&] { return daemon_.server().counts().connections == before; }));
  ExpectServing();
}

TEST_F(Protocol, RandomBytesNeverHurt) {
  const uint64_t seed = 7;
  std::mt19937_64 random(seed);
  SCOPED_TRACE(fmt::format("seed {}", seed));
  for (int round = 0; round < 100; ++round) {
    RawConnection raw(daemon_.socket_path());
    if (round % 2 == 0) {
      ASSERT_TRUE(raw.Hello());
    }
    std::string payload(random() % 300, '\0');
    for (char& c : payload) c = static_cast<char>(random());
    // Whole frames of every type with random contents, so that the parsers are reached.
    const auto type = static_cast<uint16_t>(random() % 75);
    raw.SendFrame({.type = type, .request_id = random()}, payload, Tokens(random() % 40));
    if (round % 3 == 0) raw.SendBytes(payload);
    raw.Receive();
  }
  EXPECT_TRUE(Eventually([&] { return daemon_.server().counts().tickets == 0; }));
  ExpectServing();
}

TEST_F(Protocol, RequestBeforeHelloEndsTheConnection) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Request(wire::STATUS, 1, wire::Empty()));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("before the hello"));
  EXPECT_TRUE(raw.SeesEnd());
}

TEST_F(Protocol, SilenceInsteadOfHelloIsEnded) {
  RawConnection raw(daemon_.socket_path());
  EXPECT_TRUE(raw.SeesEnd());
}

TEST_F(Protocol, UnknownTypeEndsTheConnection) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(raw.SendFrame({.type = 777, .request_id = 1}, ""));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("type 777"));
  EXPECT_TRUE(raw.SeesEnd());
}

TEST_F(Protocol, BadPayloadIsAnErrorAndTheConnectionGoesOn) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(raw.SendFrame({.type = wire::STAT, .request_id = 4}, "\xff\xff\xff"));
  EXPECT_TRUE(absl::IsInvalidArgument(raw.ReceiveError()));
  ASSERT_TRUE(raw.Request(wire::STATUS, 5, wire::Empty()));
  const auto reply = raw.Receive();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->header().type, wire::STATUS);
  EXPECT_EQ(reply->header().request_id, 5);
}

TEST_F(Protocol, UnknownTicketsAreErrors) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  wire::TicketRef ref;
  ref.set_ticket(99);
  ASSERT_TRUE(raw.Request(wire::COMMIT, 1, ref));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("no save has ticket 99"));
  wire::CutRequest cut;
  cut.set_ticket(99);
  ASSERT_TRUE(raw.Request(wire::CUT, 2, cut));
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("no restore has ticket 99"));
  wire::PageRead read;
  read.set_ticket(99);
  ASSERT_TRUE(raw.Request(wire::PAGE_READ, 3, read));
  EXPECT_TRUE(absl::IsInvalidArgument(raw.ReceiveError()));
}

TEST_F(Protocol, SecondCommitIsAnError) {
  const Fingerprint layout = RegisterSmall();
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(raw.Request(wire::BEGIN_SAVE, 1, SaveRequestOf(1, layout), Tokens(64)));
  ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_SAVE);
  wire::TicketRef ref;
  ref.set_ticket(1);
  ASSERT_TRUE(raw.Request(wire::COMMIT, 2, ref) && raw.Request(wire::COMMIT, 3, ref));
  std::vector<absl::Status> answers;
  for (int i = 0; i < 2; ++i) {
    const auto frame = raw.Receive();
    ASSERT_TRUE(frame);
    if (frame->header().request_id != 3) continue;
    const auto error = wire::Parse<wire::Error>(frame->payload());
    EXPECT_TRUE(absl::IsFailedPrecondition(wire::FromWire(*error)));
    answers.push_back(wire::FromWire(*error));
  }
  EXPECT_EQ(answers.size(), 1u);
}

TEST_F(Protocol, TicketNumberInUseIsAnError) {
  const Fingerprint layout = RegisterSmall();
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  for (int i = 1; i <= 2; ++i) {
    ASSERT_TRUE(raw.Request(wire::BEGIN_SAVE, i, SaveRequestOf(1, layout), Tokens(64)));
  }
  ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_SAVE);
  EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("ticket 1 is in use"));
  EXPECT_EQ(daemon_.server().counts().tickets, 1);
}

TEST_F(Protocol, TicketsOfAConnectionAreBounded) {
  const Fingerprint layout = RegisterSmall();
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  for (uint64_t i = 1; i <= 5; ++i) {
    ASSERT_TRUE(raw.Request(wire::BEGIN_SAVE, i, SaveRequestOf(i, layout), Tokens(64, i * 1000)));
  }
  for (int i = 1; i <= 4; ++i) ASSERT_EQ(raw.Receive()->header().type, wire::BEGIN_SAVE);
  const absl::Status error = raw.ReceiveError();
  EXPECT_TRUE(absl::IsResourceExhausted(error)) << error;
  EXPECT_THAT(MessageOf(error), HasSubstr("4 tickets"));
  raw.Close();
  EXPECT_TRUE(Eventually([&] { return daemon_.server().counts().tickets == 0; }));
}

TEST_F(Protocol, ConnectionsAreBounded) {
  std::vector<std::unique_ptr<RawConnection>> open;
  for (int i = 0; i < 8; ++i) {
    open.push_back(std::make_unique<RawConnection>(daemon_.socket_path()));
    ASSERT_TRUE(open.back()->Hello());
  }
  RawConnection one_more(daemon_.socket_path());
  EXPECT_FALSE(one_more.Hello()) << "ended before it could ask, not for its silence";
  open.pop_back();
  EXPECT_TRUE(Eventually([&] { return daemon_.server().counts().connections == 7; }));
  ExpectServing();
}

TEST_F(Protocol, SlowReaderIsDisconnectedAndItsTicketsLiveUntilItHangsUp) {
  const Fingerprint layout = RegisterSmall();
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(raw.Request(wire::BEGIN_SAVE, 1, SaveRequestOf(1, layout), Tokens(64)));
  ASSERT_TRUE(raw.Receive());
  // Asks for more than it reads.
  wire::LayoutRef ref;
  ref.set_fingerprint(wire::IdBytes(layout));
  uint64_t id = 10;
  const bool ended = Eventually([&] {
    for (int i = 0; i < 100; ++i) raw.Request(wire::STATUS, id++, wire::Empty());
    return daemon_.server().counts().disconnects > 0;
  });
  EXPECT_TRUE(ended);
  // It may still be writing into the slot of its save.
  EXPECT_EQ(daemon_.server().counts().tickets, 1);
  EXPECT_TRUE(raw.SeesEnd());
  EXPECT_EQ(daemon_.server().counts().tickets, 1);
  raw.Close();
  EXPECT_TRUE(Eventually([&] { return daemon_.server().counts().tickets == 0; }));
  EXPECT_EQ(daemon_.server().counts().outbound_bytes, 0);
  ExpectServing();
}

// Each connection has its own limit; what all of them have together has one, too.
TEST(ProtocolTickets, OfAllClientsTogetherAreBounded) {
  DaemonHarness daemon(HarnessOptions{.host_bytes = 16 * kMiB});
  const Fingerprint layout = *daemon.UnixClient()->RegisterLayout(SmallLayout());
  std::vector<std::unique_ptr<RawConnection>> clients;
  wire::BeginRestoreRequest begin;
  begin.set_session("nobody");  // a miss is a ticket, too
  begin.set_layout(wire::IdBytes(layout));
  begin.set_max_tokens(1);
  begin.set_deadline_us(1'000'000);
  for (uint32_t ticket = 0; ticket <= kMaxTickets; ++ticket) {
    const uint32_t of_client = ticket % kMaxTicketsPerConnection;
    if (of_client == 0) {
      clients.push_back(std::make_unique<RawConnection>(daemon.socket_path()));
      ASSERT_TRUE(clients.back()->Hello());
    }
    begin.set_ticket(of_client + 1);
    ASSERT_TRUE(clients.back()->Request(wire::BEGIN_RESTORE, of_client + 1, begin));
    if (ticket < kMaxTickets) {
      const auto plan = clients.back()->Receive();
      ASSERT_TRUE(plan.has_value());
      ASSERT_EQ(plan->header().type, wire::BEGIN_RESTORE) << ticket;
    } else {
      const absl::Status refused = clients.back()->ReceiveError();
      EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
      EXPECT_THAT(MessageOf(refused), HasSubstr("the limit is 4096"));
    }
  }
  // What ends makes room: one that is released, and all of a client that goes.
  wire::TicketRef ref;
  ref.set_ticket(1);
  ASSERT_TRUE(clients[1]->Request(wire::RELEASE, 0, ref));
  EXPECT_TRUE(clients[1]->BeginRestore(1, "nobody", layout));
  clients[0].reset();
  ASSERT_TRUE(Eventually(
      [&] { return daemon.server().counts().tickets == kMaxTickets - kMaxTicketsPerConnection; }));
  RawConnection another(daemon.socket_path());
  ASSERT_TRUE(another.Hello());
  EXPECT_TRUE(another.BeginRestore(1, "nobody", layout));
}

}  // namespace
}  // namespace turnkeep::testing
