// Layouts as the user names them on the command line.
#pragma once

#include <string>

#include <absl/status/statusor.h>

#include "core/kv_store.h"

namespace turnkeep {

// A fingerprint, its first digits where a session of that layout exists, or a file. Tells the
// store of a layout from a file, so that it can name the field that differs.
absl::StatusOr<Fingerprint> ResolveLayout(KvStore& store, const std::string& text);

}  // namespace turnkeep
