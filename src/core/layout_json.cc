// Layouts as JSON, and the differences between two of them.
#include <set>

#include <nlohmann/json.hpp>

#include "core/layout.h"
#include "core/layout_fields.h"
#include "core/status.h"

namespace turnkeep {
namespace {

using internal::FieldEnum;
using internal::FieldStruct;
using internal::IsKnown;
using internal::kLastOf;
using internal::Presence;
using internal::SameBits;
using internal::VisitFields;

// Single-precision numbers: every float is written with the fewest digits that give the
// same bits back. Ordered: keys come out in the order of the fields.
using Json = nlohmann::basic_json<nlohmann::ordered_map, std::vector, std::string, bool, int64_t,
                                  uint64_t, float>;

constexpr std::string_view kRepeat = "repeat";

// ---- Writing ----

template <typename T>
requires std::is_arithmetic_v<T> Json ToJson(T value) { return Json(value); }
template <FieldEnum T>
Json ToJson(T value) {
  return Json(std::string(NameOf(value)));
}
Json ToJson(const std::string& value) { return Json(value); }
Json ToJson(const Fingerprint& value) { return Json(value.Hex()); }

Json ToJson(const std::vector<float>& values) {
  Json json = Json::array();
  for (const float value : values) json.push_back(value);
  return json;
}

Json ToJson(const std::vector<LayerSpec>& layers);

template <FieldStruct T>
Json ToJson(const T& value) {
  const T defaults;
  Json json = Json::object();
  VisitFields<T>([&](std::string_view name, auto member, Presence presence) {
    if (presence == Presence::kRequired || !SameBits(value.*member, defaults.*member)) {
      json[std::string(name)] = ToJson(value.*member);
    }
  });
  return json;
}

Json ToJson(const std::vector<LayerSpec>& layers) {
  Json json = Json::array();
  for (size_t i = 0; i < layers.size();) {
    size_t end = i + 1;
    while (end < layers.size() && SameBits(layers[i], layers[end])) ++end;
    Json entry = ToJson(layers[i]);
    if (end - i > 1) entry[std::string(kRepeat)] = end - i;
    json.push_back(std::move(entry));
    i = end;
  }
  return json;
}

// Invalid UTF-8 (possible only in a layout that was not validated) is replaced, not thrown.
std::string DumpJson(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

// ---- Reading ----

template <typename... Args>
absl::Status Wrong(std::string_view path, fmt::format_string<Args...> format, Args&&... args) {
  return InvalidArgument("layout JSON: {}: {}", path,
                         fmt::format(format, std::forward<Args>(args)...));
}

std::string Shown(const Json& json) { return Quoted(DumpJson(json, -1)); }

template <typename T>
requires std::is_unsigned_v<T> absl::Status FromJson(const std::string& path, const Json& json,
                                                     T* value) {
  if (!json.is_number_unsigned()) return Wrong(path, "{} is not a whole number", Shown(json));
  const auto number = json.get<uint64_t>();
  if (number > std::numeric_limits<T>::max()) return Wrong(path, "{} is too large", number);
  *value = static_cast<T>(number);
  return absl::OkStatus();
}

absl::Status FromJson(const std::string& path, const Json& json, float* value) {
  if (!json.is_number()) return Wrong(path, "{} is not a number", Shown(json));
  *value = json.get<float>();
  return absl::OkStatus();
}

absl::Status FromJson(const std::string& path, const Json& json, std::string* value) {
  if (!json.is_string()) return Wrong(path, "{} is not a text", Shown(json));
  *value = json.get<std::string>();
  return absl::OkStatus();
}

absl::Status FromJson(const std::string& path, const Json& json, Fingerprint* value) {
  std::string hex;
  TK_RETURN_IF_ERROR(FromJson(path, json, &hex));
  auto id = Fingerprint::FromHex(hex);
  if (!id.ok()) return Wrong(path, "{}", MessageOf(id.status()));
  *value = *id;
  return absl::OkStatus();
}

template <FieldEnum T>
absl::Status FromJson(const std::string& path, const Json& json, T* value) {
  std::string name;
  TK_RETURN_IF_ERROR(FromJson(path, json, &name));
  std::string known;
  for (uint8_t number = 1; number <= kLastOf<T>; ++number) {
    if (NameOf(static_cast<T>(number)) == name) {
      *value = static_cast<T>(number);
      return absl::OkStatus();
    }
    known += known.empty() ? "" : ", ";
    known += NameOf(static_cast<T>(number));
  }
  return Wrong(path, "{} is none of {}", Quoted(name), known);
}

absl::Status FromJson(const std::string& path, const Json& json, std::vector<float>* values) {
  if (!json.is_array()) return Wrong(path, "{} is not a list", Shown(json));
  values->clear();
  for (const Json& entry : json) {
    float value = 0;
    TK_RETURN_IF_ERROR(FromJson(fmt::format("{}[{}]", path, values->size()), entry, &value));
    values->push_back(value);
  }
  return absl::OkStatus();
}

absl::Status FromJson(const std::string& path, const Json& json, std::vector<LayerSpec>* layers);

// Reads an object whose keys are fields of T or `extra_key` (which the caller reads).
template <FieldStruct T>
absl::Status FromJson(const std::string& path, const Json& json, T* value,
                      std::string_view extra_key = {}) {
  const std::string where = path.empty() ? "layout" : path;
  if (!json.is_object()) return Wrong(where, "{} is not an object", Shown(json));
  absl::Status status;
  std::set<std::string_view> known;
  VisitFields<T>([&](std::string_view name, auto member, Presence presence) {
    known.insert(name);
    if (!status.ok()) return;
    const std::string key(name);
    const std::string key_path = path.empty() ? key : path + "." + key;
    if (const auto it = json.find(key); it != json.end()) {
      status = FromJson(key_path, *it, &(value->*member));
    } else if (presence == Presence::kRequired) {
      status = Wrong(key_path, "is missing");
    }
  });
  TK_RETURN_IF_ERROR(status);
  for (const auto& [key, unused] : json.items()) {
    if (!known.contains(key) && (extra_key.empty() || key != extra_key)) {
      return Wrong(where, "unknown key {}", Quoted(key));
    }
  }
  return absl::OkStatus();
}

absl::Status FromJson(const std::string& path, const Json& json, std::vector<LayerSpec>* layers) {
  if (!json.is_array()) return Wrong(path, "{} is not a list", Shown(json));
  layers->clear();
  for (const Json& entry : json) {
    const std::string entry_path = fmt::format("{}[{}]", path, layers->size());
    LayerSpec layer;
    TK_RETURN_IF_ERROR(FromJson(entry_path, entry, &layer, kRepeat));
    uint32_t repeat = 1;
    if (const auto it = entry.find(std::string(kRepeat)); it != entry.end()) {
      TK_RETURN_IF_ERROR(FromJson(entry_path + ".repeat", *it, &repeat));
      if (repeat == 0) return Wrong(entry_path + ".repeat", "0 layers");
    }
    if (repeat > kMaxLayers - layers->size()) {
      return Wrong(entry_path, "more than {} layers", kMaxLayers);
    }
    layers->insert(layers->end(), repeat, layer);
  }
  return absl::OkStatus();
}

// Parses; a key given twice in one object is an error, since either value may be the one
// that was meant.
absl::StatusOr<Json> ParseJson(std::string_view text) {
  if (text.size() > kMaxLayoutEncodingBytes) {
    return InvalidArgument("layout JSON: {} bytes, at most {} are allowed", text.size(),
                           kMaxLayoutEncodingBytes);
  }
  std::vector<std::set<std::string>> keys_by_depth;
  std::string repeated;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys_by_depth.emplace_back();
    if (event == Json::parse_event_t::object_end) keys_by_depth.pop_back();
    if (event == Json::parse_event_t::key) {
      auto key = parsed.get<std::string>();
      if (!keys_by_depth.back().insert(key).second && repeated.empty()) repeated = std::move(key);
    }
    return true;
  };
  Json json;
  try {
    json = Json::parse(text, watch);
  } catch (const Json::exception& error) {
    return InvalidArgument("layout JSON: {}", error.what());
  }
  if (!repeated.empty()) {
    return InvalidArgument("layout JSON: key {} is given twice", Quoted(repeated));
  }
  return json;
}

// ---- Differences ----

class Differ {
 public:
  Differ(size_t max_count, std::vector<LayoutDifference>* out) : max_count_(max_count), out_(out) {}

