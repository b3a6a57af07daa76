// Every case of the suite against clients of a daemon.
#include <gtest/gtest.h>

#include "store/kv_store_suite.h"
#include "testing/client_factory.h"

namespace turnkeep::testing {

INSTANTIATE_TEST_SUITE_P(Client, KvStoreSuite,
                         ::testing::Values(SuiteParam{"Unix", MakeUnixClientSuiteStore},
                                           SuiteParam{"Tcp", MakeTcpClientSuiteStore}),
                         SuiteParamName);

}  // namespace turnkeep::testing
