// Little-endian integers in byte buffers, for every format that outlives the process.
//
// Thread-safe: pure functions and plain values.
//
//   ByteReader reader(bytes);
//   uint32_t count = 0;
//   if (!reader.Read(&count) || !reader.Read(&id)) return DataLoss("…");
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace turnkeep {

// Integers are copied as they lie in memory; a port to a big-endian machine starts here.
static_assert(std::endian::native == std::endian::little);

template <typename T>
concept ByteCodable = std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>;

// Appends the bytes of `value` to `out`.
template <ByteCodable T>
void AppendBytes(const T& value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Writes `value` to `to`, which holds at least sizeof(T) bytes. Returns the end.
template <ByteCodable T>
std::byte* StoreBytes(std::byte* to, const T& value) {
  std::memcpy(to, &value, sizeof(value));
  return to + sizeof(value);
}

// Reads a buffer from front to back; never past its end. The buffer outlives the reader.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : rest_(bytes) {}
  explicit ByteReader(std::span<const std::byte> bytes)
      : rest_(reinterpret_cast<const char*>(bytes.data()), bytes.size()) {}

  size_t remaining() const { return rest_.size(); }

  // False, and nothing consumed, when fewer bytes are left than asked for.
  template <ByteCodable T>
  [[nodiscard]] bool Read(T* value) {
    if (rest_.size() < sizeof(T)) return false;
    std::memcpy(value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
    return true;
  }
  [[nodiscard]] bool ReadString(size_t bytes, std::string* value) {
    if (rest_.size() < bytes) return false;
    value->assign(rest_.data(), bytes);
    rest_.remove_prefix(bytes);
    return true;
  }

 private:
  std::string_view rest_;
};

}  // namespace turnkeep
