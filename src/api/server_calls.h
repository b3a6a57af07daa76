// The requests that are one call of KvStore. They run on a worker thread, since some read
// from disk or walk the whole store. Internal to src/api.
#pragma once

#include <functional>
#include <string>

#include <absl/status/statusor.h>

#include "api/frame.h"
#include "core/kv_store.h"
#include "store/store.h"

namespace turnkeep {

bool IsStoreCall(uint16_t type);

// Does what `frame`, for which IsStoreCall holds, asks for, and returns the reply's payload.
// Any thread; blocks as the call does.
absl::StatusOr<std::string> RunStoreCall(KvStore& store, const wire::Frame& frame);

// The same for a VERIFY; Store::Verify says what `progress` and `cancelled` are.
absl::StatusOr<std::string> RunVerify(
    Store& store, TenantNumber tenant, const wire::Frame& frame,
    const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress,
    const std::function<bool()>& cancelled);

}  // namespace turnkeep
