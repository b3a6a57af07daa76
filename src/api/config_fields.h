// The table of turnkeepd's keys: name, meaning, where the value goes, its range.
// Internal to config*.cc.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include <absl/status/status.h>

#include "api/config.h"

namespace turnkeep::config_internal {

struct Bytes {
  uint64_t* value;
};
using Target =
    std::variant<std::string*, Bytes, uint32_t*, double*, bool*, absl::Duration*, Durability*>;

struct Field {
  std::string name;
  std::string help;
  Target target;
  double min = 0;  // numbers and sizes
  double max = 0;
};

// The fields of `config`; the targets point into it.
std::vector<Field> FieldsOf(DaemonConfig& config);

// Reads `text` into the field. InvalidArgument says what is wrong with the value, without the key.
absl::Status Assign(const Field& field, const std::string& text);
// The value as TOML, quoted where it must be.
std::string TomlValue(const Field& field);

std::string TomlQuote(const std::string& text);

}  // namespace turnkeep::config_internal
