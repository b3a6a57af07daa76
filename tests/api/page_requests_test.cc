// PAGE_READ, PAGE_WRITE, CUT and REPORT_DAMAGE of a client that asks for what is not its own: bytes
// outside a page would be those of another chunk in the segment.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/raw_connection.h"
#include "api/turnkeep.pb.h"
#include "api/wire_messages.h"
#include "core/chunk_header.h"
#include "core/status.h"
#include "disk_tier/testing/fault_block_device.h"
#include "testing/client_factory.h"
#include "testing/eventually.h"
#include "testing/kv_pattern.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kPageBytes = 16 * kKiB;

// A restore (ticket 1) and a save (ticket 2) of sessions of two chunks, of four layers.
class PageRequests : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto client = daemon_.UnixClient();
    ASSERT_TRUE(client->RegisterLayout(pattern_.layout()).ok());
    ASSERT_TRUE(SaveAll(*client, pattern_, {.session = "s", .context = &context_}).ok());
    ASSERT_TRUE(raw_.Hello());
    ASSERT_TRUE(raw_.BeginRestore(1, "s", pattern_.fingerprint()));
    wire::BeginSaveRequest save;
    save.set_ticket(2);
    save.set_session("t");
    save.set_layout(wire::IdBytes(pattern_.fingerprint()));
    save.set_space_deadline_us(1'000'000);
    const std::vector<uint32_t> tokens = MakeTokens(77, 128);
    ASSERT_TRUE(raw_.Request(wire::BEGIN_SAVE, 2, save,
                             {reinterpret_cast<const char*>(tokens.data()), tokens.size() * 4}));
    ASSERT_EQ(raw_.Receive()->header().type, wire::BEGIN_SAVE);
  }
  static wire::PageRead PageOf(uint32_t span, uint32_t layer, uint64_t offset, uint32_t length) {
    wire::PageRead read;
    read.set_ticket(1);
    read.set_span(span);
    read.set_layer(layer);
    read.set_offset(offset);
    read.set_length(length);
    return read;
  }
  // OK when a page came back.
  absl::Status Read(const wire::PageRead& read) { return raw_.ReadPage(++request_, read); }
  struct Write {
    uint32_t chunk = 0;
    uint32_t layer = 0;
    uint64_t offset = 0;
    size_t bytes = kPageBytes;
    std::string digest = std::string(16, 'd');
  };
  // What the commit after it says: writes have no reply.
  absl::Status WriteAndCommit(const Write& write) {
    wire::PageWrite message;
    message.set_ticket(2);
    message.set_chunk(write.chunk);
    message.set_layer(write.layer);
    message.set_offset(write.offset);
    message.set_digest(write.digest);
    EXPECT_TRUE(raw_.Request(wire::PAGE_WRITE, 0, message, std::string(write.bytes, 'p')));
    wire::TicketRef ref;
    ref.set_ticket(2);
    EXPECT_TRUE(raw_.Request(wire::COMMIT, ++request_, ref));
    const auto frame = raw_.Receive();
    if (!frame) return absl::UnknownError("the connection ended");
    if (frame->header().type == wire::COMMIT) return absl::OkStatus();
    return wire::FromWire(*wire::Parse<wire::Error>(frame->payload()));
  }

  DaemonHarness daemon_;
  const KvPattern pattern_{BlockLayout()};  // four pages of 16 KiB
  const KvContext context_ = ContextOf(3, 128);
  RawConnection raw_{daemon_.socket_path()};
  uint64_t request_ = 10;
};

TEST_F(PageRequests, ReadsStayInsideTheirPage) {
  EXPECT_TRUE(Read(PageOf(1, 3, 0, kPageBytes)).ok());
  EXPECT_TRUE(Read(PageOf(1, 3, kPageBytes - 8, 8)).ok());
  EXPECT_TRUE(Read(PageOf(0, kHeaderLayer, 0, 256)).ok());
  const struct {
    const char* what;
    wire::PageRead read;
  } cases[] = {
      {"a span that is none", PageOf(2, 0, 0, 8)},
      {"a layer that is none", PageOf(0, 4, 0, 8)},
      {"past the page", PageOf(0, 0, kPageBytes - 8, 16)},
      {"past the header", PageOf(0, kHeaderLayer, 0, kPageBytes)},
      {"an offset past the page", PageOf(0, 0, kPageBytes + 1, 0)},
      {"an offset past all numbers", PageOf(0, 0, UINT64_MAX - 7, 16)},
      {"more than a piece", PageOf(0, 0, 0, 4 * kMiB + 1)},
  };
  for (const auto& one : cases) {
    const absl::Status read = Read(one.read);
    EXPECT_TRUE(absl::IsInvalidArgument(read)) << one.what << ": " << read;
  }
}

