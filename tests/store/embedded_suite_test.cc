// Every case of the suite against the embedded store.
#include <gtest/gtest.h>

#include "store/kv_store_suite.h"
#include "testing/embedded_factory.h"

namespace turnkeep::testing {

INSTANTIATE_TEST_SUITE_P(Embedded, KvStoreSuite,
                         ::testing::Values(SuiteParam{"Store", MakeEmbeddedSuiteStore}),
                         SuiteParamName);

}  // namespace turnkeep::testing
