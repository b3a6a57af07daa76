// What the daemon takes of the numbers, names and lists in a client's requests: what cannot be is
// refused before it is used, and what is too much is clipped.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/forwarding_store.h"
#include "api/raw_connection.h"
#include "api/server.h"
#include "api/wire_plan.h"
#include "core/limits.h"
#include "core/status.h"
#include "testing/client_factory.h"
#include "testing/eventually.h"
#include "testing/hooked_kv_store.h"
#include "testing/kv_pattern.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

class RequestLimits : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(client_->RegisterLayout(pattern_.layout()).ok());
    const KvContext context = ContextOf(3, 64);
    ASSERT_TRUE(SaveAll(*client_, pattern_, {.session = "s", .context = &context}).ok());
    chunk_ = client_->ShowSession("s")->spans[0].chunk;
  }
  // All that was sent on `raw` before is done.
  static bool IsOpen(RawConnection& raw) {
    if (!raw.Request(wire::STATUS, 1000, wire::Empty())) return false;
    const auto answer = raw.Receive();
    return answer.has_value() && answer->header().type == wire::STATUS;
  }
  std::vector<GpuHolder> Holders() { return client_->Explain({.session = "s"})->gpu; }
  std::string GpuEntries(int count) {
    std::string raw;
    for (int i = 0; i < count; ++i) {
      wire::GpuEntry entry{.chunk = {}, .bytes = 7};
      std::memcpy(entry.chunk, chunk_.bytes.data(), sizeof(entry.chunk));
      raw.append(reinterpret_cast<const char*>(&entry), sizeof(entry));
    }
    return raw;
  }

  DaemonHarness daemon_;
  const KvPattern pattern_{BlockLayout()};
  const std::unique_ptr<Client> client_ = daemon_.UnixClient();
  ChunkId chunk_;
};

TEST_F(RequestLimits, IdsTokensAndHashesOfWrongLengthsAreRefused) {
  const std::string layout = wire::IdBytes(pattern_.fingerprint());
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  const auto refused = [&](wire::MessageType type, const auto& message, const std::string& bytes,
                           const char* why) {
    ASSERT_TRUE(raw.Request(type, 1, message, bytes));
    const absl::Status error = raw.ReceiveError();
    EXPECT_TRUE(absl::IsInvalidArgument(error)) << why << ": " << error;
    EXPECT_THAT(MessageOf(error), HasSubstr(why));
  };
  for (const size_t bytes : {0, 31, 33, 4096}) {
    const std::string why = "layout fingerprint: " + std::to_string(bytes) + " bytes";
    wire::LayoutRef ref;
    ref.set_fingerprint(std::string(bytes, 'f'));
    refused(wire::GET_LAYOUT, ref, "", why.c_str());
    wire::BeginSaveRequest save;
    save.set_session("t");
    save.set_layout(std::string(bytes, 'f'));
    refused(wire::BEGIN_SAVE, save, std::string(64, 't'), why.c_str());
  }
  wire::BeginRestoreRequest restore;
  restore.set_layout(layout);
  refused(wire::BEGIN_RESTORE, restore, std::string(66, 't'), "66 raw bytes are not whole tokens");
  restore.mutable_prompt()->add_block_hashes("hash");
  restore.mutable_prompt()->set_hashed_token_count(64);
  refused(wire::BEGIN_RESTORE, restore, std::string(64, 't'), "both 1 block hashes and 16 tokens");
  wire::ExplainRequest explain;
  explain.set_layout(layout);
  refused(wire::EXPLAIN, explain, std::string(65, 't'), "65 raw bytes are not whole tokens");
  wire::BeginImportRequest import;
  import.set_layout(layout);
  wire::ImportedChunk* chunk = import.add_chunks();
  chunk->set_foreign_id(std::string(32, 'i'));
  chunk->set_foreign_parent(std::string(33, 'p'));
  refused(wire::BEGIN_IMPORT, import, "", "chunk id: 33 bytes, should be 32");
  chunk->set_foreign_parent(std::string(32, 'p'));
  chunk->set_tokens("seven b");
  refused(wire::BEGIN_IMPORT, import, "", "chunk 0 has 7 token bytes");
  wire::SessionRef ref;
  ref.set_session("s");
  refused(wire::STAT, ref, "bytes", "stat: 5 raw bytes, it takes none");
  EXPECT_TRUE(IsOpen(raw));
  EXPECT_EQ(daemon_.server().counts().tickets, 0u);
}

TEST(WireLimits, APromptIsASessionsTokensAtMost) {
  std::vector<std::byte> raw(sizeof(uint32_t) * (kMaxSessionTokens + 1));
  wire::ReceivedPrompt prompt;
  const absl::Status refused = wire::FromWire(wire::Prompt(), raw, &prompt);
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(MessageOf(refused), HasSubstr("16777217 tokens, the limit is 16777216"));
  raw.resize(sizeof(uint32_t) * kMaxSessionTokens);
  EXPECT_TRUE(wire::FromWire(wire::Prompt(), raw, &prompt).ok());
}

