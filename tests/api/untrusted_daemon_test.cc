// What a client believes of what it is told: pages and headers that do not match their digests, and
// plans whose numbers cannot be, are found out by the client itself, whoever has changed them.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/frame.h"
#include "api/frame_proxy.h"
#include "api/turnkeep.pb.h"
#include "api/wire_messages.h"
#include "api/wire_plan.h"
#include "core/chunk_header.h"
#include "core/status.h"
#include "testing/client_factory.h"
#include "testing/kv_pattern.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

class UntrustedDaemon : public ::testing::Test {
 protected:
  using Alter = std::function<void(const wire::FrameHeader&, std::vector<std::byte>& frame)>;

  void SetUp() override {
    const auto client = daemon_.UnixClient();
    ASSERT_TRUE(client->RegisterLayout(pattern_.layout()).ok());
    ASSERT_TRUE(SaveAll(*client, pattern_, {.session = "s", .context = &context_}).ok());
  }
  void TearDown() override {
    ticket_.reset();
    client_.reset();
  }
  // A client to whom everything comes through `alter`.
  absl::Status Connect(Alter alter, bool shared_memory) {
    ticket_.reset();
    client_.reset();
    proxy_.reset();
    const std::string socket = shared_memory ? daemon_.socket_path() : "";
    proxy_ = std::make_unique<FrameProxy>(
        daemon_.server().tcp_port(),
        FrameProxyOptions{.daemon_socket = socket, .alter = std::move(alter)});
    ClientOptions options = shared_memory ? daemon_.UnixOptions() : daemon_.TcpOptions();
    if (shared_memory) {
      options.socket_path = proxy_->socket();
    } else {
      options.tcp_address = "127.0.0.1:" + std::to_string(proxy_->port());
    }
    options.reconnect = false;
    auto client = Client::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    if (!client.ok()) return client.status();
    client_ = *std::move(client);
    EXPECT_TRUE(client_->RegisterLayout(pattern_.layout()).ok());
    return absl::OkStatus();
  }
  // And what it gets for a restore.
  absl::Status Begin(Alter alter, uint32_t wait_for_layers = 4, bool shared_memory = false) {
    if (const absl::Status status = Connect(std::move(alter), shared_memory); !status.ok())
      return status;
    auto begun = client_->BeginRestore({.session = "s", .layout = pattern_.fingerprint()});
    if (!begun.ok()) return begun.status();
    ticket_ = *std::move(begun);
    return ticket_->WaitLayer(wait_for_layers - 1).status();
  }
  absl::Status Read(size_t span, uint32_t layer) {
    std::vector<std::byte> page(
        GeometryOf(pattern_.layout(), ticket_->spans()[span].chunk_token_count).page_bytes[layer]);
    return ticket_->ReadPage(span, layer, page);
  }
  // A frame of one kind, and `change` of its raw bytes.
  static Alter ChangeRaw(wire::MessageType type,
                         std::function<void(std::span<std::byte> raw)> change) {
    return [=](const wire::FrameHeader& header, std::vector<std::byte>& frame) {
      if (header.type == type && header.reply()) change(FrameProxy::RawOf(header, frame));
    };
  }
  // Of the second of three chunks.
  static Alter ChangeEntry(std::function<void(wire::RestoreEntry& entry)> change) {
    return ChangeRaw(wire::BEGIN_RESTORE, [=](std::span<std::byte> raw) {
      ASSERT_EQ(raw.size(), 3 * sizeof(wire::RestoreEntry));
      auto entry = wire::EntryAt<wire::RestoreEntry>(raw, 1);
      change(entry);
      std::memcpy(raw.data() + sizeof(entry), &entry, sizeof(entry));
    });
  }

  // As ChangeEntry, of the first chunk of a save.
  static Alter ChangeSaveEntry(std::function<void(wire::SaveEntry& entry)> change) {
    return ChangeRaw(wire::BEGIN_SAVE, [=](std::span<std::byte> raw) {
      ASSERT_GE(raw.size(), sizeof(wire::SaveEntry));
      auto entry = wire::EntryAt<wire::SaveEntry>(raw, 0);
      change(entry);
      std::memcpy(raw.data(), &entry, sizeof(entry));
    });
  }

  DaemonHarness daemon_{HarnessOptions{.tcp = true}};
  const KvPattern pattern_{BlockLayout()};  // pages of 16 KiB
  const KvContext context_ = ContextOf(3, 64 * 2 + 7);
  std::unique_ptr<FrameProxy> proxy_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<RestoreTicket> ticket_;
};

