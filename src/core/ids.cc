#include "core/ids.h"

#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {
namespace {

constexpr char kHexDigits[] = "0123456789abcdef";
constexpr size_t kShortHexBytes = 6;
constexpr size_t kQuotedBytes = 64;

std::string ToHex(const uint8_t* bytes, size_t count) {
  std::string hex(2 * count, '0');
  for (size_t i = 0; i < count; ++i) {
    hex[2 * i] = kHexDigits[bytes[i] >> 4];
    hex[2 * i + 1] = kHexDigits[bytes[i] & 15];
  }
  return hex;
}

// The value of one hexadecimal digit, or -1.
int DigitValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The code point at text[*index] with *index moved behind it, or -1 where the bytes
// are not UTF-8 (overlong forms, surrogates and values past U+10FFFF included).
int32_t NextCodePoint(std::string_view text, size_t* index) {
  const auto byte_at = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte_at(*index);
  if (lead < 0x80) {
    ++*index;
    return lead;
  }
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || *index + length > text.size()) return -1;
  int32_t code_point = lead & (0xFF >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    const uint8_t next = byte_at(*index + i);
    if ((next & 0xC0) != 0x80) return -1;
    code_point = code_point << 6 | (next & 0x3F);
  }
  constexpr int32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code_point < kSmallest[length] || code_point > 0x10FFFF) return -1;
  if (code_point >= 0xD800 && code_point <= 0xDFFF) return -1;
  *index += length;
  return code_point;
}

}  // namespace

template <typename Tag>
std::string Id32<Tag>::Hex() const {
  return ToHex(bytes.data(), bytes.size());
}

template <typename Tag>
std::string Id32<Tag>::ShortHex() const {
  return ToHex(bytes.data(), kShortHexBytes);
}

template <typename Tag>
absl::StatusOr<Id32<Tag>> Id32<Tag>::FromHex(std::string_view hex) {
  Id32 id;
  if (hex.size() != 2 * id.bytes.size()) {
    return InvalidArgument("an id has {} hexadecimal digits, not {}: {}", 2 * id.bytes.size(),
                           hex.size(), Quoted(hex));
  }
  for (size_t i = 0; i < id.bytes.size(); ++i) {
    const int high = DigitValue(hex[2 * i]);
    const int low = DigitValue(hex[2 * i + 1]);
    if (high < 0 || low < 0) {
      return InvalidArgument("not a hexadecimal id: {}", Quoted(hex));
    }
    id.bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return id;
}

template struct Id32<ChunkIdTag>;
template struct Id32<FingerprintTag>;

std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text.substr(0, kQuotedBytes)) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte < 0x20 || byte >= 0x7F) {
      quoted += fmt::format("\\x{:02x}", byte);
    } else {
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += c;
    }
  }
  quoted += text.size() > kQuotedBytes ? "\"…" : "\"";
  return quoted;
}

absl::Status ValidateText(std::string_view field, std::string_view text, uint32_t max_bytes) {
  if (text.size() > max_bytes) {
    return InvalidArgument("{}: {} bytes, at most {} are allowed: {}", field, text.size(),
                           max_bytes, Quoted(text));
  }
  for (size_t index = 0; index < text.size();) {
    const size_t start = index;
    const int32_t code_point = NextCodePoint(text, &index);
    if (code_point < 0) {
      return InvalidArgument("{}: not UTF-8 at byte {}: {}", field, start, Quoted(text));
    }
    if (code_point < 0x20 || (code_point >= 0x7F && code_point < 0xA0)) {
      return InvalidArgument("{}: control character U+{:04X} at byte {}: {}", field, code_point,
                             start, Quoted(text));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateName(std::string_view field, std::string_view name) {
  if (name.empty()) return InvalidArgument("{}: must not be empty", field);
  return ValidateText(field, name, kMaxSessionNameBytes);
}

}  // namespace turnkeep
