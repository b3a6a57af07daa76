#include "store/kv_store_suite.h"

#include <absl/time/clock.h>

namespace turnkeep::testing {

void KvStoreSuite::Open(const SuiteStoreOptions& options) {
  store_.reset();
  generations_.clear();
  store_ = GetParam().make(options);
  ASSERT_NE(store_, nullptr);
}

KvPattern KvStoreSuite::Register(const KvLayout& layout, bool hashed) {
  const auto fingerprint = kv().RegisterLayout(layout);
  EXPECT_TRUE(fingerprint.ok()) << fingerprint.status();
  KvPattern pattern(layout, hashed);
  if (fingerprint.ok()) {
    EXPECT_EQ(*fingerprint, pattern.fingerprint());
  }
  return pattern;
}

CommitResult KvStoreSuite::Save(const KvPattern& pattern, const std::string& session,
                                const KvContext& context) {
  auto saved = SaveAll(
      kv(), pattern,
      {.session = session, .expected_generation = generations_[session], .context = &context});
  if (!saved.ok()) {
    ADD_FAILURE() << "save of " << session << " (" << context.size()
                  << " tokens): " << saved.status();
    return {};
  }
  EXPECT_EQ(saved->token_count, context.size()) << session;
  EXPECT_GT(saved->generation, generations_[session]) << session;
  generations_[session] = saved->generation;
  return *saved;
}

namespace {

uint64_t RestoreOrFail(KvStore& kv, const KvPattern& pattern, const RestoreAllOptions& options) {
  const auto restored = RestoreAndCheck(kv, pattern, options);
  if (restored.ok()) {
    EXPECT_EQ(restored->data_losses, 0u);
    return restored->token_count;
  }
  ADD_FAILURE() << "restore of '" << options.session << "': " << restored.status();
  return UINT64_MAX;
}

}  // namespace

uint64_t KvStoreSuite::Restore(const KvPattern& pattern, const std::string& session,
                               const KvContext& context) {
  return RestoreOrFail(kv(), pattern, {.session = session, .context = &context});
}

uint64_t KvStoreSuite::RestoreWithoutPrompt(const KvPattern& pattern, const std::string& session,
                                            const KvContext& context) {
  return RestoreOrFail(kv(), pattern,
                       {.session = session, .context = &context, .give_prompt = false});
}

uint64_t KvStoreSuite::RestoreByTokens(const KvPattern& pattern, const KvContext& context) {
  return RestoreOrFail(kv(), pattern, {.context = &context});
}

StoreStatus KvStoreSuite::Status() {
  auto status = kv().Status();
  EXPECT_TRUE(status.ok()) << status.status();
  return status.ok() ? *std::move(status) : StoreStatus{};
}

::testing::AssertionResult KvStoreSuite::Eventually(
    const std::function<bool(const StoreStatus&)>& condition) {
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  while (true) {
    const StoreStatus status = Status();
    if (condition(status)) return ::testing::AssertionSuccess();
    if (absl::Now() > give_up) {
      return ::testing::AssertionFailure()
             << "still " << status.open_tickets << " tickets, " << status.session_count
             << " sessions, " << status.chunk_count << " chunks, " << status.host.used_bytes
             << " host bytes, " << status.disk.used_bytes << " disk bytes after 10 s";
    }
    absl::SleepFor(absl::Milliseconds(1));
  }
}

}  // namespace turnkeep::testing
