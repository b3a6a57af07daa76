// A file system that fills up under the store: clear errors or durable = false, never wrong bytes,
// and durable commits again when there is space. Needs the right to mount a tmpfs; without it
// the tests skip and say so.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include <gtest/gtest.h>

#include "core/units.h"
#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

class FullDiskTest : public ::testing::Test {
 protected:
  ~FullDiskTest() override {
    opened_.reset();
    if (!mounted_.empty()) umount2(mounted_.c_str(), MNT_DETACH);
  }

  // False when this process may not mount.
  bool Mount(const std::string& path, uint64_t bytes) {
    std::filesystem::create_directories(path);
    const std::string options = "mode=0700,size=" + std::to_string(bytes);
    if (mount("turnkeep-test", path.c_str(), "tmpfs", 0, options.c_str()) != 0) {
      refusal_ = std::strerror(errno);
      return false;
    }
    mounted_ = path;
    return true;
  }

  // A file that takes all space but `left_bytes`.
  void FillUp(uint64_t left_bytes) {
    struct statvfs info {};
    ASSERT_EQ(statvfs(mounted_.c_str(), &info), 0);
    const uint64_t free_bytes = info.f_bavail * info.f_frsize;
    ASSERT_GT(free_bytes, left_bytes);
    const int fd = open((mounted_ + "/balloon").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(posix_fallocate(fd, 0, static_cast<off_t>(free_bytes - left_bytes)), 0);
    close(fd);
  }
  void MakeSpace() { ASSERT_TRUE(std::filesystem::remove(mounted_ + "/balloon")); }

  void Open() {
    opened_.reset();
    auto opened = OpenedStore::Open(SmallStoreOptions(data_dir(), &clock_));
    ASSERT_TRUE(opened.ok()) << opened.status();
    opened_ = *std::move(opened);
    ASSERT_TRUE(opened_->kv().RegisterLayout(pattern_.layout()).ok());
  }

  absl::StatusOr<CommitResult> Save(int i) {
    const KvContext context = ContextOf(static_cast<uint64_t>(i), 64 * 16);  // 1 MiB
    return SaveAll(opened_->kv(), pattern_,
                   {.session = "s" + std::to_string(i), .context = &context});
  }
  uint64_t Restore(int i) {
    const KvContext context = ContextOf(static_cast<uint64_t>(i), 64 * 16);
    const auto restored = RestoreAndCheck(
        opened_->kv(), pattern_, {.session = "s" + std::to_string(i), .context = &context});
    EXPECT_TRUE(restored.ok()) << restored.status();
    return restored.ok() ? restored->token_count : 0;
  }

  // Saves until the disk takes no more; returns how many commits were durable.
  int SaveUntilFull(int from, int to) {
    int durable = 0;
    for (int i = from; i < to; ++i) {
      const auto saved = Save(i);
      if (!saved.ok()) {
        EXPECT_FALSE(absl::IsInternal(saved.status())) << saved.status();
        EXPECT_NE(saved.status().message(), "");
        continue;
      }
      if (saved->durable) {
        ++durable;
      } else {
        EXPECT_NE(saved->note, "");
      }
      EXPECT_EQ(Restore(i), 64u * 16) << i;  // from host memory, if not from disk
    }
    return durable;
  }

  std::string data_dir() const { return directory_.path() + "/data"; }

  TemporaryDirectory directory_;
  ManualClock clock_;
  KvPattern pattern_{BlockLayout()};
  std::string mounted_;
  std::string refusal_;
  std::unique_ptr<OpenedStore> opened_;
};

TEST_F(FullDiskTest, NoSpaceForExtents) {
  if (!Mount(data_dir() + "/extents", 64 * kMiB)) GTEST_SKIP() << "mount: " << refusal_;
  std::filesystem::permissions(data_dir(), std::filesystem::perms::owner_all);
  Open();
  ASSERT_TRUE(Save(0)->durable);
  FillUp(9 * kMiB);  // two more files of 4 MiB
  const int durable = SaveUntilFull(1, 24);
  // When the file system gives no more files, older copies make room in those there are.
  EXPECT_GT(durable, 0);
  Restore(0);  // right bytes, or a miss if later saves took its room
  MakeSpace();
  const auto saved = Save(50);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_TRUE(saved->durable) << saved->note;
  ASSERT_TRUE(opened_->Close().ok());
  Open();
  EXPECT_EQ(Restore(50), 64u * 16);
  for (int i = 0; i < 24; ++i) Restore(i);  // right bytes or a miss
}

TEST_F(FullDiskTest, NoSpaceForAnything) {
  if (!Mount(directory_.path(), 64 * kMiB)) GTEST_SKIP() << "mount: " << refusal_;
  Open();
  for (int i = 0; i < 6; ++i) {
    const auto saved = Save(i);
    ASSERT_TRUE(saved.ok() && saved->durable) << saved.status();
  }
  FillUp(64 * kKiB);
  SaveUntilFull(6, 40);
  // Later saves may have taken the room of earlier ones: right bytes or a miss.
  for (int i = 0; i < 6; ++i) Restore(i);
  (void)opened_->Close();  // may say that it could not
  MakeSpace();
  Open();
  for (int i = 0; i < 40; ++i) Restore(i);
  const auto saved = Save(50);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_TRUE(saved->durable) << saved->note;
}

}  // namespace
}  // namespace turnkeep::testing
