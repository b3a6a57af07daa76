// Where the file system refuses direct I/O or the kernel io_uring, the store works on and says so.
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "disk_tier/block_device.h"
#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

// Saves a session, restores it from disk after reopening, and returns what status calls the device;
// or what went wrong.
std::string SaveReopenRestore(const StoreOptions& options) {
  const KvPattern pattern(BlockLayout());
  const KvContext context = ContextOf(1, 300);
  for (const bool saving : {true, false}) {
    auto opened = OpenedStore::Open(options);
    if (!opened.ok()) return "open: " + opened.status().ToString();
    KvStore& kv = (*opened)->kv();
    if (!kv.RegisterLayout(BlockLayout()).ok()) return "register";
    if (saving) {
      const auto saved = SaveAll(kv, pattern, {.session = "s", .context = &context});
      if (!saved.ok()) return "save: " + saved.status().ToString();
    } else {
      const auto restored = RestoreAndCheck(kv, pattern, {.session = "s", .context = &context});
      if (!restored.ok()) return "restore: " + restored.status().ToString();
      if (restored->token_count != 300) return "restored " + restored->miss_reason;
      if (restored->disk_tokens != 300) return "not from disk";
    }
    const auto status = kv.Status();
    if (!status.ok()) return "status: " + status.status().ToString();
    if (const absl::Status closed = (*opened)->Close(); !closed.ok()) return closed.ToString();
    if (!saving) return status->disk.description;
  }
  return "";
}

// A folder on a file system in memory; empty when there is none.
std::string FolderInMemory() {
  struct statfs info {};
  if (::statfs("/dev/shm", &info) != 0 || info.f_type != TMPFS_MAGIC) return "";
  std::string folder = "/dev/shm/turnkeep_test_XXXXXX";
  return ::mkdtemp(folder.data()) == nullptr ? "" : folder;
}

TEST(DiskFallback, AFileSystemWithoutDirectIoIsUsedBufferedAndNamed) {
  const std::string folder = FolderInMemory();
  if (folder.empty()) GTEST_SKIP() << "no tmpfs at /dev/shm";
  ManualClock clock;
  const std::string description = SaveReopenRestore(SmallStoreOptions(folder + "/data", &clock));
  EXPECT_THAT(description, HasSubstr("buffered I/O (direct I/O on " + folder));
  const auto refused = OpenBestBlockDevice(folder + "/other", {.allow_buffered = false});
  EXPECT_FALSE(refused.ok());
  EXPECT_THAT(MessageOf(refused.status()), HasSubstr(folder + "/other"));
  std::filesystem::remove_all(folder);
}

// From here on io_uring_setup of this process fails with EPERM, as in many containers.
bool ForbidIoUring() {
  std::array<sock_filter, 4> program = {
      sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog filter{.len = program.size(), .filter = program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

// Saves and restores where io_uring is forbidden; prints the description and exits with 0.
[[noreturn]] void RunWithoutIoUring() {
  int code = 77;
  if (ForbidIoUring()) {
    TemporaryDirectory directory;
    ManualClock clock;
    const StoreOptions options = SmallStoreOptions(directory.path() + "/data", &clock);
    std::fprintf(stderr, "%s\n", SaveReopenRestore(options).c_str());
    code = 0;
  } else {
    std::fprintf(stderr, "no seccomp: pread/pwrite threads (io_uring_setup: not tried)\n");
  }
  std::exit(code);
}

TEST(DiskFallback, AKernelThatRefusesIoUringIsServedByThreadsAndNamed) {
  // In a process of its own: the filter stays for the life of a process.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto ended = [](int status) {
    return WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77);
  };
  EXPECT_EXIT(RunWithoutIoUring(), ended,
              "pread/pwrite threads \\(io_uring_setup: (Operation not permitted|not tried)");
}

TEST(DiskFallback, WhatTheOperatorTurnedOffIsNamed) {
  TemporaryDirectory directory;
  ManualClock clock;
  StoreOptions options = SmallStoreOptions(directory.path() + "/data", &clock);
  options.io_uring = false;
  options.direct_io = false;
  const std::string description = SaveReopenRestore(options);
  EXPECT_THAT(description, HasSubstr("pread/pwrite threads"));
  EXPECT_THAT(description, HasSubstr("buffered I/O (direct I/O turned off)"));
}

}  // namespace
}  // namespace turnkeep::testing
