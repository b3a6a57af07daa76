#include "api/wire_fields.h"

#include <algorithm>
#include <optional>

#include "core/status.h"

namespace turnkeep::wire {

namespace {

// Takes the number at the front of `bytes`; nothing where it is cut off or longer than one.
std::optional<uint64_t> TakeVarint(std::span<const std::byte>& bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size() && i < 10; ++i) {
    const auto byte = static_cast<uint64_t>(bytes[i]);
    value |= (byte & 0x7F) << (7 * i);
    if (byte < 0x80) {
      bytes = bytes.subspan(i + 1);
      return value;
    }
  }
  return std::nullopt;
}

// Takes a field's value; nothing where it is cut off or of no kind, and else what it holds, which
// is empty for numbers.
std::optional<std::span<const std::byte>> TakeValue(uint64_t kind,
                                                    std::span<const std::byte>& bytes) {
  uint64_t size = 0;
  if (kind == 0) {
    if (!TakeVarint(bytes).has_value()) return std::nullopt;
  } else if (kind == 1 || kind == 5) {
    size = kind == 1 ? 8 : 4;
  } else if (kind == 2) {
    const auto length = TakeVarint(bytes);
    if (!length.has_value()) return std::nullopt;
    size = *length;
  } else if (kind > 5) {
    return std::nullopt;
  }
  if (size > bytes.size()) return std::nullopt;
  const auto value = bytes.first(size);
  bytes = bytes.subspan(size);
  return kind == 2 ? value : value.first(0);
}

// Each ends with the one byte that is less than 128.
size_t CountNumbers(std::span<const std::byte> bytes) {
  return static_cast<size_t>(
      std::ranges::count_if(bytes, [](std::byte b) { return b < std::byte{0x80}; }));
}

// Goes on no further than one field above `max_fields`, and as deep as `message` does.
size_t CountFields(std::span<const std::byte> bytes, size_t max_fields,
                   const MessageParts& message) {
  size_t count = 0;
  while (!bytes.empty() && count <= max_fields) {
    const auto tag = TakeVarint(bytes);
    if (!tag.has_value()) break;
    const auto value = TakeValue(*tag & 7, bytes);
    if (!value.has_value()) break;
    ++count;
    // Protobuf drops the bits above 32, too.
    const uint32_t number = static_cast<uint32_t>(*tag) >> 3;
    for (const MessagePart& part : message.parts) {
      if (part.number != number) continue;
      count += part.message == nullptr ? CountNumbers(*value)
                                       : CountFields(*value, max_fields, *part.message);
    }
  }
  return count;
}

}  // namespace

absl::Status CheckFields(std::span<const std::byte> payload, const FieldLimit& limit) {
  if (CountFields(payload, limit.max_fields, limit.message) <= limit.max_fields)
    return absl::OkStatus();
  return InvalidArgument("{}: more than {} fields in {} bytes", limit.what, limit.max_fields,
                         payload.size());
}

}  // namespace turnkeep::wire