TEST_F(PageRequests, WhatIsNoPartOfTheRestoreAnyMoreIsNotRead) {
  wire::DamageReport report;
  report.set_ticket(1);
  report.set_span(1);
  report.set_layer(0);
  ASSERT_TRUE(raw_.Request(wire::REPORT_DAMAGE, 0, report));
  EXPECT_TRUE(absl::IsFailedPrecondition(Read(PageOf(1, 0, 0, 8))));
  EXPECT_TRUE(Read(PageOf(0, 0, 0, 8)).ok());
}

TEST_F(PageRequests, ReportsAndCutsOutsideTheRestoreAreRefused) {
  wire::CutRequest cut;
  cut.set_ticket(1);
  cut.set_layer(4);
  ASSERT_TRUE(raw_.Request(wire::CUT, ++request_, cut));
  EXPECT_TRUE(absl::IsInvalidArgument(raw_.ReceiveError()));
  wire::DamageReport report;
  report.set_ticket(1);
  report.set_span(2);
  ASSERT_TRUE(raw_.Request(wire::REPORT_DAMAGE, 0, report));
  EXPECT_THAT(MessageOf(raw_.ReceiveError()), HasSubstr("report damage: span 2"));
  EXPECT_TRUE(raw_.SeesEnd()) << "there is no reply that could carry the error";
}

TEST_F(PageRequests, AReportOfALayerThatIsNoneIsRefused) {
  wire::DamageReport report;
  report.set_ticket(1);
  report.set_layer(4);
  ASSERT_TRUE(raw_.Request(wire::REPORT_DAMAGE, 0, report));
  EXPECT_THAT(MessageOf(raw_.ReceiveError()), HasSubstr("report damage: span 0 layer 4"));
}

// A write that is refused fails its save, at the commit, and others' slots are as they were.
class PageWrites : public PageRequests, public ::testing::WithParamInterface<int> {};

TEST_P(PageWrites, StayInsideTheirPage) {
  const struct {
    const char* what;
    Write write;
  } cases[] = {
      {"a chunk that is none", {.chunk = 2}},
      {"a layer that is none", {.layer = 4}},
      {"the header", {.layer = kHeaderLayer}},
      {"past the page", {.offset = 8}},
      {"an offset past the page", {.offset = kPageBytes + 8, .bytes = 0}},
      {"an offset past all numbers", {.offset = UINT64_MAX - 7, .bytes = 16}},
      {"a digest of another length", {.digest = std::string(17, 'd')}},
  };
  const auto& one = cases[GetParam()];
  const absl::Status committed = WriteAndCommit(one.write);
  EXPECT_TRUE(absl::IsInvalidArgument(committed)) << one.what << ": " << committed;
  EXPECT_THAT(MessageOf(committed), HasSubstr("page write"));
  const auto client = daemon_.UnixClient();
  ASSERT_TRUE(client->RegisterLayout(pattern_.layout()).ok());
  EXPECT_FALSE(client->StatSession("t").ok());
  const auto restored = RestoreAndCheck(*client, pattern_, {.session = "s", .context = &context_});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->token_count, context_.size());
}
INSTANTIATE_TEST_SUITE_P(Cases, PageWrites, ::testing::Range(0, 7));

