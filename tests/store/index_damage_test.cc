// RocksDB's CURRENT lost: a new index is not begun beside what is left of the old one. Its MANIFEST
// cut: nothing is opened that has forgotten what it knew.
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "store/durability_fixture.h"

namespace turnkeep::testing {
namespace {

namespace fs = std::filesystem;

class IndexDamage : public DurabilityTest {
 protected:
  std::string index() { return directory_.path() + "/data/index"; }
  std::set<std::string> Files() {
    std::set<std::string> found;
    for (const auto& entry : fs::directory_iterator(index()))
      found.insert(entry.path().filename().string());
    return found;
  }
};

TEST_F(IndexDamage, ANewIndexIsNotBegunBesideWhatIsLeftOfAnOld) {
  const KvPattern pattern(TinyLayout());
  const KvContext context = ContextOf(1, 500);
  ASSERT_NO_FATAL_FAILURE(Open(Options()));
  Save(pattern, "s", context);
  ASSERT_NO_FATAL_FAILURE(Close());
  std::string current;
  std::getline(std::ifstream(index() + "/CURRENT"), current);
  ASSERT_TRUE(fs::remove(index() + "/CURRENT"));
  const std::set<std::string> before = Files();
  const auto opened = OpenedStore::Open(Options());
  EXPECT_TRUE(absl::IsDataLoss(opened.status())) << opened.status();
  EXPECT_THAT(std::string(opened.status().message()), ::testing::HasSubstr("CURRENT"));
  EXPECT_EQ(Files(), before);
  // The way on that the message names.
  std::ofstream(index() + "/CURRENT") << current << "\n";
  ASSERT_NO_FATAL_FAILURE(Open(Options()));
  EXPECT_EQ(Restore(pattern, "s", context).token_count, context.size());
}

TEST_F(IndexDamage, AManifestThatWasCutIsNotTakenForAWholeOne) {
  const KvPattern pattern(TinyLayout());
  const KvContext context = ContextOf(1, 500);
  ASSERT_NO_FATAL_FAILURE(Open(Options()));
  Save(pattern, "s", context);
  ASSERT_NO_FATAL_FAILURE(Close());
  std::string name;
  std::getline(std::ifstream(index() + "/CURRENT"), name);
  const std::string manifest = index() + "/" + name;
  fs::copy_file(manifest, directory_.path() + "/whole");
  const std::set<std::string> before = Files();
  for (const uint64_t left : {fs::file_size(manifest) / 2, fs::file_size(manifest) - 1}) {
    fs::resize_file(manifest, left);
    const auto opened = OpenedStore::Open(Options());
    EXPECT_TRUE(absl::IsDataLoss(opened.status())) << left << ": " << opened.status();
    EXPECT_THAT(std::string(opened.status().message()), ::testing::HasSubstr(name));
    EXPECT_EQ(Files(), before);
  }
  fs::copy_file(directory_.path() + "/whole", manifest, fs::copy_options::overwrite_existing);
  ASSERT_NO_FATAL_FAILURE(Open(Options()));
  EXPECT_EQ(Restore(pattern, "s", context).token_count, context.size());
}

}  // namespace
}  // namespace turnkeep::testing
