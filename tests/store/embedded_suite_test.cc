// Every case of the suite against the embedded store, without and with a disk tier.
#include <gtest/gtest.h>

#include "store/kv_store_suite.h"
#include "testing/embedded_factory.h"

namespace turnkeep::testing {
namespace {

// What the suite says about eviction holds with a disk tier too, when that is small.
std::unique_ptr<SuiteStore> WithDisk(const SuiteStoreOptions& options) {
  SuiteStoreOptions with_disk = options;
  if (with_disk.disk_bytes == 0) with_disk.disk_bytes = 64 * kMiB;
  return MakeEmbeddedSuiteStore(with_disk);
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Embedded, KvStoreSuite,
                         ::testing::Values(SuiteParam{"HostOnly", MakeEmbeddedSuiteStore},
                                           SuiteParam{"WithDisk", WithDisk}),
                         SuiteParamName);

}  // namespace turnkeep::testing
