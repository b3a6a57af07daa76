// A fixture: an embedded store over a directory of its own, opened again and again, with sessions
// s0, s1, … of known contents that are on disk and not in host memory.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "core/clock.h"
#include "core/kv_store.h"
#include "disk_tier/testing/fault_block_device.h"
#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {

class DiskSessions : public ::testing::Test {
 protected:
  // Sessions of `tokens` tokens in `layout`. Every read and write goes through device_ until
  // a test sets another options_.wrap_device.
  explicit DiskSessions(uint64_t tokens, const KvLayout& layout = BlockLayout())
      : options_(SmallStoreOptions(directory_.path() + "/data", &clock_)),
        pattern_(layout),
        layout_(layout),
        tokens_(tokens) {
    options_.wrap_device = [this](std::unique_ptr<BlockDevice> device) {
      auto faulty = std::make_unique<FaultBlockDevice>(std::move(device));
      device_ = faulty.get();
      return faulty;
    };
  }

  // Sessions s0 … of those that are not there yet, then the store anew: none in host memory.
  void OpenWithSessions(uint64_t sessions) {
    Reopen();
    for (uint64_t i = 0; i < sessions; ++i)
      if (!kv().StatSession(Name(i)).ok()) Save(i);
    ASSERT_TRUE(opened_->Close().ok());
    Reopen();
    ASSERT_EQ(HostBytes(), 0u);
    session_bytes_ = kv().StatSession(Name(0))->disk_bytes;
    ASSERT_GT(session_bytes_, 0u);
  }
  // Without Close, as a process leaves it that ends unasked.
  void Reopen() {
    opened_.reset();
    auto opened = OpenedStore::Open(options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    opened_ = *std::move(opened);
    ASSERT_TRUE(kv().RegisterLayout(layout_).ok());
  }
  void Save(uint64_t i) { SaveAs(Name(i), i); }
  void SaveAs(const std::string& session, uint64_t context_number) {
    const KvContext context = ContextOf(context_number, tokens_);
    const auto saved = SaveAll(kv(), pattern_, {.session = session, .context = &context});
    ASSERT_TRUE(saved.ok()) << saved.status();
    ASSERT_EQ(saved->token_count, tokens_);
  }
  // Every byte that comes back is compared.
  RestoreOutcome Restore(uint64_t i, RestoreAllOptions options = {}) {
    const KvContext context = ContextOf(i, tokens_);
    options.session = Name(i);
    options.context = &context;
    const auto restored = RestoreAndCheck(kv(), pattern_, options);
    EXPECT_TRUE(restored.ok()) << restored.status();
    return restored.ok() ? *restored : RestoreOutcome{};
  }
  // Sum over the labels of a count of the status.
  double Count(const std::string& name) {
    double sum = 0;
    const auto status = kv().Status();
    for (const NamedCount& count : status->counts)
      if (count.name == name) sum += count.value;
    return sum;
  }
  uint64_t HostBytes() { return kv().Status()->host.used_bytes; }
  static std::string Name(uint64_t i) { return "s" + std::to_string(i); }
  KvStore& kv() { return opened_->kv(); }

  TemporaryDirectory directory_;
  ManualClock clock_;
  StoreOptions options_;
  const KvPattern pattern_;
  const KvLayout layout_;
  const uint64_t tokens_;
  FaultBlockDevice* device_ = nullptr;  // of the store that is open
  uint64_t session_bytes_ = 0;          // of one session on disk
  std::unique_ptr<OpenedStore> opened_;
};

}  // namespace turnkeep::testing
