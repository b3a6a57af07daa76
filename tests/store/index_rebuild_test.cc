// RocksDB's own files damaged, one after the other: the store opens and gives the right bytes or
// misses, or says what is wrong and names the way on; and that way leads back to a store.
#include "disk_tier/index_rebuild.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "store/durability_fixture.h"

namespace turnkeep::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr uint64_t kTokens = 16 * 70 + 5;  // two span blocks and a tail

class IndexRebuild : public DurabilityTest {
 protected:
  struct Kept {
    std::string session;
    KvContext context;
  };

  // Sessions of two runs, the first of which is in tables, the second in the log alone; one is
  // truncated, one truncated and continued, one dropped.
  void Fill() {
    for (const int run : {1, 2}) {
      ASSERT_NO_FATAL_FAILURE(Open(Options()));
      for (int i = 0; i < 3; ++i) {
        const std::string name = fmt::format("run{}-{}", run, i);
        KvContext context = ContextOf(static_cast<uint64_t>(run * 10 + i), kTokens);
        Save(pattern_, name, context);
        if (i > 0) {
          ASSERT_TRUE(kv().TruncateSession({.session = name,
                                            .expected_generation = 1,
                                            .drop_begin = 64,
                                            .drop_end = 128})
                          .ok());
          context.Drop(64, 128);
        }
        if (i == 2) {
          context = Extended(context, 99, 200);
          Save(pattern_, name, context);
        }
        kept_.push_back({name, context});
      }
      Save(pattern_, "dropped", ContextOf(77, 300));
      ASSERT_TRUE(kv().DropSession("dropped").ok());
      if (run == 1) Close();
    }
    opened_.reset();  // as a process that dies
    fs::copy(data(), pristine(), fs::copy_options::recursive);
  }
  void StartOver() {
    opened_.reset();
    fs::remove_all(data());
    fs::copy(pristine(), data(), fs::copy_options::recursive);
  }
  std::vector<fs::path> Files(const std::string& prefix, const std::string& suffix) {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(data() + "/index")) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(prefix) && name.ends_with(suffix)) found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end());
    return found;
  }
  // Every session is restored with the right bytes as far as it goes. Returns the tokens.
  uint64_t RestoreAll() {
    uint64_t tokens = 0;
    for (const Kept& kept : kept_) {
      if (!kv().StatSession(kept.session).ok()) continue;
      for (const bool prompt : {true, false}) {
        const auto restored = RestoreAndCheck(
            kv(), pattern_,
            {.session = kept.session, .context = &kept.context, .give_prompt = prompt});
        EXPECT_TRUE(restored.ok()) << kept.session << ": " << restored.status();
        if (restored.ok() && !prompt) tokens += restored->token_count;
      }
    }
    return tokens;
  }
  uint64_t AllTokens() const {
    uint64_t tokens = 0;
    for (const Kept& kept : kept_) tokens += kept.context.size();
    return tokens;
  }
  IndexRebuildReport Rebuild() {
    auto report = RebuildIndex(data(), {});
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *std::move(report) : IndexRebuildReport{};
  }
  // The store opens, or says how to go on; both ways a new index is then made of what there is.
  // Returns the tokens restored after that.
  uint64_t OpenThenRebuild(bool* opens, IndexRebuildReport* report) {
    auto opened = OpenedStore::Open(Options());
    *opens = opened.ok();
    if (*opens) {
      opened_ = *std::move(opened);
      RestoreAll();
      opened_.reset();
    } else {
      EXPECT_TRUE(absl::IsDataLoss(opened.status())) << opened.status();
      EXPECT_THAT(std::string(opened.status().message()), HasSubstr("--rebuild-index"));
    }
    *report = Rebuild();
    EXPECT_EQ(report->repaired_after.empty(), *opens);
    EXPECT_TRUE(fs::is_directory(report->kept_as));
    auto again = OpenedStore::Open(Options());
    EXPECT_TRUE(again.ok()) << again.status();
    if (!again.ok()) return 0;
    opened_ = *std::move(again);
    const uint64_t tokens = RestoreAll();
    // And it is a store like any other.
    EXPECT_TRUE(kv().RegisterLayout(pattern_.layout()).ok());
    Save(pattern_, "new", ContextOf(55, 500));
    opened_.reset();
    again = OpenedStore::Open(Options());
    EXPECT_TRUE(again.ok()) << again.status();
    if (!again.ok()) return 0;
    opened_ = *std::move(again);
    EXPECT_EQ(Restore(pattern_, "new", ContextOf(55, 500)).token_count, 500u);
    opened_.reset();
    return tokens;
  }

  static void Overwrite(const fs::path& path, uint64_t offset, const std::string& bytes) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file << bytes;
  }
  std::string data() { return directory_.path() + "/data"; }
  std::string pristine() { return directory_.path() + "/pristine"; }

  const KvPattern pattern_{TinyLayout()};
  std::vector<Kept> kept_;
};

struct Damage {
  const char* what;
  std::function<void(const fs::path&)> make;
};