  template <typename T>
  void Compare(const std::string& path, const T& left, const T& right) {
    if (SameBits(left, right)) return;
    Add(path, DumpJson(ToJson(left), -1), DumpJson(ToJson(right), -1));
  }
  template <typename T>
  void Compare(const std::string& path, const std::vector<T>& left, const std::vector<T>& right) {
    if (left.size() != right.size()) {
      Add(path + ".length", fmt::to_string(left.size()), fmt::to_string(right.size()));
    }
    for (size_t i = 0; i < std::min(left.size(), right.size()) && !full(); ++i) {
      if (!SameBits(left[i], right[i])) Compare(fmt::format("{}[{}]", path, i), left[i], right[i]);
    }
  }
  template <FieldStruct T>
  void Compare(const std::string& path, const T& left, const T& right) {
    VisitFields<T>([&](std::string_view name, auto member, Presence) {
      const std::string field(name);
      Compare(path.empty() ? field : path + "." + field, left.*member, right.*member);
    });
  }

 private:
  bool full() const { return out_->size() >= max_count_; }
  void Add(std::string path, std::string left, std::string right) {
    if (!full()) out_->push_back({std::move(path), std::move(left), std::move(right)});
  }

  const size_t max_count_;
  std::vector<LayoutDifference>* const out_;
};

}  // namespace

std::string LayoutToJson(const KvLayout& layout) { return DumpJson(ToJson(layout), 2); }

absl::StatusOr<KvLayout> LayoutFromJson(std::string_view json) {
  TK_ASSIGN_OR_RETURN(const Json parsed, ParseJson(json));
  KvLayout layout;
  TK_RETURN_IF_ERROR(FromJson("", parsed, &layout));
  TK_RETURN_IF_ERROR(ValidateLayout(layout));
  return layout;
}

std::vector<LayoutDifference> DiffLayouts(const KvLayout& left, const KvLayout& right,
                                          size_t max_count) {
  std::vector<LayoutDifference> differences;
  Differ(max_count, &differences).Compare("", left, right);
  return differences;
}

}  // namespace turnkeep
