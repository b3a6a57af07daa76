// What calls that wait for a worker may hold in the daemon's memory, as clients find it that send
// and send while every worker is blocked.
#include <memory>
#include <string>
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

constexpr uint64_t kLimit = 1 * kMiB;
constexpr uint32_t kFrame = 256 * kKiB;
constexpr uint64_t kUnit = 64 * kKiB;  // of a call of these tests, 16 to the limit

class QueuedCalls : public OddStoreTest {
 protected:
  absl::Status Serve(ServerOptions options) {
    options.socket_path = socket();
    options.worker_threads = 1;
    TK_ASSIGN_OR_RETURN(server_, Server::Start(*odd_, std::move(options)));
    return absl::OkStatus();
  }
  // With so many clients, and its only worker blocked until odd_->LetGo(). (A hello needs one,
  // too.)
  void ServeBlocked(size_t clients, uint64_t limit = kLimit) {
    ASSERT_TRUE(Serve({.max_frame_bytes = kFrame, .max_queued_bytes = limit}).ok());
    blocker_ = std::make_unique<RawConnection>(socket());
    ASSERT_TRUE(blocker_->Hello());
    while (clients_.size() < clients) {
      clients_.push_back(std::make_unique<RawConnection>(socket()));
      ASSERT_TRUE(clients_.back()->Hello());
    }
    Block();
    EXPECT_EQ(server_->counts().queued_bytes, 0u) << "what runs does not wait";
  }
  void Block() {
    odd_->Hold();
    ASSERT_TRUE(blocker_->Request(wire::VERIFY, 1, wire::VerifyRequest()));
    ASSERT_TRUE(Eventually([&] { return odd_->waiting() == 1; }));
  }

  static bool SendCall(RawConnection& raw, uint64_t bytes = kUnit) {
    return raw.SendFrame({.type = wire::STATUS, .request_id = 1},
                         std::string(bytes - wire::kFrameHeaderBytes, 'p'));
  }
  // Sends `count` calls of kUnit bytes; how many of them wait. The others are refused.
  uint64_t Flood(RawConnection& raw, uint64_t count) {
    const uint64_t before = server_->counts().queued_bytes;
    for (uint64_t i = 0; i < count; ++i) EXPECT_TRUE(SendCall(raw));
    wire::TicketRef nobodys;
    EXPECT_TRUE(raw.Request(wire::COMMIT, 2, nobodys));  // needs no worker: the last answer
    uint64_t refused = 0;
    for (;; ++refused) {
      const absl::Status error = raw.ReceiveError();
      if (!absl::IsResourceExhausted(error)) {
        EXPECT_TRUE(absl::IsInvalidArgument(error)) << error;
        break;
      }
    }
    const uint64_t queued = (server_->counts().queued_bytes - before) / kUnit;
    EXPECT_EQ(queued + refused, count);
    return queued;
  }

  std::unique_ptr<RawConnection> blocker_;
  std::vector<std::unique_ptr<RawConnection>> clients_;
};

TEST_F(QueuedCalls, OneConnectionsHoldNoMoreThanTheyLeaveFree) {
  ServeBlocked(2);
  RawConnection& hasty = *clients_[0];
  RawConnection& honest = *clients_[1];
  for (int i = 0; i < 9; ++i) ASSERT_TRUE(SendCall(hasty));
  const absl::Status refused = hasty.ReceiveError();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(MessageOf(refused),
              HasSubstr("status: 65536 bytes cannot wait: 524288 of this connection and 524288 of "
                        "all are waiting already, the limit is 1048576"));
  EXPECT_EQ(server_->counts().queued_bytes, 8 * kUnit);
  ASSERT_TRUE(SendCall(honest, kFrame));
  ASSERT_TRUE(Eventually([&] { return server_->counts().queued_bytes == 8 * kUnit + kFrame; }))
      << "no frame is too large beside another client's";
  odd_->LetGo();
  for (int i = 0; i < 8; ++i) ASSERT_EQ(hasty.Receive()->header().type, wire::STATUS);
  ASSERT_EQ(honest.Receive()->header().type, wire::STATUS);
  EXPECT_EQ(server_->counts().queued_bytes, 0u);
  Block();
  EXPECT_EQ(Flood(hasty, 9), 8u) << "what has run counts no more";
}

TEST_F(QueuedCalls, ThoseOfAllConnectionsStayWithinTheLimit) {
  ServeBlocked(7);
  size_t client = 0;
  for (const uint64_t room : {8, 4, 2, 1, 0, 0}) {
    EXPECT_EQ(Flood(*clients_[client++], 20), room) << client;
  }
  EXPECT_EQ(server_->counts().queued_bytes, 15 * kUnit);
  ASSERT_TRUE(clients_[6]->Request(wire::STATUS, 1, wire::Empty()));
  EXPECT_TRUE(Eventually([&] { return server_->counts().queued_bytes > 15 * kUnit; }))
      << "what is small has room";
}