TEST(WireLimits, ADurationBeyondAllNumbersHasNoEnd) {
  EXPECT_EQ(wire::FromMicros(0), absl::ZeroDuration());
  EXPECT_EQ(wire::FromMicros(1'000'000), absl::Seconds(1));
  for (const int64_t micros : {int64_t{-1}, INT64_MIN, INT64_MAX, INT64_MAX / 4096 + 1})
    EXPECT_EQ(wire::FromMicros(micros), absl::InfiniteDuration()) << micros;
}

TEST_F(RequestLimits, FramesThatOnlyADaemonSendsEndTheConnection) {
  for (const wire::MessageType type : {wire::ERROR, wire::VERIFY_PROGRESS, wire::PROGRESS,
                                       wire::SEGMENT_GRANT, wire::SEGMENT_REVOKE}) {
    RawConnection raw(daemon_.socket_path());
    ASSERT_TRUE(raw.Hello());
    ASSERT_TRUE(raw.Request(type, 1, wire::Empty()));
    EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("not a request")) << wire::TypeName(type);
    EXPECT_TRUE(raw.SeesEnd());
  }
  RawConnection reply(daemon_.socket_path());
  ASSERT_TRUE(reply.Hello());
  ASSERT_TRUE(reply.SendFrame({.type = wire::STATUS, .flags = wire::kFlagReply}, ""));
  EXPECT_THAT(MessageOf(reply.ReceiveError()), HasSubstr("flags 0x1 in a request"));
  EXPECT_TRUE(reply.SeesEnd());
}

TEST_F(RequestLimits, AHelloOfAnOlderClientIsAnsweredNamingBoth) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Request(wire::HELLO, 0, wire::Hello()));
  const absl::Status refused = raw.ReceiveError();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(MessageOf(refused), HasSubstr("versions 0 to 0, this daemon 1 to 1"));
  EXPECT_TRUE(raw.SeesEnd());
}

// Its name goes into the log and to whoever asks who has a chunk.
TEST_F(RequestLimits, AClientsNameIsOneLineOf64Bytes) {
  RawConnection raw(daemon_.socket_path());
  wire::Hello hello;
  hello.set_min_version(1);
  hello.set_max_version(1);
  hello.set_client("two\nlines\x1b[2J" + std::string(100, 'x'));
  ASSERT_TRUE(raw.Request(wire::HELLO, 0, hello));
  ASSERT_EQ(raw.Receive()->header().type, wire::HELLO);
  wire::GpuResidency report;
  report.set_entry_count(1);
  ASSERT_TRUE(raw.Request(wire::GPU_RESIDENCY, 0, report, GpuEntries(1)));
  ASSERT_TRUE(IsOpen(raw));
  const std::vector<GpuHolder> holders = Holders();
  ASSERT_EQ(holders.size(), 1u);
  EXPECT_EQ(holders[0].engine, "two?lines?[2J" + std::string(51, 'x'));
}

TEST_F(RequestLimits, AReportOfAnotherNumberOfChunksEndsTheConnection) {
  for (const uint32_t count : {0u, 1u, 3u, UINT32_MAX}) {
    RawConnection raw(daemon_.socket_path());
    ASSERT_TRUE(raw.Hello());
    wire::GpuResidency report;
    report.set_entry_count(count);
    ASSERT_TRUE(raw.Request(wire::GPU_RESIDENCY, 0, report, GpuEntries(2)));
    EXPECT_THAT(MessageOf(raw.ReceiveError()), HasSubstr("80 raw bytes for")) << count;
    EXPECT_TRUE(raw.SeesEnd());
    EXPECT_TRUE(Holders().empty());
  }
}

// Of two bytes each, so many that they would be gigabytes before anything could refuse them.
TEST_F(RequestLimits, MoreFieldsThanARequestCanHaveAreNotTakenApart) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  const auto fields = [](char number, size_t count) {
    std::string bytes(2 * count, '\0');
    for (size_t i = 0; i < count; ++i) bytes[2 * i] = static_cast<char>(number << 3 | 2);
    return bytes;
  };
  const auto in_field = [](char number, const std::string& bytes) {
    wire::Layout message;  // of which field 1 is any bytes
    message.set_encoding(bytes);
    std::string out = message.SerializeAsString();
    out[0] = static_cast<char>(number << 3 | 2);
    return out;
  };
  constexpr size_t kMany = 8 << 20;
  const std::string hashes = fields(4, kMany);  // of a hint's target
  const std::string in_item = "hint items: more than 3531233 fields";
  const struct {
    wire::MessageType type;
    std::string payload;
    std::string why;
  } cases[] = {
      {wire::HINT, in_field(2, in_field(1, hashes)), in_item},
      {wire::HINT, in_field(3, in_field(2, hashes)), in_item},
      {wire::HINT, in_field(3, in_field(4, std::string(kMany, '\0'))), in_item},
      {wire::HINT, in_field(3, hashes), in_item},
      {wire::HINT, fields(3, kMany), "hint: more than 16385 fields in 16777216 bytes"},
      {wire::HINT, fields(2, 20'000), "hint: more than 16385 fields"},
      {wire::BEGIN_IMPORT, fields(4, kMany), "begin import: more than 4194560 fields"},
      {wire::BEGIN_SAVE, in_field(5, fields(1, kMany)), "begin save: more than 1048640 fields"},
      {wire::BEGIN_RESTORE, in_field(3, fields(1, kMany)), "begin restore: more than"},
      {wire::EXPLAIN, in_field(2, fields(1, kMany)), "explain: more than"},
  };
  for (const auto& one : cases) {
    ASSERT_TRUE(
        raw.SendFrame({.type = static_cast<uint16_t>(one.type), .request_id = 1}, one.payload));
    const absl::Status refused = raw.ReceiveError();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
    EXPECT_THAT(MessageOf(refused), HasSubstr(one.why));
  }
  EXPECT_TRUE(IsOpen(raw));
}

// As an unlimited one, and not as one that is over.
TEST_F(RequestLimits, ATimeLimitBeyondAllNumbersIsNone) {
  RawConnection raw(daemon_.socket_path());
  ASSERT_TRUE(raw.Hello());
  for (const uint64_t limit : {UINT64_MAX, uint64_t{1} << 63, uint64_t{INT64_MAX} / 1000}) {
    ASSERT_TRUE(raw.SendFrame({.type = wire::STATUS, .request_id = 1, .time_limit_us = limit}, ""));
    const auto answer = raw.Receive();
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->header().type, wire::STATUS) << limit;
  }
}

