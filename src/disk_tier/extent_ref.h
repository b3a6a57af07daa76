// ExtentRef: where a chunk lies on disk. StoreId: whose disk it is.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <type_traits>

namespace turnkeep {

// Random, made with the data directory; in FORMAT, in the index and in every extent file.
using StoreId = std::array<uint8_t, 16>;

// Slot `slot` of extent file `file`. Files are numbered from 1 and a number is never
// given twice in one store's life; the default value refers to nothing.
struct ExtentRef {
  uint32_t file = 0;
  uint32_t slot = 0;

  bool IsNull() const { return file == 0; }
  auto operator<=>(const ExtentRef&) const = default;
};
static_assert(sizeof(ExtentRef) == 8 && std::is_trivially_copyable_v<ExtentRef>);

// "00000007:12", as in the data directory's file names.
std::string ToString(ExtentRef ref);

}  // namespace turnkeep
