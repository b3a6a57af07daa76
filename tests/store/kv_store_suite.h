// The suite that every implementation of KvStore passes: the embedded store and the clients of a
// daemon. The cases are in suite_*.cc; a test program links turnkeep_kv_store_suite (an object
// library, so that the cases register themselves) and instantiates them with its factory:
//
//   INSTANTIATE_TEST_SUITE_P(Embedded, KvStoreSuite, ::testing::Values(SuiteParam{"Store", Make}),
//                            SuiteParamName);
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>

#include <absl/status/statusor.h>
#include <gtest/gtest.h>

#include "core/clock.h"
#include "core/kv_store.h"
#include "core/units.h"
#include "testing/kv_pattern.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {

struct SuiteStoreOptions {
  uint64_t host_bytes = 256 * kMiB;
  uint64_t disk_bytes = 0;  // 0: no disk tier
};

// A running store, alone in the world. Destroying it ends it and removes its files.
class SuiteStore {
 public:
  virtual ~SuiteStore() = default;
  // The interface for the tenant "default".
  virtual KvStore& kv() = 0;
  // Another tenant of the same store; null where the harness cannot speak for one.
  virtual std::unique_ptr<KvStore> Tenant(const std::string& name) = 0;
  // The store's clock; null when it is the system's.
  virtual ManualClock* clock() = 0;
};

struct SuiteParam {
  std::string name;  // letters and digits only
  std::function<std::unique_ptr<SuiteStore>(const SuiteStoreOptions&)> make;
};
// How GoogleTest prints it.
inline void PrintTo(const SuiteParam& param, std::ostream* out) { *out << param.name; }
inline std::string SuiteParamName(const ::testing::TestParamInfo<SuiteParam>& info) {
  return info.param.name;
}

class KvStoreSuite : public ::testing::TestWithParam<SuiteParam> {
 protected:
  void SetUp() override { Open({}); }
  // Replaces the store by a fresh one.
  void Open(const SuiteStoreOptions& options);
  KvStore& kv() { return store_->kv(); }
  SuiteStore& store() { return *store_; }

  KvPattern Register(const KvLayout& layout, bool hashed = false);
  KvPattern Register(const LayoutCase& layout_case) {
    return Register(layout_case.layout, layout_case.hashed);
  }

  // Saves the context as what `session` shows, with the generation of the last Save or
  // NoteGeneration here. Fails the test on an error.
  CommitResult Save(const KvPattern& pattern, const std::string& session, const KvContext& context);
  void NoteGeneration(const SessionInfo& info) { generations_[info.name] = info.generation; }
  void Forget(const std::string& session) { generations_.erase(session); }

  // Restores and checks every byte; fails the test on an error or a wrong byte. Returns the tokens.
  uint64_t Restore(const KvPattern& pattern, const std::string& session, const KvContext& context);
  uint64_t RestoreWithoutPrompt(const KvPattern& pattern, const std::string& session,
                                const KvContext& context);
  uint64_t RestoreByTokens(const KvPattern& pattern, const KvContext& context);

  StoreStatus Status();
  // Waits (clients release their tickets behind their backs) until `condition` holds.
  ::testing::AssertionResult Eventually(const std::function<bool(const StoreStatus&)>& condition);

 private:
  std::unique_ptr<SuiteStore> store_;
  std::map<std::string, uint64_t> generations_;
};

}  // namespace turnkeep::testing
