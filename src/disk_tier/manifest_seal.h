// RocksDB takes a MANIFEST whose end was cut off for a whole one that is older: it opens without a
// word and clears away the tables that the rest named. A file beside the index remembers how long
// the MANIFEST was, since it only grows.
//
// Not thread-safe: for whoever has the index to itself, before RocksDB opens it and after.
#pragma once

#include <string>

#include <absl/status/status.h>

namespace turnkeep {

// DataLoss naming both lengths when the MANIFEST that CURRENT names is shorter than it was.
absl::Status CheckManifest(const std::string& index_directory);

// Remembers its present length. What fails is left: nothing is checked next time.
void SealManifest(const std::string& index_directory);

}  // namespace turnkeep
