// KvStoreSuite: imports say what a session shows, chunk by chunk; what cannot be is refused and
// leaves nothing.
#include <functional>
#include <utility>

#include <gmock/gmock.h>

#include "store/kv_store_suite.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

ChunkId IdOf(uint8_t number) {
  ChunkId id;
  id.bytes.fill(number);
  return id;
}

// A session of one chunk of 16 tokens.
ImportRequest OneChunk(const KvPattern& pattern) {
  ImportRequest request{.session = "imported", .layout = pattern.fingerprint()};
  request.chunks.push_back({.foreign_id = IdOf(1),
                            .parent_is_root = true,
                            .tokens = MakeTokens(1, 16),
                            .token_count = 16});
  request.slices.push_back({.chunk_index = 0, .first = 0, .count = 16});
  return request;
}

absl::StatusOr<CommitResult> Import(KvStore& kv, const ImportRequest& request,
                                    const KvLayout& layout) {
  auto ticket = kv.BeginImport(request);
  if (!ticket.ok()) return ticket.status();
  for (uint32_t layer = 0; layer < layout.layers.size(); ++layer) {
    for (size_t i = 0; i < (*ticket)->chunks().size(); ++i) {
      for (std::byte& byte : (*ticket)->Page(i, layer)) byte = std::byte(17 * layer + i);
    }
    const absl::Status finished = (*ticket)->FinishLayer(layer);
    if (!finished.ok()) return finished;
  }
  return (*ticket)->Commit(absl::Seconds(60));
}

// Its KV remembers tokens that the import does not have.
TEST_P(KvStoreSuite, AnImportedChunkWithoutItsParentIsNobodysPrefix) {
  const KvPattern pattern = Register(TinyLayout());
  ImportRequest request = OneChunk(pattern);
  request.chunks[0].parent_is_root = false;
  request.chunks[0].foreign_parent = IdOf(9);
  const auto imported = Import(kv(), request, TinyLayout());
  ASSERT_TRUE(imported.ok()) << imported.status();
  const Prompt prompt{.tokens = request.chunks[0].tokens};
  const auto by_session =
      kv().BeginRestore({.session = "imported", .layout = pattern.fingerprint()});
  ASSERT_TRUE(by_session.ok()) << by_session.status();
  EXPECT_EQ((*by_session)->token_count(), 16u);
  const auto by_tokens = kv().BeginRestore({.prompt = prompt, .layout = pattern.fingerprint()});
  ASSERT_TRUE(by_tokens.ok()) << by_tokens.status();
  EXPECT_EQ((*by_tokens)->token_count(), 0u);
  const auto save =
      kv().BeginSave({.session = "s", .layout = pattern.fingerprint(), .prompt = prompt});
  ASSERT_TRUE(save.ok()) << save.status();
  EXPECT_EQ((*save)->known_tokens(), 0u);
}

