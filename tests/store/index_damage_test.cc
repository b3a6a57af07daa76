// RocksDB's CURRENT lost: a new index is not begun beside what is left of the old one.
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

}  // namespace
}  // namespace turnkeep::testing
