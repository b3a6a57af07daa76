// The envelope of every message between a client and turnkeepd: a fixed header, a
// Protobuf payload (turnkeep.proto), and raw bytes. docs/wire_protocol.md is the grammar.
//
//   offset  bytes
//   0       4   magic "TKW1"
//   4       2   protocol version of the sender
//   6       2   message type (wire::MessageType)
//   8       8   request id; 0 for what is pushed and for errors about the connection
//   16      8   time the sender gives the request, in microseconds; 0: no limit
//   24      4   payload bytes
//   28      4   raw bytes
//   32      4   flags
//   36      4   XXH32 of the 36 bytes before
//   40          payload, padded with zeros to a multiple of 8
//               raw bytes, padded likewise
//
// All integers are little-endian. Raw bytes begin on a multiple of 8 from the frame's
// start, so tokens and plan entries can be used where they lie.
//
// Everything here is total: any bytes give frames or an error, never a fault.
//
// Thread-safety: functions are pure; FrameReader is used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/limits.h"

namespace turnkeep::wire {

inline constexpr uint32_t kFrameMagic = 0x31574B54;  // "TKW1"
inline constexpr uint16_t kMinProtocolVersion = 1;
inline constexpr uint16_t kProtocolVersion = 1;
inline constexpr size_t kFrameHeaderBytes = 40;
inline constexpr uint32_t kFlagReply = 1;
inline constexpr uint32_t kKnownFlags = kFlagReply;

struct FrameHeader {
  uint16_t version = kProtocolVersion;
  uint16_t type = 0;
  uint64_t request_id = 0;
  uint64_t time_limit_us = 0;
  uint32_t payload_bytes = 0;
  uint32_t raw_bytes = 0;
  uint32_t flags = 0;

  bool reply() const { return (flags & kFlagReply) != 0; }
};

// Bytes of the whole frame with its padding.
constexpr uint64_t FrameBytes(uint64_t payload_bytes, uint64_t raw_bytes) {
  return kFrameHeaderBytes + RoundUp(payload_bytes, 8) + RoundUp(raw_bytes, 8);
}

void EncodeFrameHeader(const FrameHeader& header, std::span<std::byte, kFrameHeaderBytes> out);

// InvalidArgument: wrong magic, check, flags, or a size over `max_frame_bytes` (the
// message gives the numbers). FailedPrecondition: a version this side does not speak;
// the message names both. *out is set in that case too.
absl::Status DecodeFrameHeader(std::span<const std::byte, kFrameHeaderBytes> bytes,
                               uint32_t max_frame_bytes, FrameHeader* out);

// "begin_save"; "type 77" for a number without a name.
std::string TypeName(uint16_t type);

// Header, payload and padding as one string; `raw_bytes` raw bytes (and their padding,
// see RawPadding) are to follow it.
std::string EncodeFrameHead(FrameHeader header, std::string_view payload, size_t raw_bytes);
// The zeros after raw bytes.
std::string_view RawPadding(size_t raw_bytes);

// A received frame. Owns its bytes.
class Frame {
 public:
  Frame() = default;
  const FrameHeader& header() const { return header_; }
  std::span<const std::byte> payload() const { return {body_, header_.payload_bytes}; }
  // Aligned to 8.
  std::span<const std::byte> raw() const {
    return {body_ + RoundUp(header_.payload_bytes, 8), header_.raw_bytes};
  }

 private:
  friend class FrameReader;
  struct Free {
    void operator()(std::byte* memory) const;
  };
  FrameHeader header_;
  std::unique_ptr<std::byte, Free> memory_;  // null: the body lies in the reader
  const std::byte* body_ = nullptr;
};

// Cuts a byte stream into frames.
//
//   auto area = reader.Writable();
//   n = recv(fd, area.data(), area.size()); reader.Received(n);
//   for (;;) { TK_ASSIGN_OR_RETURN(auto frame, reader.Next()); if (!frame) break; … }
//
// After an error the stream has no frame borders any more: give the connection up.
class FrameReader {
 public:
  explicit FrameReader(uint32_t max_frame_bytes = kMaxFrameBytes);
  FrameReader(const FrameReader&) = delete;
  FrameReader& operator=(const FrameReader&) = delete;

  // Where to receive next; never empty. Call only when Next() has returned nothing.
  std::span<std::byte> Writable();
  void Received(size_t bytes);

  // The next whole frame, or nothing if more bytes are needed. The frame may lie in
  // the reader: it is valid until the next call of Writable(), unless Keep()t.
  absl::StatusOr<std::optional<Frame>> Next();
  // Makes `frame` independent of the reader.
  static void Keep(Frame& frame);

  // True when the stream stands between two frames.
  bool idle() const { return begin_ == end_ && !large_; }
  // The header of the frame that made Next() fail with FailedPrecondition.
  const FrameHeader& failed_header() const { return header_; }

 private:
  absl::StatusOr<std::optional<Frame>> NextLarge();

  const uint32_t max_frame_bytes_;
  std::unique_ptr<std::byte, Frame::Free> staging_;
  size_t begin_ = 0;  // of what is received and not taken, in staging_
  size_t end_ = 0;
  // A frame that does not fit in staging_: memory of its whole body.
  std::unique_ptr<std::byte, Frame::Free> large_;
  size_t large_bytes_ = 0;
  size_t large_received_ = 0;
  FrameHeader header_;
};

}  // namespace turnkeep::wire
