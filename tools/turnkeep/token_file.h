// Reading token ids and layouts from files that the user names.
//
// Thread-safe: no shared state. Blocks on the file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "core/layout.h"

namespace turnkeep {

// A JSON array of token ids, or ids parted by white space, or for names that end in ".bin"
// little-endian 32-bit ids. At most kMaxSessionTokens. "-" reads standard input as text.
// InvalidArgument names file, position (line and column, or byte) and the value.
absl::StatusOr<std::vector<uint32_t>> ReadTokenFile(const std::string& path);

// The same for what has been read; `name` is for messages.
absl::StatusOr<std::vector<uint32_t>> ParseTokens(const std::string& name, std::string_view bytes,
                                                  bool binary);

// A layout as JSON (LayoutToJson). InvalidArgument names the file and the field.
absl::StatusOr<KvLayout> ReadLayoutFile(const std::string& path);

}  // namespace turnkeep