TEST_P(KvStoreSuite, BadImportsAreRefusedAndLeaveNothing) {
  const KvPattern pattern = Register(TinyLayout());
  struct Case {
    const char* says;
    std::function<void(ImportRequest&)> change;
  };
  const Case cases[] = {
      {"chunks is empty", [](ImportRequest& r) { r.chunks.clear(); }},
      {"token_count 0 is outside 1..16",
       [](ImportRequest& r) {
         r.chunks[0].token_count = 0;
         r.chunks[0].tokens.clear();
         r.chunks[0].block_hash = "hash";
       }},
      {"token_count 17 is outside 1..16",
       [](ImportRequest& r) {
         r.chunks[0].token_count = 17;
         r.chunks[0].tokens = MakeTokens(1, 17);
       }},
      {"do not fit token_count", [](ImportRequest& r) { r.chunks[0].tokens.pop_back(); }},
      {"do not fit token_count", [](ImportRequest& r) { r.chunks[0].block_hash = "both"; }},
      {"block_hash has 65 bytes",
       [](ImportRequest& r) {
         r.chunks[0].tokens.clear();
         r.chunks[0].block_hash = std::string(65, 'x');
       }},
      {"position_base", [](ImportRequest& r) { r.chunks[0].position_base = uint64_t{1} << 32; }},
      {"outside its chunk", [](ImportRequest& r) { r.slices[0].chunk_index = 1; }},
      {"outside its chunk", [](ImportRequest& r) { r.slices[0].count = 0; }},
      {"outside its chunk", [](ImportRequest& r) { r.slices[0].count = 17; }},
      {"outside its chunk", [](ImportRequest& r) { r.slices[0].first = UINT32_MAX; }},
      {"slices, the limit is",
       [](ImportRequest& r) {
         r.slices.assign((2 << 20) + 1, {.chunk_index = 0, .first = 0, .count = 1});
       }},
      {"tokens, the limit is",
       [](ImportRequest& r) {
         r.slices.assign((1 << 20) + 1, {.chunk_index = 0, .first = 0, .count = 16});
       }},
      {"repeats id",
       [](ImportRequest& r) {
         r.chunks.push_back(r.chunks[0]);
         r.chunks[1].tokens = MakeTokens(2, 16);
       }},
  };
  for (const Case& bad : cases) {
    SCOPED_TRACE(bad.says);
    ImportRequest request = OneChunk(pattern);
    bad.change(request);
    const auto ticket = kv().BeginImport(request);
    EXPECT_TRUE(absl::IsInvalidArgument(ticket.status())) << ticket.status();
    EXPECT_THAT(std::string(ticket.status().message()), HasSubstr(bad.says));
  }
  EXPECT_TRUE(Eventually([](const StoreStatus& status) {
    return status.chunk_count == 0 && status.host.used_bytes == 0 && status.open_tickets == 0;
  }));
  EXPECT_TRUE(kv().Tree({.max_nodes = 10})->empty());
  ASSERT_TRUE(Import(kv(), OneChunk(pattern), pattern.layout()).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(kv().BeginImport(OneChunk(pattern)).status()));
}

// Every span of a restore holds its chunk, and so does every save along it.
TEST_P(KvStoreSuite, OneChunkMayBeShownSeventyThousandTimes) {
  constexpr size_t kTimes = 70'000;
  const KvPattern pattern = Register(TinyLayout());
  ImportRequest request = OneChunk(pattern);
  request.slices.assign(kTimes, {.chunk_index = 0, .first = 3, .count = 1});
  const auto imported = Import(kv(), request, pattern.layout());
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(imported->token_count, kTimes);
  ASSERT_TRUE(kv().PinSession("imported").ok());
  {
    const auto ticket = kv().BeginRestore({.session = "imported", .layout = pattern.fingerprint()});
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    EXPECT_EQ((*ticket)->spans().size(), kTimes);
    EXPECT_EQ((*ticket)->token_count(), kTimes);
    ASSERT_EQ((*ticket)->WaitLayer(0).value_or(0), kTimes);
    std::vector<std::byte> page(LayerPageBytes(pattern.layout().layers[0], 16));
    EXPECT_TRUE((*ticket)->ReadPage(kTimes - 1, 0, page).ok());
  }
  // The same tokens again: all of them are known.
  const std::vector<uint32_t> tokens(kTimes, request.chunks[0].tokens[3]);
  const auto save = kv().BeginSave({.session = "imported",
                                    .expected_generation = imported->generation,
                                    .layout = pattern.fingerprint(),
                                    .prompt = {.tokens = tokens}});
  ASSERT_TRUE(save.ok()) << save.status();
  EXPECT_EQ((*save)->known_tokens(), kTimes);
  ASSERT_TRUE(kv().UnpinSession("imported").ok());
  ASSERT_TRUE(kv().DropSession("imported").ok());
}

}  // namespace
}  // namespace turnkeep::testing