std::vector<Damage> Damages(
    const std::function<void(const fs::path&, uint64_t, const std::string&)>& overwrite) {
  return {
      {"lost", [](const fs::path& path) { fs::remove(path); }},
      {"cut in half", [](const fs::path& path) { fs::resize_file(path, fs::file_size(path) / 2); }},
      {"zeros in front",
       [=](const fs::path& path) {
         overwrite(path, 0, std::string(std::min<uint64_t>(64, fs::file_size(path)), '\0'));
       }},
      {"noise in the middle",
       [=](const fs::path& path) { overwrite(path, fs::file_size(path) / 2, "noise noise"); }},
  };
}

TEST_F(IndexRebuild, WithoutCurrentOrManifestAllIsBack) {
  ASSERT_NO_FATAL_FAILURE(Fill());
  for (const std::string name : {"CURRENT", "MANIFEST-"}) {
    for (const Damage& damage : Damages(&IndexRebuild::Overwrite)) {
      // A name is there or not.
      if (name == "CURRENT" && damage.what != std::string("lost")) continue;
      SCOPED_TRACE(fmt::format("{} {}", name, damage.what));
      StartOver();
      const std::vector<fs::path> files = Files(name, "");
      ASSERT_FALSE(files.empty());
      for (const fs::path& file : files) damage.make(file);
      bool opens = false;
      IndexRebuildReport report;
      EXPECT_EQ(OpenThenRebuild(&opens, &report), AllTokens());
      EXPECT_FALSE(opens);
      EXPECT_EQ(report.sessions_lost + report.sessions_cut, 0u);
    }
  }
}

TEST_F(IndexRebuild, ADamagedTableOrLogLeadsToMissesAndNothingWorse) {
  ASSERT_NO_FATAL_FAILURE(Fill());
  const std::vector<Damage> damages = Damages(&IndexRebuild::Overwrite);
  size_t table = 0;
  int repaired = 0;
  uint64_t found = 0;
  for (const std::string suffix : {".sst", ".log"}) {
    StartOver();
    for (const fs::path& file : Files("", suffix)) {
      ++table;
      for (const Damage& damage : damages) {
        // Of each table one, in turn: they are many.
        if (suffix == ".sst" && &damage != &damages[table % damages.size()]) continue;
        SCOPED_TRACE(fmt::format("{} {}", file.filename().string(), damage.what));
        StartOver();
        damage.make(file);
        bool opens = false;
        IndexRebuildReport report;
        EXPECT_LE(OpenThenRebuild(&opens, &report), AllTokens());
        repaired += opens ? 0 : 1;
        found += report.chunks_found;
        // What is lost is said.
        if (!opens) {
          EXPECT_FALSE(report.Clean());
        }
      }
    }
  }
  EXPECT_GT(repaired, 0);
  EXPECT_GT(found, 0u) << "no chunk whose record was lost was found by its header";
}

TEST_F(IndexRebuild, OfAWholeIndexNothingIsLostAndTheOldOneIsKept) {
  ASSERT_NO_FATAL_FAILURE(Fill());
  for (int round = 0; round < 2; ++round) {
    const IndexRebuildReport report = Rebuild();
    EXPECT_TRUE(report.Clean()) << ::testing::PrintToString(report.problems);
    EXPECT_EQ(report.tenants, 1u);
    EXPECT_EQ(report.sessions, kept_.size());
    EXPECT_EQ(report.missing_chunks, 0u);
  }
  EXPECT_TRUE(fs::is_directory(data() + "/index.damaged"));
  EXPECT_TRUE(fs::is_directory(data() + "/index.damaged-2"));
  EXPECT_FALSE(fs::exists(data() + "/index.scratch"));
  EXPECT_FALSE(fs::exists(data() + "/index.new"));
  ASSERT_NO_FATAL_FAILURE(Open(Options()));
  EXPECT_EQ(RestoreAll(), AllTokens());
  EXPECT_TRUE(absl::IsNotFound(kv().StatSession("dropped").status()));
  const auto busy = RebuildIndex(data(), {});
  EXPECT_TRUE(absl::IsFailedPrecondition(busy.status())) << busy.status();
}

// Bytes that no longer are what the record says are not taken over.
TEST_F(IndexRebuild, DamagedChunksAreLeftOutAndTheirSessionsMissThem) {
  ASSERT_NO_FATAL_FAILURE(Fill());
  fs::remove(data() + "/index/CURRENT");
  Overwrite(data() + "/extents/00000001.tkx", 4096 + 320, "noise");  // a page of slot 0
  const IndexRebuildReport report = Rebuild();
  EXPECT_GE(report.chunks_left_out, 1u);
  EXPECT_GE(report.missing_chunks, 1u);
  ASSERT_NO_FATAL_FAILURE(Open(Options()));
  const uint64_t tokens = RestoreAll();
  EXPECT_GT(tokens, 0u);
  EXPECT_LT(tokens, AllTokens());
}

TEST_F(IndexRebuild, OneThatWasCutShortIsFinishedByTheNext) {
  ASSERT_NO_FATAL_FAILURE(Fill());
  fs::rename(data() + "/index", data() + "/index.new");  // as between two renames
  const auto opened = OpenedStore::Open(Options());
  EXPECT_TRUE(absl::IsDataLoss(opened.status())) << opened.status();
  Rebuild();
  ASSERT_NO_FATAL_FAILURE(Open(Options()));
  EXPECT_EQ(RestoreAll(), AllTokens());
}

}  // namespace
}  // namespace turnkeep::testing
