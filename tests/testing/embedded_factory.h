// The embedded store as the suite drives it, on a directory of its own.
#pragma once

#include <memory>

#include "store/kv_store_suite.h"

namespace turnkeep::testing {

std::unique_ptr<SuiteStore> MakeEmbeddedSuiteStore(const SuiteStoreOptions& options);

}  // namespace turnkeep::testing
