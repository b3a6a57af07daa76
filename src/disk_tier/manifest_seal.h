// What RocksDB does not notice when it opens, and would answer by clearing away what is left of an
// index. Without CURRENT it begins a new one. A MANIFEST whose end was cut off it takes for a whole
// one that is older; a file beside the index remembers how long it was, since it only grows.
//
// Not thread-safe: for whoever has the index to itself, before RocksDB opens it and after.
#pragma once

#include <string>

#include <absl/status/status.h>

namespace turnkeep {

// DataLoss when CURRENT is missing beside other files of an index, or when the MANIFEST that it
// names is shorter than it was; the message has both lengths, or says what to do.
absl::Status CheckManifest(const std::string& index_directory);

// The DataLoss of an index that RocksDB does not open, with the way on.
absl::Status CannotOpenIndex(const std::string& index_directory, const std::string& why);

// Remembers its present length. What fails is left: nothing is checked next time.
void SealManifest(const std::string& index_directory);

}  // namespace turnkeep
