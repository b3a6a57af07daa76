// The results of the store as JSON. The keys are a promise: docs/operations.md lists them,
// a test compares. Sizes are bytes, times Unix seconds (0: never), ids hexadecimal.
//
// Thread-safe: pure functions.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "core/activity.h"
#include "core/kv_types.h"
#include "core/session_file.h"

namespace turnkeep {

using Json = nlohmann::ordered_json;

Json ToJson(const SessionInfo& info);
Json ToJson(const SessionDetail& detail);
Json ToJson(const TreeNode& node);
Json ToJson(const Explanation& explanation);
Json ToJson(const Activity& activity);
Json ToJson(const VerifyReport& report);
Json ToJson(const StoreStatus& status);
Json ToJson(const SessionFileInfo& info);

// Two-space indents and a final newline. Bytes that are not UTF-8 become U+FFFD.
std::string Dump(const Json& json);

}  // namespace turnkeep