TEST_F(UntrustedDaemon, APlanThatCannotBeIsRefused) {
  const struct {
    const char* what;
    std::function<void(wire::RestoreEntry&)> change;
  } cases[] = {
      {"no tokens", [](auto& entry) { entry.token_count = 0; }},
      {"a chunk of nothing",
       [](auto& entry) { entry.chunk_token_count = entry.token_count = entry.first_in_chunk = 0; }},
      {"past the chunk's end", [](auto& entry) { entry.first_in_chunk = 1; }},
      {"past all numbers", [](auto& entry) { entry.first_in_chunk = UINT32_MAX; }},
      {"a chunk longer than the layout's", [](auto& entry) { entry.chunk_token_count = 65; }},
      {"a tier that is none", [](auto& entry) { entry.tier = 9; }},
  };
  for (const auto& one : cases) {
    SCOPED_TRACE(one.what);
    const absl::Status begun = Begin(ChangeEntry(one.change));
    EXPECT_TRUE(absl::IsInternal(begun)) << begun;
  }
  const absl::Status short_list =
      Begin([](const wire::FrameHeader& header, std::vector<std::byte>& frame) {
        if (header.type != wire::BEGIN_RESTORE || !header.reply()) return;
        wire::RestorePlan plan;
        ASSERT_TRUE(plan.ParseFromString(FrameProxy::PayloadOf(header, frame)));
        plan.set_entry_count(plan.entry_count() + 1);
        const auto raw = FrameProxy::RawOf(header, frame);
        const std::vector<std::byte> kept(raw.begin(), raw.end());
        FrameProxy::Replace(header, plan.SerializeAsString(), kept, frame);
      });
  EXPECT_TRUE(absl::IsInvalidArgument(short_list)) << short_list;
}

TEST_F(UntrustedDaemon, AChunkThatIsNotThePlansIsAMissFromThereOn) {
  const struct {
    const char* what;
    std::function<void(wire::RestoreEntry&)> change;
  } cases[] = {
      {"id", [](auto& entry) { entry.chunk[5] ^= 1; }},
      {"epoch", [](auto& entry) { ++entry.epoch; }},
      {"root, low half", [](auto& entry) { entry.root_low ^= 1; }},
      {"root, high half", [](auto& entry) { entry.root_high ^= 1; }},
  };
  for (const auto& one : cases) {
    SCOPED_TRACE(one.what);
    ASSERT_TRUE(Begin(ChangeEntry(one.change)).ok());
    EXPECT_TRUE(Read(0, 0).ok());
    EXPECT_TRUE(absl::IsDataLoss(Read(1, 0)));
    EXPECT_EQ(ticket_->token_count(), 64u);
    EXPECT_TRUE(absl::IsNotFound(Read(2, 0)));
  }
}

// A header of fewer layers, well formed and with the root that the plan then names: its digests end
// before the layout's layers do.
TEST_F(UntrustedDaemon, AHeaderOfOtherLayersIsDamage) {
  ASSERT_TRUE(Begin(nullptr).ok());
  ChunkHeader forged = *ticket_->Header(1);
  forged.layer_digests.resize(2);
  std::vector<std::byte> slot(64 * kKiB);
  const Digest root = EncodeChunkHeader(forged, slot);
  const auto plan = ChangeEntry([=](wire::RestoreEntry& entry) {
    entry.root_low = root.low;
    entry.root_high = root.high;
  });
  const auto header = ChangeRaw(wire::PAGE_READ, [=](std::span<std::byte> raw) {
    if (raw.size() != 16 * kKiB) std::memcpy(raw.data(), slot.data(), raw.size());
  });
  ASSERT_TRUE(Begin([=](const wire::FrameHeader& h, std::vector<std::byte>& frame) {
                plan(h, frame);
                header(h, frame);
              }).ok());
  const absl::Status read = Read(1, 3);
  EXPECT_TRUE(absl::IsDataLoss(read)) << read;
  EXPECT_THAT(MessageOf(read), ::testing::HasSubstr("header of 2 layers"));
}

// What has not arrived is not taken for damage.
TEST_F(UntrustedDaemon, ALayerThatWasNotWaitedForIsNotRead) {
  ASSERT_TRUE(Begin(
                  [](const wire::FrameHeader& header, std::vector<std::byte>& frame) {
                    if (header.type != wire::BEGIN_RESTORE || !header.reply()) return;
                    wire::RestorePlan plan;
                    ASSERT_TRUE(plan.ParseFromString(FrameProxy::PayloadOf(header, frame)));
                    plan.mutable_progress()->set_layers_ready(1);
                    plan.mutable_progress()->set_finished(false);
                    const auto raw = FrameProxy::RawOf(header, frame);
                    const std::vector<std::byte> kept(raw.begin(), raw.end());
                    FrameProxy::Replace(header, plan.SerializeAsString(), kept, frame);
                  },
                  /*wait_for_layers=*/1)
                  .ok());
  EXPECT_TRUE(Read(0, 0).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(Read(0, 1)));
  EXPECT_TRUE(absl::IsFailedPrecondition(ticket_->VerifyPage(0, 3)));
  EXPECT_TRUE(ticket_->Page(0, 1).empty());
  EXPECT_EQ(ticket_->token_count(), context_.size());
}

