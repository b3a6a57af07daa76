// One bit flipped in every MiB of the data files: every affected read is a miss, none is wrong.
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <random>

#include <gtest/gtest.h>

#include "core/units.h"
#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

constexpr int kSessions = 40;

KvContext ContextOfSession(int i) { return ContextOf(static_cast<uint64_t>(i), 64 * 10 + 5); }

// Flips one bit at a random place of every MiB of every extent file. Returns how many.
int FlipBits(const std::string& extents, uint64_t seed) {
  std::mt19937_64 random(seed);
  int flipped = 0;
  for (const auto& entry : std::filesystem::directory_iterator(extents)) {
    const int fd = open(entry.path().c_str(), O_RDWR | O_CLOEXEC);
    EXPECT_GE(fd, 0) << entry.path();
    const uint64_t bytes = std::filesystem::file_size(entry.path());
    for (uint64_t begin = 0; begin < bytes; begin += kMiB) {
      const auto at = static_cast<off_t>(begin + random() % std::min(kMiB, bytes - begin));
      uint8_t byte = 0;
      EXPECT_EQ(pread(fd, &byte, 1, at), 1);
      byte ^= static_cast<uint8_t>(1u << random() % 8);
      EXPECT_EQ(pwrite(fd, &byte, 1, at), 1);
      ++flipped;
    }
    EXPECT_EQ(fsync(fd), 0);
    close(fd);
  }
  return flipped;
}

TEST(BitFlips, OneAMebibyteMakesMissesAndNeverWrongBytes) {
  for (const uint64_t seed : {1u, 2u, 3u}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    TemporaryDirectory directory;
    ManualClock clock;
    const StoreOptions options = SmallStoreOptions(directory.path() + "/data", &clock);
    const KvPattern block(BlockLayout());
    const KvPattern packed(EveryKindLayout());
    const auto pattern_of = [&](int i) -> const KvPattern& { return i % 4 == 0 ? packed : block; };
    {
      auto opened = OpenedStore::Open(options);
      ASSERT_TRUE(opened.ok()) << opened.status();
      for (const KvPattern* pattern : {&block, &packed}) {
        ASSERT_TRUE((*opened)->kv().RegisterLayout(pattern->layout()).ok());
      }
      for (int i = 0; i < kSessions; ++i) {
        const KvContext context = ContextOfSession(i);
        const auto saved = SaveAll((*opened)->kv(), pattern_of(i),
                                   {.session = "s" + std::to_string(i), .context = &context});
        ASSERT_TRUE(saved.ok()) << saved.status();
      }
      ASSERT_TRUE((*opened)->Close().ok());
    }
    const int flipped = FlipBits(options.data_dir + "/extents", seed);
    ASSERT_GT(flipped, 20);
    auto opened = OpenedStore::Open(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    int whole = 0, cut = 0;
    for (int i = 0; i < kSessions; ++i) {
      const KvContext context = ContextOfSession(i);
      // Twice: what was found damaged stays a miss.
      for (int again = 0; again < 2; ++again) {
        const auto restored =
            RestoreAndCheck((*opened)->kv(), pattern_of(i),
                            {.session = "s" + std::to_string(i), .context = &context});
        ASSERT_TRUE(restored.ok()) << restored.status();
        if (restored->token_count == context.size()) {
          ++whole;
        } else {
          ++cut;
          EXPECT_NE(restored->miss_reason, "");
        }
      }
    }
    EXPECT_GT(whole, 0);
    EXPECT_GT(cut, 0);
    // Found on the way from the disk, before an engine could look at it in host memory.
    const auto status = (*opened)->kv().Status();
    ASSERT_TRUE(status.ok()) << status.status();
    int tiers = 0;
    for (const auto& count : status->counts) {
      if (count.name.find("digest_failures") == std::string::npos) continue;
      ++tiers;
      EXPECT_EQ(count.value > 0, count.labels == "tier=\"disk\"") << count.labels << count.value;
    }
    EXPECT_EQ(tiers, 2);
    const auto report = (*opened)->kv().Verify({.repair = true}, {});
    ASSERT_TRUE(report.ok()) << report.status();
    const auto again = (*opened)->kv().Verify({}, {});
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->disk_copies_damaged + again->host_copies_damaged, 0u);
  }
}

}  // namespace
}  // namespace turnkeep::testing