// A call whose connection has ended is still to be run.
TEST_F(QueuedCalls, WhatAClientLeavesWaitingStillCounts) {
  ServeBlocked(5);
  size_t client = 0;
  for (const uint64_t room : {8, 4, 2, 1, 0}) {
    EXPECT_EQ(Flood(*clients_[client], 20), room);
    clients_[client++]->Close();
    ASSERT_TRUE(Eventually([&] { return server_->counts().connections == 6 - client; }));
  }
  EXPECT_EQ(server_->counts().queued_bytes, 15 * kUnit);
  odd_->LetGo();
  EXPECT_TRUE(Eventually([&] { return server_->counts().queued_bytes == 0; }));
}

// Each hash of one byte is a string in memory.
TEST_F(QueuedCalls, ACallBesideWhichNothingWaitsIsNeverTooMuch) {
  ServeBlocked(2, 2 * kFrame);
  RawConnection& raw = *clients_[0];
  RawConnection& another = *clients_[1];
  wire::BeginSaveRequest save;
  save.set_ticket(1);
  save.set_session("t");
  save.set_layout(wire::IdBytes(pattern_.fingerprint()));
  for (int i = 0; i < 50'000; ++i) save.mutable_prompt()->add_block_hashes("h");
  save.mutable_prompt()->set_hashed_token_count(50'000 * 64);
  ASSERT_TRUE(raw.Request(wire::BEGIN_SAVE, 1, save));
  ASSERT_TRUE(Eventually([&] { return server_->counts().tickets == 1; }));
  EXPECT_GT(server_->counts().queued_bytes, 50'000 * sizeof(BlockHash) + 300'000);
  ASSERT_TRUE(another.Request(wire::STATUS, 1, wire::Empty()));
  const absl::Status refused = another.ReceiveError();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  odd_->LetGo();
  const auto answer = raw.Receive();
  ASSERT_TRUE(answer.has_value()) << "of the store, whatever it says of such a save";
  EXPECT_EQ(answer->header().request_id, 1u);
  EXPECT_EQ(server_->counts().queued_bytes, 0u);
}

TEST_F(QueuedCalls, TicketsForWhichThereIsNoRoomLeaveNothing) {
  ServeBlocked(1);
  RawConnection& raw = *clients_[0];
  ASSERT_EQ(Flood(raw, 8), 8u);
  const std::string tokens(16'385 * sizeof(uint32_t), 't');
  const std::string layout = wire::IdBytes(pattern_.fingerprint());
  wire::BeginSaveRequest save;
  save.set_ticket(1);
  save.set_layout(layout);
  wire::BeginRestoreRequest restore;
  restore.set_ticket(2);
  restore.set_layout(layout);
  wire::BeginImportRequest import;
  import.set_ticket(3);
  import.set_layout(layout);
  ASSERT_TRUE(raw.Request(wire::BEGIN_SAVE, 1, save, tokens) &&
              raw.Request(wire::BEGIN_RESTORE, 2, restore, tokens) &&
              raw.Request(wire::BEGIN_IMPORT, 3, import));
  for (const char* what : {"begin save: ", "begin restore: ", "begin import: "}) {
    const absl::Status refused = raw.ReceiveError();
    EXPECT_TRUE(absl::IsResourceExhausted(refused)) << what << refused;
    EXPECT_THAT(MessageOf(refused), HasSubstr(what));
    EXPECT_THAT(MessageOf(refused), HasSubstr("the limit is 1048576"));
  }
  EXPECT_EQ(server_->counts().tickets, 0u);
}

// The chunks and slices of an import as the objects that wait.
TEST_F(QueuedCalls, AnImportHoldsWhatItBecame) {
  ServeBlocked(1);
  RawConnection& raw = *clients_[0];
  wire::BeginImportRequest import;
  import.set_ticket(3);
  import.set_layout(wire::IdBytes(pattern_.fingerprint()));
  for (int i = 0; i < 1000; ++i) import.add_slices();
  wire::ImportedChunk* chunk = import.add_chunks();
  chunk->set_foreign_id(std::string(32, 'i'));
  chunk->set_foreign_parent(std::string(32, 'p'));
  ASSERT_TRUE(raw.Request(wire::BEGIN_IMPORT, 3, import));
  ASSERT_TRUE(Eventually([&] { return server_->counts().tickets == 1; }));
  EXPECT_EQ(server_->counts().queued_bytes,
            import.ByteSizeLong() + sizeof(ImportedChunk) + 1000 * sizeof(ImportRequest::Slice));
}

TEST_F(QueuedCalls, ALimitUnderTwoFramesIsRefused) {
  const absl::Status refused =
      Serve({.max_frame_bytes = kFrame, .max_queued_bytes = 2 * kFrame - 1});
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(MessageOf(refused), HasSubstr("max_queued_bytes: 524287 is outside 524288 to"));
}

}  // namespace
}  // namespace turnkeep::testing