// What the plan says is mapped is looked for in the segments that were granted, and nowhere else.
TEST_F(UntrustedDaemon, ASlotOutsideItsSegmentIsNotMapped) {
  std::atomic<uint64_t> segment_bytes = 0;
  const auto learn = [&](const wire::FrameHeader& header, std::vector<std::byte>& frame) {
    if (header.type != wire::SEGMENT_GRANT) return;
    wire::SegmentGrants grants;
    ASSERT_TRUE(grants.ParseFromString(FrameProxy::PayloadOf(header, frame)));
    segment_bytes = grants.grants(0).segment_bytes();
  };
  ASSERT_TRUE(Begin(learn, 4, /*shared_memory=*/true).ok());
  ASSERT_GT(segment_bytes, 0u);
  EXPECT_TRUE(Read(1, 0).ok()) << "the proxy passes segments on";
  EXPECT_FALSE(ticket_->Page(1, 0).empty());
  const struct {
    const char* what;
    std::function<void(uint32_t& segment, uint64_t& slot_offset)> change;
  } cases[] = {
      {"past all numbers", [](auto&, auto& offset) { offset = UINT64_MAX; }},
      {"wraps around", [](auto&, auto& offset) { offset = UINT64_MAX - 4 * kKiB; }},
      {"ends past the segment", [&](auto&, auto& offset) { offset = segment_bytes - 4 * kKiB; }},
      {"another segment", [](auto& segment, auto&) { segment += 1000; }},
  };
  const KvContext more = ContextOf(4, 64 * 2);
  for (const auto& one : cases) {
    SCOPED_TRACE(one.what);
    const absl::Status restore =
        Begin(ChangeEntry([&](auto& entry) { one.change(entry.segment, entry.slot_offset); }), 4,
              /*shared_memory=*/true);
    EXPECT_TRUE(absl::IsInternal(restore)) << restore;
    ASSERT_TRUE(
        Connect(ChangeSaveEntry([&](auto& entry) { one.change(entry.segment, entry.slot_offset); }),
                /*shared_memory=*/true)
            .ok());
    const auto save = BeginSaveOf(*client_, pattern_, {.session = "more", .context = &more});
    EXPECT_TRUE(absl::IsInternal(save.status())) << save.status();
  }
}

TEST_F(UntrustedDaemon, ASegmentThatIsNotWhatWasAnnouncedEndsTheConnection) {
  const struct {
    const char* what;
    const char* message;
    std::function<void(wire::SegmentGrants&)> change;
  } cases[] = {
      {"longer than its file", "were announced",
       [](auto& grants) {
         grants.mutable_grants(0)->set_segment_bytes(grants.grants(0).segment_bytes() + 4 * kKiB);
       }},
      {"of no bytes", "0 were announced",
       [](auto& grants) { grants.mutable_grants(0)->set_segment_bytes(0); }},
      {"without its descriptor", "descriptors",
       [](auto& grants) { *grants.add_grants() = grants.grants(0); }},
  };
  for (const auto& one : cases) {
    SCOPED_TRACE(one.what);
    const absl::Status begun = Begin(
        [&](const wire::FrameHeader& header, std::vector<std::byte>& frame) {
          if (header.type != wire::SEGMENT_GRANT) return;
          wire::SegmentGrants grants;
          ASSERT_TRUE(grants.ParseFromString(FrameProxy::PayloadOf(header, frame)));
          one.change(grants);
          FrameProxy::Replace(header, grants.SerializeAsString(), {}, frame);
        },
        4, /*shared_memory=*/true);
    EXPECT_TRUE(absl::IsUnavailable(begun)) << begun;
    EXPECT_THAT(MessageOf(begun), ::testing::HasSubstr(one.message));
  }
}