// Its slot is the store's by then, and other engines read it.
TEST_F(PageRequests, AWriteAfterTheCommitChangesNothing) {
  ASSERT_TRUE(WriteAndCommit({}).ok());
  ASSERT_TRUE(raw_.BeginRestore(3, "t", pattern_.fingerprint()));
  wire::PageWrite late;
  late.set_ticket(2);
  ASSERT_TRUE(raw_.Request(wire::PAGE_WRITE, 0, late, std::string(64, 'q')));
  wire::PageRead read = PageOf(0, 0, 0, 64);
  read.set_ticket(3);
  ASSERT_TRUE(raw_.Request(wire::PAGE_READ, ++request_, read));
  const auto frame = raw_.Receive();
  ASSERT_TRUE(frame.has_value());
  ASSERT_EQ(frame->header().type, wire::PAGE_READ);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(frame->raw().data()), frame->raw().size()),
            std::string(64, 'p'));
}

// The first that was refused counts: what is missing in its page would be bytes of the slot's last
// owner.
TEST_F(PageRequests, AWriteThatWasRefusedFailsItsSaveWhateverFollows) {
  wire::PageWrite refused;
  refused.set_ticket(2);
  refused.set_offset(kPageBytes);
  ASSERT_TRUE(raw_.Request(wire::PAGE_WRITE, 0, refused, std::string(64, 'q')));
  const absl::Status committed = WriteAndCommit({});
  EXPECT_TRUE(absl::IsInvalidArgument(committed)) << committed;
  EXPECT_THAT(MessageOf(committed), HasSubstr("64 bytes at 16384"));
}

// A client of ours would not ask.
TEST_F(PageRequests, APageOfAChunkThatTheEngineHasIsNotGiven) {
  const ChunkId chunk = daemon_.UnixClient()->ShowSession("s")->spans[0].chunk;
  wire::BeginRestoreRequest begin;
  begin.set_ticket(3);
  begin.set_session("s");
  begin.set_layout(wire::IdBytes(pattern_.fingerprint()));
  begin.set_max_tokens(1);
  begin.set_deadline_us(1'000'000);
  begin.set_held_chunks(wire::IdBytes(chunk) + "x");
  ASSERT_TRUE(raw_.Request(wire::BEGIN_RESTORE, ++request_, begin));
  const absl::Status malformed = raw_.ReceiveError();
  EXPECT_TRUE(absl::IsInvalidArgument(malformed)) << malformed;
  EXPECT_THAT(MessageOf(malformed), HasSubstr("held_chunks has 33 bytes"));
  begin.set_held_chunks(wire::IdBytes(chunk));
  ASSERT_TRUE(raw_.Request(wire::BEGIN_RESTORE, ++request_, begin));
  ASSERT_EQ(raw_.Receive()->header().type, wire::BEGIN_RESTORE);
  wire::PageRead page = PageOf(0, 0, 0, 1);
  page.set_ticket(3);
  const absl::Status refused = Read(page);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(MessageOf(refused), HasSubstr("the engine said that it has chunk"));
}

// Before a layer has arrived, its place holds what the slot held before: another chunk's bytes.
TEST(ColdPageRequests, ALayerIsNotGivenBeforeItHasArrived) {
  FaultBlockDevice* device = nullptr;
  DaemonHarness daemon({.disk_bytes = 64 * kMiB, .wrap_device = [&](auto below) {
                          auto faulty = std::make_unique<FaultBlockDevice>(std::move(below));
                          device = faulty.get();
                          return faulty;
                        }});
  const KvPattern pattern(BlockLayout());
  const KvContext context = ContextOf(3, 64);
  {
    const auto client = daemon.UnixClient();
    ASSERT_TRUE(client->RegisterLayout(pattern.layout()).ok());
    ASSERT_TRUE(SaveAll(*client, pattern, {.session = "s", .context = &context}).ok());
  }
  daemon.Stop();
  daemon.Start();
  device->Inject({.at = 0, .kind = FaultKind::kDelay, .for_good = true, .only = {DeviceOp::kRead}});
  RawConnection raw(daemon.socket_path());
  ASSERT_TRUE(raw.Hello());
  ASSERT_TRUE(raw.BeginRestore(1, "s", pattern.fingerprint()));
  uint64_t request = 1;
  const auto read = [&](uint32_t layer) {
    wire::PageRead page;
    page.set_ticket(1);
    page.set_layer(layer);
    page.set_length(64);
    return raw.ReadPage(++request, page);
  };
  for (const uint32_t layer : {0u, 3u, kHeaderLayer}) {
    const absl::Status early = read(layer);
    EXPECT_TRUE(absl::IsFailedPrecondition(early)) << early;
    EXPECT_THAT(MessageOf(early), HasSubstr("has not been restored"));
  }
  device->ClearFaults();
  device->Release();
  EXPECT_TRUE(Eventually([&] { return read(3).ok(); }));
  EXPECT_TRUE(read(kHeaderLayer).ok());
}

