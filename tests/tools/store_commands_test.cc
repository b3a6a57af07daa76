// The commands over the real store on a directory: what verify, fsck, export and import say of
// real chunks, whole and damaged.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include <gmock/gmock.h>

#include "command_fixture.h"
#include "store/store.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

class StoreCommands : public CommandFixture {
 protected:
  StoreCommands() {
    environment_.clock = Clock::System();
    environment_.connect = [this](const GlobalOptions&) -> absl::StatusOr<Connection> {
      return Connection{.store = kv_.get()};
    };
    Open();
    // Layers large enough to be read alone.
    layout_ = *kv_->RegisterLayout(BigPages());
  }
  ~StoreCommands() override { kv_.reset(); }

  static KvLayout BigPages() {
    KvLayout layout{.model = "big-pages", .weights_revision = "1", .chunk_tokens = 64};
    layout.layers.assign(2, LayerSpec::Full(2, 32, DType::kFloat32));
    return layout;
  }

  void Open() {
    auto store = Store::Open({.data_dir = directory_.path() + "/data",
                              .host_bytes = 64 * kMiB,
                              .disk_bytes = 64 * kMiB,
                              .host_segment_bytes = 4 * kMiB,
                              .extent_file_bytes = 8 * kMiB});
    ASSERT_TRUE(store.ok()) << store.status();
    store_on_disk_ = *std::move(store);
    kv_ = *store_on_disk_->ForTenant("default");
  }
  void Close() {
    kv_.reset();
    ASSERT_TRUE(store_on_disk_->Close(absl::Seconds(30)).ok());
    store_on_disk_.reset();
  }
  void SaveReal(const std::string& session, uint32_t count) {
    std::vector<uint32_t> tokens(count);
    for (uint32_t i = 0; i < count; ++i) tokens[i] = i * 7;
    const auto saved = SaveTokens(*kv_, session, layout_, tokens);
    ASSERT_TRUE(saved.ok()) << saved.status();
  }
  static std::string Content(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  }
  // Where the layer pages of a session file begin.
  static size_t PagesOffset(const std::string& session_file) {
    uint64_t manifest_bytes = 0;
    std::memcpy(&manifest_bytes, session_file.data() + 16, sizeof(manifest_bytes));
    return kSessionFileHeadBytes + manifest_bytes;
  }
  // Damages the one place of the data directory that holds `bytes`.
  bool FlipOneByteOf(const std::string& bytes) const {
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(directory_.path() + "/data")) {
      if (!entry.is_regular_file()) continue;
      const size_t at = Content(entry.path().string()).find(bytes);
      if (at == std::string::npos) continue;
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(bytes[0] ^ 1));
      return file.good();
    }
    return false;
  }
  std::string File(const std::string& name) const { return directory_.path() + "/" + name; }

  TemporaryDirectory directory_;
  std::unique_ptr<Store> store_on_disk_;
  std::unique_ptr<KvStore> kv_;
};

TEST_F(StoreCommands, SessionsAreListedShownDrawnAndExplained) {
  SaveReal("alice", 200);
  ASSERT_EQ(Run({"fork", "alice", "bob", "--tokens", "128"}).code, 0) << ran_.err;
  EXPECT_EQ(Run({"ls", "--names"}).out, "alice\nbob\n");
  const auto shown = Run({"show", "alice", "--json"}).json();
  EXPECT_EQ(shown["spans"].size(), 4u);
  EXPECT_EQ(shown["spans"][0]["session_count"], 2);
  EXPECT_EQ(shown["truncated"], false);
  EXPECT_THAT(Run({"tree"}).out, HasSubstr("2 sessions"));
  EXPECT_EQ(Run({"explain", "alice"}).code, 0) << ran_.out;
  EXPECT_EQ(Run({"explain", "nobody"}).code, 3);
  EXPECT_EQ(Run({"status", "--counters"}).code, 0);
  EXPECT_EQ(Run({"top", "--count", "2"}).code, 0);
  EXPECT_EQ(Run({"drop", "alice", "bob"}).code, 0);
  EXPECT_EQ(Run({"ls"}).out, "no sessions\n");
}

