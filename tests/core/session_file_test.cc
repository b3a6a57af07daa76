// Session files: what goes out comes back, and a file with any damage gives nothing.
#include "core/session_file.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "testing/memory_kv_store.h"

namespace turnkeep {
namespace {

using ::testing::HasSubstr;
using testing::MemoryKvStore;
using testing::SaveTokens;
using testing::SmallLayout;

class StringSink : public ByteSink {
 public:
  absl::Status Append(std::span<const std::byte> bytes) override {
    text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return absl::OkStatus();
  }
  std::string text;
};

class StringSource : public ByteSource {
 public:
  explicit StringSource(std::string text) : text_(std::move(text)) {}
  uint64_t size_bytes() const override { return text_.size(); }
  absl::Status Read(std::span<std::byte> bytes) override {
    if (bytes.size() > text_.size() - at_) {
      return DataLoss("session file byte {}: ends", text_.size());
    }
    if (!bytes.empty()) std::memcpy(bytes.data(), text_.data() + at_, bytes.size());
    at_ += bytes.size();
    return absl::OkStatus();
  }

 private:
  const std::string text_;
  size_t at_ = 0;
};

std::vector<uint32_t> Tokens(size_t count, uint32_t seed = 7) {
  std::vector<uint32_t> tokens(count);
  std::mt19937 random(seed);
  for (uint32_t& token : tokens) token = random() % 32000;
  return tokens;
}

std::string Export(MemoryKvStore& store, const std::string& session) {
  StringSink sink;
  const auto info = ExportSession(store, session, sink, {.now_unix_s = 5});
  EXPECT_TRUE(info.ok()) << info.status();
  return sink.text;
}

absl::StatusOr<ImportedSession> Import(MemoryKvStore& store, const std::string& file,
                                       const std::string& name = "") {
  StringSource source(file);
  return ImportSession(store, source, {.session = name});
}

// Whether the sessions show the same tokens with the same bytes at the same positions.
void ExpectSameKv(MemoryKvStore& left, const std::string& left_name, MemoryKvStore& right,
                  const std::string& right_name) {
  const auto& a = left.sessions.at(left_name).view;
  const auto& b = right.sessions.at(right_name).view;
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const auto& from = left.chunks.at(a[i].chunk);
    const auto& to = right.chunks.at(b[i].chunk);
    EXPECT_EQ(a[i].first, b[i].first);
    EXPECT_EQ(a[i].count, b[i].count);
    EXPECT_EQ(from.header.tokens, to.header.tokens);
    EXPECT_EQ(from.header.block_hash, to.header.block_hash);
    EXPECT_EQ(from.header.position_base, to.header.position_base);
    EXPECT_EQ(from.pages, to.pages) << "slice " << i;
  }
}

class SessionFile : public ::testing::Test {
 protected:
  void SetUp() override {
    layout_ = *home_.RegisterLayout(SmallLayout());
    ASSERT_TRUE(SaveTokens(home_, "alice", layout_, Tokens(70)).ok());
  }

  MemoryKvStore home_{1};
  MemoryKvStore other_{2};
  Fingerprint layout_;
};

TEST_F(SessionFile, RoundTripsToAnotherTenant) {
  const std::string file = Export(home_, "alice");
  const auto done = Import(other_, file);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->session, "alice");
  EXPECT_EQ(done->commit.token_count, 70u);
  EXPECT_EQ(done->commit.new_chunks, 5u);
  EXPECT_EQ(done->file.exported_unix_s, 5);
  EXPECT_EQ(done->file.sha256_hex.size(), 64u);
  EXPECT_EQ(done->file.file_bytes, file.size());
  ExpectSameKv(home_, "alice", other_, "alice");
  EXPECT_FALSE(other_.sessions.at("alice").truncated);
}

TEST_F(SessionFile, ImportSharesChunksWithEqualLocalSessions) {
  const std::string file = Export(home_, "alice");
  ASSERT_TRUE(other_.RegisterLayout(SmallLayout()).ok());
  auto longer = Tokens(70);
  longer.resize(64);
  ASSERT_TRUE(SaveTokens(other_, "bob", layout_, longer).ok());
  const auto done = Import(other_, file, "carol");
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->commit.new_chunks, 1u);  // the tail
  EXPECT_EQ(other_.chunks.size(), 5u);
  ExpectSameKv(home_, "alice", other_, "carol");
}

