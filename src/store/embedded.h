// The store's KvStore for callers in the same process: tickets over the operations.
#pragma once

#include <memory>

#include "core/kv_store.h"
#include "store/store.h"

namespace turnkeep {

class StoreImpl;

// `store` must outlive what is returned, and its tickets.
std::unique_ptr<KvStore> MakeEmbedded(StoreImpl* store, TenantNumber tenant);

}  // namespace turnkeep