TEST_F(StoreCommands, ExportedSessionComesBackByteForByteAndSharesChunks) {
  SaveReal("alice", 200);
  ASSERT_EQ(Run({"export", "alice", File("a.tks")}).code, 0) << ran_.err;
  // Beside the original, nothing new is stored.
  ASSERT_EQ(Run({"import", File("a.tks"), "--as", "copy", "--json"}).code, 0) << ran_.err;
  EXPECT_EQ(ran_.json()["new_chunks"], 0);
  ASSERT_EQ(Run({"drop", "alice", "copy"}).code, 0);
  ASSERT_EQ(Run({"import", File("a.tks"), "--json"}).code, 0) << ran_.err;
  EXPECT_EQ(ran_.json()["new_chunks"], 4);
  ASSERT_EQ(Run({"export", "alice", File("b.tks")}).code, 0) << ran_.err;
  // Equal but for the time of export and what is computed over it: the pages are the same bytes.
  const std::string left = Content(File("a.tks"));
  const std::string right = Content(File("b.tks"));
  ASSERT_EQ(left.size(), right.size());
  const size_t pages = PagesOffset(left);
  EXPECT_EQ(left.substr(pages, left.size() - pages - kSessionFileTrailerBytes),
            right.substr(pages, right.size() - pages - kSessionFileTrailerBytes));
}

TEST_F(StoreCommands, TruncatedSessionKeepsItsSlicesAndPositionsThroughAFile) {
  SaveReal("alice", 300);
  ASSERT_EQ(Run({"truncate", "alice", "--drop", "10:150"}).code, 0) << ran_.err;
  const auto before = Run({"show", "alice", "--json"}).json();
  ASSERT_EQ(Run({"export", "alice", File("a.tks")}).code, 0) << ran_.err;
  ASSERT_EQ(Run({"drop", "alice"}).code, 0);
  ASSERT_EQ(Run({"import", File("a.tks")}).code, 0) << ran_.err;
  const auto after = Run({"show", "alice", "--json"}).json();
  ASSERT_EQ(before["spans"].size(), after["spans"].size());
  for (size_t i = 0; i < before["spans"].size(); ++i) {
    for (const char* key : {"token_begin", "token_count", "first_in_chunk", "stored_position"}) {
      EXPECT_EQ(before["spans"][i][key], after["spans"][i][key]) << i << " " << key;
    }
  }
  EXPECT_EQ(after["truncated"], true);
}

TEST_F(StoreCommands, FsckFindsAFlippedByteAndRepairs) {
  SaveReal("alice", 200);
  EXPECT_EQ(Run({"verify"}).code, 0) << ran_.out;
  ASSERT_EQ(Run({"export", "alice", File("a.tks")}).code, 0) << ran_.err;
  const std::string page = Content(File("a.tks")).substr(PagesOffset(Content(File("a.tks"))), 64);
  EXPECT_EQ(Run({"fsck", directory_.path()}).code, 5) << ran_.err;  // the store has it open
  Close();
  ASSERT_EQ(Run({"fsck", directory_.path()}).code, 0) << ran_.out << ran_.err;
  EXPECT_THAT(ran_.out, HasSubstr("verdict:    clean"));

  ASSERT_TRUE(FlipOneByteOf(page)) << "the first page of the export is in no data file";

  const auto report = Run({"fsck", directory_.path(), "--json"});
  EXPECT_EQ(report.code, 1) << report.out;
  EXPECT_EQ(report.json()["clean"], false);
  EXPECT_EQ(report.json()["chunks_damaged"], 1);
  EXPECT_EQ(Run({"fsck", directory_.path(), "--repair"}).code, 1);
  EXPECT_THAT(ran_.out, HasSubstr("removed:"));
  EXPECT_EQ(Run({"fsck", directory_.path()}).code, 0) << ran_.out;
}

TEST_F(StoreCommands, ARebuildThatLostMuchSaysSoInFewLines) {
  SaveReal("alice", 64 * 40);
  Close();
  const std::string data = directory_.path() + "/data";
  ASSERT_TRUE(std::filesystem::remove(data + "/index/CURRENT"));
  for (const auto& entry : std::filesystem::directory_iterator(data + "/extents")) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096);  // the file's header stays
    const std::string junk(entry.file_size() - 4096, 'x');
    file.write(junk.data(), static_cast<std::streamsize>(junk.size()));
    ASSERT_TRUE(file.flush().good());
  }
  EXPECT_EQ(Run({"fsck", directory_.path(), "--rebuild-index"}).code, 1) << ran_.err;
  EXPECT_THAT(ran_.out, HasSubstr("chunks left out:  40"));
  EXPECT_THAT(ran_.out, HasSubstr("more, which --json lists"));
  EXPECT_LT(std::count(ran_.out.begin(), ran_.out.end(), '\n'), 40);
}

}  // namespace
}  // namespace turnkeep::testing
