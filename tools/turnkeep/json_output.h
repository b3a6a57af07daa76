// The results of the store as JSON. The keys are a promise: docs/operations.md lists them,
// a test compares. Sizes are bytes, times Unix seconds (0: never), ids hexadecimal.
//
// Thread-safe: pure functions.
#pragma once

#include "api/status_json.h"
#include "core/kv_types.h"
#include "core/session_file.h"

namespace turnkeep {

Json ToJson(const SessionInfo& info);
Json ToJson(const SessionDetail& detail);
Json ToJson(const TreeNode& node);
Json ToJson(const Explanation& explanation);
Json ToJson(const VerifyReport& report);
Json ToJson(const StoreStatus& status);
Json ToJson(const SessionFileInfo& info);

}  // namespace turnkeep
