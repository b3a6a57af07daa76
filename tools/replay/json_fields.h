// Checked access to a parsed JSON line. Only for the readers' sources.
#pragma once

#include <cmath>
#include <string>

#include <absl/status/statusor.h>
#include <nlohmann/json.hpp>

#include "core/status.h"

namespace turnkeep::replay {

// InvalidArgument when `line` is no JSON object.
inline absl::StatusOr<nlohmann::json> ParseObject(const std::string& line) {
  nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return InvalidArgument("the line is no JSON");
  if (!json.is_object()) return InvalidArgument("the line is no JSON object");
  return json;
}

inline absl::StatusOr<uint64_t> CountField(const nlohmann::json& object, const char* name,
                                           uint64_t max) {
  const auto field = object.find(name);
  if (field == object.end()) return InvalidArgument("\"{}\" is missing", name);
  if (!field->is_number_unsigned() || field->get<uint64_t>() > max) {
    return InvalidArgument("\"{}\" is no whole number from 0 to {}", name, max);
  }
  return field->get<uint64_t>();
}

// `fallback` when the field is missing or null; a negative fallback makes it required.
inline absl::StatusOr<double> NumberField(const nlohmann::json& object, const char* name,
                                          double fallback) {
  const auto field = object.find(name);
  if ((field == object.end() || field->is_null()) && fallback >= 0) return fallback;
  if (field == object.end()) return InvalidArgument("\"{}\" is missing", name);
  if (!field->is_number() || !std::isfinite(field->get<double>()) || field->get<double>() < 0) {
    return InvalidArgument("\"{}\" is no number from 0", name);
  }
  return field->get<double>();
}

inline absl::StatusOr<const nlohmann::json*> ArrayField(const nlohmann::json& object,
                                                        const char* name) {
  const auto field = object.find(name);
  if (field == object.end()) return InvalidArgument("\"{}\" is missing", name);
  if (!field->is_array()) return InvalidArgument("\"{}\" is no array", name);
  return &*field;
}

}  // namespace turnkeep::replay
