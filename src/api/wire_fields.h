// How many fields an encoded message has, before it is taken apart: two bytes of a payload can be
// an item that takes a hundred in memory, so that a frame of 72 MiB would become gigabytes.
//
// Thread-safety: pure function.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <absl/status/status.h>

#include "core/hint.h"
#include "core/limits.h"

namespace turnkeep::wire {

struct FieldLimit {
  const char* what = "";  // names the message in the error
  size_t max_fields = 0;  // at its top, and in `nested` where there is one
  uint32_t nested = 0;    // number of a field that is a message and long itself; 0: none
};

// A whole session in the smallest chunks, and what else is said once.
inline constexpr size_t kMaxHashFields = kMaxSessionTokens / kMinChunkTokens + 64;
inline constexpr FieldLimit kSaveFields = {"begin save", kMaxHashFields, 5};
inline constexpr FieldLimit kRestoreFields = {"begin restore", kMaxHashFields, 3};
inline constexpr FieldLimit kExplainFields = {"explain", kMaxHashFields, 2};
// Chunks and slices: of both up to two for each chunk of a session.
inline constexpr FieldLimit kImportFields = {"begin import", 4 * kMaxHashFields};
inline constexpr FieldLimit kHintFields = {"hint", kMaxHintItems + 1};

// InvalidArgument above the limit. OK where it is no message: parsing it says so.
absl::Status CheckFields(std::span<const std::byte> payload, const FieldLimit& limit);

}  // namespace turnkeep::wire