TEST_F(SessionFile, WhollyKnownSessionIsCheckedAndCommitted) {
  std::string file = Export(home_, "alice");
  EXPECT_EQ(Import(home_, file, "copy")->commit.new_chunks, 0u);
  file[file.size() - 100] ^= 1;
  EXPECT_EQ(Import(home_, file, "copy2").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(home_.sessions.contains("copy2"));
}

TEST_F(SessionFile, TruncatedSessionKeepsSlicesAndPositions) {
  // Tokens 5 to 10 leave a chunk that is then shown twice; the appended chunks hang on the view.
  ASSERT_TRUE(home_.TruncateSession({.session = "alice", .drop_begin = 5, .drop_end = 10}).ok());
  ASSERT_TRUE(home_.TruncateSession({.session = "alice", .drop_begin = 20, .drop_end = 40}).ok());
  auto longer = home_.TokensOf("alice");
  longer.resize(90, 3);
  ASSERT_TRUE(SaveTokens(home_, "alice", layout_, longer, 3).ok());
  const std::string file = Export(home_, "alice");
  ASSERT_TRUE(Import(other_, file).ok());
  ExpectSameKv(home_, "alice", other_, "alice");
  EXPECT_EQ(other_.TokensOf("alice"), longer);
  EXPECT_TRUE(other_.sessions.at("alice").truncated);
}

TEST_F(SessionFile, DroppedPrefixIsNeverTakenForAWholeContext) {
  ASSERT_TRUE(home_.TruncateSession({.session = "alice", .drop_begin = 0, .drop_end = 16}).ok());
  ASSERT_TRUE(Import(other_, Export(home_, "alice")).ok());
  const ChunkHeader& first = other_.chunks.at(other_.sessions.at("alice").view[0].chunk).header;
  EXPECT_NE(first.parent, other_.hasher().Root(layout_));
  EXPECT_EQ(first.position_base, 16u);
}

TEST_F(SessionFile, BlockHashesRoundTrip) {
  const std::vector<BlockHash> hashes = {"h1", std::string(64, 'x')};
  auto save = *home_.BeginSave({.session = "hashed",
                                .layout = layout_,
                                .prompt = {.block_hashes = hashes, .hashed_token_count = 20}});
  for (uint32_t layer = 0; layer < 3; ++layer) ASSERT_TRUE(save->FinishLayer(layer).ok());
  ASSERT_TRUE(save->Commit(absl::Seconds(1)).ok());
  ASSERT_TRUE(Import(other_, Export(home_, "hashed")).ok());
  ExpectSameKv(home_, "hashed", other_, "hashed");
}

TEST_F(SessionFile, EveryFlippedByteIsRefusedWithItsPlaceAndNothingIsImported) {
  const std::string file = Export(home_, "alice");
  for (size_t at = 0; at < file.size(); ++at) {
    std::string damaged = file;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
    const auto done = Import(other_, damaged);
    ASSERT_FALSE(done.ok()) << "byte " << at;
    ASSERT_TRUE(other_.sessions.empty() && other_.chunks.empty()) << "byte " << at;
    const std::string message = MessageOf(done.status());
    ASSERT_THAT(message, HasSubstr("session file byte")) << "byte " << at;
    // "bytes BEGIN to END" must hold the flipped one.
    size_t begin = 0;
    size_t end = 0;
    if (std::sscanf(message.c_str(), "session file bytes %zu to %zu", &begin, &end) == 2) {
      ASSERT_LE(begin, at) << message;
      ASSERT_LT(at, end) << message;
    }
  }
}

TEST_F(SessionFile, EveryTruncationIsRefusedAndNothingIsImported) {
  const std::string file = Export(home_, "alice");
  for (size_t size = 0; size < file.size(); size = size < 1000 ? size + 1 : size + 37) {
    const auto done = Import(other_, file.substr(0, size));
    ASSERT_EQ(done.status().code(), absl::StatusCode::kDataLoss) << size;
    ASSERT_THAT(MessageOf(done.status()), HasSubstr("byte " + std::to_string(size == 0 ? 0 : size)))
        << size;
    ASSERT_TRUE(other_.sessions.empty() && other_.chunks.empty()) << size;
  }
  EXPECT_EQ(Import(other_, file + "x").status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(SessionFile, PagesInEachOthersPlaceAreRefused) {
  std::string file = Export(home_, "alice");
  const uint64_t page = LayerPageBytes(SmallLayout().layers[0], 16) + kSessionFileDigestBytes;
  const size_t pages = file.size() - kSessionFileTrailerBytes -
                       3 * (4 * page + LayerPageBytes(SmallLayout().layers[0], 6) + 16);
  std::swap_ranges(file.begin() + pages, file.begin() + pages + page, file.begin() + pages + page);
  const auto done = Import(other_, file);
  EXPECT_EQ(done.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(MessageOf(done.status()), HasSubstr("layer 0 of chunk 0"));
}

TEST_F(SessionFile, OtherVersionIsNamed) {
  std::string file = Export(home_, "alice");
  file[8] = 9;
  const auto done = Import(other_, file);
  EXPECT_EQ(done.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(done.status()), HasSubstr("version is 9, this build reads 1"));
}

TEST_F(SessionFile, IncompleteSessionIsNotExported) {
  home_.chunks.erase(home_.sessions.at("alice").view[2].chunk);
  StringSink sink;
  const auto info = ExportSession(home_, "alice", sink, {});
  EXPECT_EQ(info.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(info.status()), HasSubstr("only 32 of its 70 tokens"));
  EXPECT_TRUE(sink.text.empty());
  EXPECT_EQ(ExportSession(home_, "nobody", sink, {}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SessionFile, DamageInTheStoreStopsTheExport) {
  home_.chunks.begin()->second.pages[1][3] ^= std::byte{1};
  StringSink sink;
  EXPECT_EQ(ExportSession(home_, "alice", sink, {}).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(SessionFile, ImportNeedsAFreeNameAndRoomForAll) {
  const std::string file = Export(home_, "alice");
  EXPECT_EQ(Import(home_, file).status().code(), absl::StatusCode::kAlreadyExists);
  other_.space_tokens = 69;
  const auto done = Import(other_, file);
  EXPECT_EQ(done.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(done.status()), HasSubstr("69 of its 70"));
  EXPECT_TRUE(other_.sessions.empty());
}

TEST_F(SessionFile, CheckNeedsNoStoreAndReportsProgress) {
  const std::string file = Export(home_, "alice");
  StringSource source(file);
  uint64_t last = 0;
  const auto info = CheckSessionFile(source, [&](uint64_t done, uint64_t total) {
    EXPECT_GT(done, last);
    EXPECT_EQ(total, file.size());
    last = done;
  });
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(last, file.size() - kSessionFileTrailerBytes);
  EXPECT_EQ(info->token_count, 70u);
  EXPECT_EQ(info->session, "alice");
}

TEST(SessionFileManifest, RandomBytesNeverDecode) {
  const uint32_t seed = std::random_device()();
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::byte> bytes(random() % 300);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    EXPECT_FALSE(DecodeSessionManifest(bytes).ok()) << "seed " << seed;
    EXPECT_FALSE(DecodeSessionFileHead(bytes, bytes.size()).ok()) << "seed " << seed;
  }
}

TEST(SessionFileManifest, ContradictionsAreNamed) {
  const KvLayout layout = SmallLayout();
  const auto chunk = [](uint8_t id, uint8_t parent, uint32_t tokens) {
    ImportedChunk result{.tokens = std::vector<uint32_t>(tokens, 1), .token_count = tokens};
    result.foreign_id.bytes[0] = id;
    result.foreign_parent.bytes[0] = parent;
    return result;
  };
  const SessionManifest good{.layout = layout,
                             .session = "s",
                             .token_count = 20,
                             .chunks = {chunk(1, 0, 16), chunk(2, 1, 4)},
                             .slices = {{0, 0, 16}, {1, 0, 4}}};
  ASSERT_TRUE(ValidateSessionManifest(good).ok());
  struct Case {
    const char* what;
    std::function<void(SessionManifest*)> spoil;
  };
  const Case cases[] = {
      {"session", [](auto* m) { m->session = ""; }},
      {"token_count is 21", [](auto* m) { m->token_count = 21; }},
      {"chunks[1].token_count is 17", [](auto* m) { m->chunks[1].token_count = 17; }},
      {"chunks[1] has 3 tokens", [](auto* m) { m->chunks[1].token_count = 3; }},
      {"chunks[1].block_hash has 65",
       [](auto* m) {
         m->chunks[1].tokens.clear();
         m->chunks[1].block_hash = std::string(65, 'h');
       }},
      {"has the id", [](auto* m) { m->chunks[1].foreign_id = m->chunks[0].foreign_id; }},
      {"as its parent", [](auto* m) { m->chunks[0].foreign_parent = m->chunks[1].foreign_id; }},
      {"as the root", [](auto* m) { m->chunks[1].parent_is_root = true; }},
      {"slices[0].chunk_index is 1", [](auto* m) { m->slices[0].chunk_index = 1; }},
      {"slices[1].chunk_index is 2", [](auto* m) { m->slices[1].chunk_index = 2; }},
      {"slices[1] is 5 tokens", [](auto* m) { m->slices[1].count = 5; }},
      {"slices[1] is 4294967295 tokens",
       [](auto* m) { m->slices[1] = {.chunk_index = 1, .first = 3, .count = 0xFFFFFFFF}; }},
      {"slices[0] is 0 tokens", [](auto* m) { m->slices[0].count = 0; }},
      {"chunks[1] is shown by no slice", [](auto* m) { m->slices.pop_back(); }},
      {"token_count is 0", [](auto* m) { *m = {.layout = m->layout, .session = "s"}; }},
  };
  for (const Case& one : cases) {
    SessionManifest bad = good;
    one.spoil(&bad);
    const absl::Status status = ValidateSessionManifest(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << one.what;
    EXPECT_THAT(MessageOf(status), HasSubstr(one.what));
    // A file that says so, with a right digest, is refused all the same.
    const std::string bytes = EncodeSessionManifest(bad);
    EXPECT_EQ(DecodeSessionManifest(std::as_bytes(std::span(bytes))).status().code(),
              absl::StatusCode::kDataLoss)
        << one.what;
  }
}

}  // namespace
}  // namespace turnkeep