// Over shared memory others write, too: an engine that has a mapping and writes where it must not.
TEST_F(UntrustedDaemon, AnotherChunkInASlotIsFoundOverSharedMemory) {
  const auto client = daemon_.UnixClient();
  ASSERT_TRUE(client->RegisterLayout(pattern_.layout()).ok());
  auto ticket = client->BeginRestore({.session = "s", .layout = pattern_.fingerprint()});
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  ASSERT_TRUE((*ticket)->WaitLayer(3).ok());
  const ChunkGeometry geometry = GeometryOf(pattern_.layout(), 64);
  const auto image_of = [&](size_t span) {
    return const_cast<std::byte*>((*ticket)->Page(span, 0).data()) - geometry.page_offset[0];
  };
  std::memcpy(image_of(0), image_of(1), geometry.image_bytes);
  std::vector<std::byte> page(geometry.page_bytes[0]);
  EXPECT_TRUE(absl::IsDataLoss((*ticket)->ReadPage(0, 0, page)));
  EXPECT_EQ((*ticket)->token_count(), 0u);
}

TEST_F(UntrustedDaemon, EveryChangedByteOfAPageOrHeaderIsFound) {
  for (const bool header : {false, true}) {
    for (const bool by_page : {false, true}) {
      SCOPED_TRACE(std::string(header ? "header" : "page") + (by_page ? ", in place" : ""));
      const auto change = [=](std::span<std::byte> raw) {
        if ((raw.size() == 16 * kKiB) != header) raw[raw.size() / 2] ^= std::byte{16};
      };
      ASSERT_TRUE(Begin(ChangeRaw(wire::PAGE_READ, change)).ok());
      const absl::Status read = by_page ? ticket_->VerifyPage(0, 1) : Read(0, 1);
      EXPECT_TRUE(absl::IsDataLoss(read)) << read;
      EXPECT_EQ(ticket_->token_count(), 0u);
    }
  }
}

TEST_F(UntrustedDaemon, APageOfAnotherChunkOrLayerIsFound) {
  for (const bool other_layer : {false, true}) {
    for (const bool by_page : {false, true}) {
      SCOPED_TRACE(other_layer ? "layer" : "chunk");
      ASSERT_TRUE(Begin([=](const wire::FrameHeader& header, std::vector<std::byte>& frame) {
                    if (header.type != wire::PAGE_READ || header.reply()) return;
                    wire::PageRead request;
                    ASSERT_TRUE(request.ParseFromString(FrameProxy::PayloadOf(header, frame)));
                    if (request.layer() == kHeaderLayer) return;
                    if (other_layer) request.set_layer(request.layer() ^ 1);
                    if (!other_layer) request.set_span(request.span() ^ 1);
                    FrameProxy::Replace(header, request.SerializeAsString(), {}, frame);
                  }).ok());
      const absl::Status read = by_page ? ticket_->VerifyPage(0, 0) : Read(0, 0);
      EXPECT_TRUE(absl::IsDataLoss(read)) << read;
    }
  }
}

TEST_F(UntrustedDaemon, APieceThatIsShorterOrLongerIsAnError) {
  for (const int more : {-8, 8}) {
    SCOPED_TRACE(more);
    ASSERT_TRUE(Begin([=](const wire::FrameHeader& header, std::vector<std::byte>& frame) {
                  if (header.type != wire::PAGE_READ || !header.reply()) return;
                  const auto raw = FrameProxy::RawOf(header, frame);
                  std::vector<std::byte> other(raw.begin(), raw.end());
                  other.resize(static_cast<size_t>(static_cast<int>(raw.size()) + more));
                  FrameProxy::Replace(header, FrameProxy::PayloadOf(header, frame), other, frame);
                }).ok());
    const absl::Status read = Read(0, 0);
    EXPECT_TRUE(absl::IsInternal(read)) << read;
  }
}

TEST_F(UntrustedDaemon, PagesOutsideTheRestoreAreRefusedByTheClientItself) {
  ASSERT_TRUE(Begin(nullptr).ok());
  std::vector<std::byte> page(16 * kKiB);
  EXPECT_TRUE(absl::IsInvalidArgument(ticket_->ReadPage(3, 0, page)));
  EXPECT_TRUE(absl::IsInvalidArgument(ticket_->ReadPage(0, 4, page)));
  EXPECT_TRUE(absl::IsInvalidArgument(ticket_->ReadPage(0, kHeaderLayer, page)));
  EXPECT_TRUE(ticket_->Page(3, 0).empty());
  EXPECT_TRUE(absl::IsInvalidArgument(ticket_->VerifyPage(0, 4)));
  EXPECT_TRUE(absl::IsInvalidArgument(ticket_->Header(3).status()));
  page.resize(page.size() - 1);
  EXPECT_TRUE(absl::IsInvalidArgument(ticket_->ReadPage(0, 0, page)));
  page.resize(16 * kKiB + 64);
  EXPECT_TRUE(absl::IsInvalidArgument(ticket_->ReadPage(0, 0, page)));
  EXPECT_EQ(ticket_->token_count(), context_.size()) << "a caller's error is no damage";
}

}  // namespace
}  // namespace turnkeep::testing
