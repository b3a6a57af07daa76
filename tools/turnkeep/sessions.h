// What several commands need of sessions: all of a list, and how one looks to people.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "core/kv_store.h"
#include "table.h"

namespace turnkeep {

// Every session whose name begins with `prefix`, in name order, page by page.
absl::StatusOr<std::vector<SessionInfo>> ListAll(KvStore& store, const std::string& prefix);

Table SessionTable(const std::vector<SessionInfo>& sessions, int64_t now_unix_s);
Fields SessionFields(const SessionInfo& info, int64_t now_unix_s);

}  // namespace turnkeep
