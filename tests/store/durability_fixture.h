// A store in a directory of its own that a test opens, fills, closes or lets die, and opens again.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "disk_tier/fsck.h"
#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {

class DurabilityTest : public ::testing::Test {
 protected:
  StoreOptions Options() { return SmallStoreOptions(directory_.path() + "/data", &clock_); }

  void Open(StoreOptions options) {
    opened_.reset();
    auto opened = OpenedStore::Open(std::move(options));
    ASSERT_TRUE(opened.ok()) << opened.status();
    opened_ = *std::move(opened);
    for (const LayoutCase& c : StandardLayouts()) {
      ASSERT_TRUE(kv().RegisterLayout(c.layout).ok()) << c.name;
    }
  }
  void Close() {
    const absl::Status closed = opened_->Close();
    ASSERT_TRUE(closed.ok()) << closed;
    opened_.reset();
  }
  KvStore& kv() { return opened_->kv(); }

  CommitResult Save(const KvPattern& pattern, const std::string& session,
                    const KvContext& context) {
    const auto info = kv().StatSession(session);
    const auto saved = SaveAll(kv(), pattern,
                               {.session = session,
                                .expected_generation = info.ok() ? info->generation : 0,
                                .context = &context});
    EXPECT_TRUE(saved.ok()) << session << ": " << saved.status();
    return saved.ok() ? *saved : CommitResult{};
  }

  RestoreOutcome Restore(const KvPattern& pattern, const std::string& session,
                         const KvContext& context) {
    const auto restored = RestoreAndCheck(
        kv(), pattern, {.session = session, .context = &context, .give_prompt = false});
    EXPECT_TRUE(restored.ok()) << session << ": " << restored.status();
    return restored.ok() ? *restored : RestoreOutcome{};
  }

  void ExpectClean() { ExpectClean(directory_.path() + "/data"); }
  void ExpectClean(const std::string& data_dir) {
    const auto report = Fsck(data_dir, {});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->Clean()) << (report->problems.empty() ? "" : report->problems[0]);
  }

  TemporaryDirectory directory_;
  ManualClock clock_;
  std::unique_ptr<OpenedStore> opened_;
};

}  // namespace turnkeep::testing