// ---- lists -----------------------------------------------------------------------

// What the tenant's store is asked for.
class AskedKvStore : public HookedKvStore {
 public:
  struct Asked {
    uint32_t sessions = 0, nodes = 0, events = 0;
  };
  AskedKvStore(std::unique_ptr<KvStore> below, Asked* asked)
      : HookedKvStore(below.get()), below_(std::move(below)), asked_(asked) {}

  absl::StatusOr<std::vector<SessionInfo>> ListSessions(const ListRequest& request) override {
    asked_->sessions = request.limit;
    return below_->ListSessions(request);
  }
  absl::StatusOr<std::vector<TreeNode>> Tree(const TreeRequest& request) override {
    asked_->nodes = request.max_nodes;
    return below_->Tree(request);
  }
  absl::StatusOr<Activity> GetActivity(const ActivityRequest& request) override {
    asked_->events = request.limit;
    return below_->GetActivity(request);
  }

 private:
  const std::unique_ptr<KvStore> below_;
  Asked* const asked_;
};

class AskedStore : public ForwardingStore {
 public:
  using ForwardingStore::ForwardingStore;
  absl::StatusOr<std::unique_ptr<KvStore>> ForTenant(const std::string& name) override {
    TK_ASSIGN_OR_RETURN(auto below_it, below().ForTenant(name));
    return std::make_unique<AskedKvStore>(std::move(below_it), &asked);
  }
  AskedKvStore::Asked asked;
};

TEST(ListLimits, NoListIsAskedForWhole) {
  TemporaryDirectory directory("/tmp");
  auto store = Store::Open({.host_bytes = 16 * kMiB});
  ASSERT_TRUE(store.ok()) << store.status();
  AskedStore asked(**store);
  const std::string socket = directory.path() + "/s";
  const auto server = Server::Start(asked, {.socket_path = socket});
  ASSERT_TRUE(server.ok()) << server.status();
  RawConnection raw(socket);
  ASSERT_TRUE(raw.Hello());
  wire::ListRequest list;
  list.set_limit(UINT32_MAX);
  wire::TreeRequest tree;
  tree.set_max_nodes(UINT32_MAX);
  wire::ActivityRequest activity;
  activity.set_limit(UINT32_MAX);
  ASSERT_TRUE(raw.Request(wire::LIST, 1, list) && raw.Request(wire::TREE, 2, tree) &&
              raw.Request(wire::ACTIVITY, 3, activity));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(raw.Receive().has_value());
  EXPECT_EQ(asked.asked.sessions, 100'000u);
  EXPECT_EQ(asked.asked.nodes, 100'000u);
  EXPECT_EQ(asked.asked.events, kMaxActivity);
}

TEST(ListLimits, AnAnswerLongerThanAFrameIsAnError) {
  DaemonHarness daemon({.host_bytes = 16 * kMiB, .server = {.max_frame_bytes = 4096}});
  const KvPattern pattern(BlockLayout());
  const auto client = daemon.UnixClient();
  ASSERT_TRUE(client->RegisterLayout(pattern.layout()).ok());
  const KvContext context = ContextOf(3, 64);
  ASSERT_TRUE(SaveAll(*client, pattern, {.session = "s", .context = &context}).ok());
  for (int i = 0; i < 60; ++i) {
    const std::string name = std::string(100, 'n') + std::to_string(i);
    ASSERT_TRUE(client->ForkSession({.source = "s", .target = name}).ok());
  }
  const auto all = client->ListSessions({});
  EXPECT_TRUE(absl::IsResourceExhausted(all.status())) << all.status();
  EXPECT_THAT(MessageOf(all.status()), HasSubstr("the limit is 4096"));
  EXPECT_EQ(client->ListSessions({.limit = 5})->size(), 5u);
}

}  // namespace
}  // namespace turnkeep::testing
