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

struct MessageParts;

// A field of which the content is counted, too: a message's fields, or each of packed numbers.
struct MessagePart {
  uint32_t number = 0;
  const MessageParts* message = nullptr;  // null: packed numbers
};
struct MessageParts {
  std::span<const MessagePart> parts;
};

struct FieldLimit {
  const char* what = "";      // names the message in the error
  size_t max_fields = 0;      // at its top and in its parts together
  MessageParts message = {};  // the parts that are long themselves
};

// Messages whose own fields have no parts.
inline constexpr MessageParts kPlain = {};

// A whole session in the smallest chunks, and what else is said once.
inline constexpr size_t kMaxHashFields = kMaxSessionTokens / kMinChunkTokens + 64;
inline constexpr MessagePart kSavePrompt[] = {{5, &kPlain}};
inline constexpr MessagePart kRestorePrompt[] = {{3, &kPlain}};
inline constexpr MessagePart kExplainPrompt[] = {{2, &kPlain}};
inline constexpr FieldLimit kSaveFields = {"begin save", kMaxHashFields, {kSavePrompt}};
inline constexpr FieldLimit kRestoreFields = {"begin restore", kMaxHashFields, {kRestorePrompt}};
inline constexpr FieldLimit kExplainFields = {"explain", kMaxHashFields, {kExplainPrompt}};
// Chunks and slices: of both up to two for each chunk of a session.
inline constexpr FieldLimit kImportFields = {"begin import", 4 * kMaxHashFields};

// Its items, and what is in them: the hashes of targets, of which a frame has no more than this if
// they are of 32 bytes, with two before each; expected times, and what else an item says.
inline constexpr FieldLimit kHintFields = {"hint", kMaxHintItems + 1};
inline constexpr size_t kMaxHintContents =
    kMaxFrameBytes / 34 + kMaxHintItems * (kMaxExpectedTimes + 16);
inline constexpr MessagePart kWaitingParts[] = {{1, &kPlain}};
inline constexpr MessagePart kHintItemParts[] = {{2, &kPlain}, {4, nullptr}};
inline constexpr MessageParts kWaitingRequest = {kWaitingParts}, kHintItem = {kHintItemParts};
inline constexpr MessagePart kHintParts[] = {{2, &kWaitingRequest}, {3, &kHintItem}};
inline constexpr FieldLimit kHintContentFields = {"hint items", kMaxHintContents, {kHintParts}};

// InvalidArgument above the limit. OK where it is no message: parsing it says so.
absl::Status CheckFields(std::span<const std::byte> payload, const FieldLimit& limit);

}  // namespace turnkeep::wire