// Of a page of 8 MiB: of smaller ones the page's own end refuses what is longer than a piece.
class LargePages : public ::testing::Test {
 protected:
  static constexpr uint32_t kPieceBytes = 4 * kMiB;

  static KvLayout Layout() {
    KvLayout layout = BlockLayout("large pages");
    layout.layers.assign(1, LayerSpec::Full(128, 256, DType::kBFloat16));
    return layout;
  }
  void SetUp() override {
    ASSERT_EQ(GeometryOf(pattern_.layout(), 64).page_bytes[0], 2 * kPieceBytes);
    ASSERT_TRUE(client_->RegisterLayout(pattern_.layout()).ok());
    ASSERT_TRUE(SaveAll(*client_, pattern_, {.session = "s", .context = &context_}).ok());
    ASSERT_TRUE(raw_.Hello());
    ASSERT_TRUE(raw_.BeginRestore(1, "s", pattern_.fingerprint()));
  }
  static wire::PageRead PieceOf(uint64_t offset, uint32_t length) {
    wire::PageRead read;
    read.set_ticket(1);
    read.set_offset(offset);
    read.set_length(length);
    return read;
  }

  DaemonHarness daemon_{HarnessOptions{.host_bytes = 64 * kMiB, .host_segment_bytes = 32 * kMiB}};
  const KvPattern pattern_{Layout()};
  const KvContext context_ = ContextOf(3, 64);
  const std::unique_ptr<Client> client_ = daemon_.UnixClient();
  RawConnection raw_{daemon_.socket_path()};
};

TEST_F(LargePages, AreReadInPiecesOfFourMebibytesAtMost) {
  EXPECT_TRUE(raw_.ReadPage(10, PieceOf(0, kPieceBytes)).ok());
  EXPECT_TRUE(raw_.ReadPage(11, PieceOf(kPieceBytes, kPieceBytes)).ok());
  for (const uint32_t length : {kPieceBytes + 1, 2 * kPieceBytes}) {
    const absl::Status refused = raw_.ReadPage(12, PieceOf(0, length));
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
    EXPECT_THAT(MessageOf(refused), HasSubstr("at most 4194304 at once"));
  }
}

// More than the socket holds: most of it waits in the daemon until the client reads, for longer
// than the ticket lives and the slot is the session's.
TEST_F(LargePages, APieceIsWhatItWasWhenItWasAskedFor) {
  ASSERT_TRUE(raw_.Request(wire::PAGE_READ, 10, PieceOf(0, kPieceBytes)));
  wire::TicketRef ref;
  ref.set_ticket(1);
  ASSERT_TRUE(raw_.Request(wire::RELEASE, 0, ref));
  ASSERT_TRUE(Eventually([&] { return daemon_.server().counts().tickets == 0; }));
  ASSERT_GT(daemon_.server().counts().outbound_bytes, 0u);
  ASSERT_TRUE(client_->DropSession("s").ok());
  for (uint64_t seed = 100; seed < 120; ++seed) {
    const KvContext other = ContextOf(seed, 64);
    ASSERT_TRUE(SaveAll(*client_, pattern_, {.session = "other", .context = &other}).ok());
    ASSERT_TRUE(client_->DropSession("other").ok());
  }
  const auto piece = raw_.Receive();
  ASSERT_TRUE(piece.has_value());
  std::vector<std::byte> page(2 * kPieceBytes);
  pattern_.FillPage(0, context_.identities(), page);
  ASSERT_EQ(piece->raw().size(), kPieceBytes);
  const auto wrong = std::mismatch(piece->raw().begin(), piece->raw().end(), page.begin());
  EXPECT_EQ(wrong.first - piece->raw().begin(), kPieceBytes) << "the first wrong byte";
}

}  // namespace
}  // namespace turnkeep::testing
