// What the HTTP admin and `turnkeep --json` both show. Keys are a promise (docs/operations.md).
//
// Thread-safe: pure functions.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "core/activity.h"
#include "core/kv_types.h"

namespace turnkeep {

// Keys keep their order.
using Json = nlohmann::ordered_json;

Json ToJson(const TierStatus& tier);
Json ToJson(const Activity& activity);
// Two-space indents and a final newline. Bytes that are not UTF-8 become U+FFFD.
std::string Dump(const Json& json);

}  // namespace turnkeep
