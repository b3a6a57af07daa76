#include "api/frame.h"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>

#include <xxhash.h>

#include "api/turnkeep.pb.h"
#include "core/check.h"
#include "core/status.h"

namespace turnkeep::wire {

static_assert(std::endian::native == std::endian::little,
              "frames are copied from and to memory as they are");

namespace {

constexpr size_t kStagingBytes = 64 * kKiB;
constexpr size_t kCheckOffset = 36;

template <typename T>
void Put(std::span<std::byte, kFrameHeaderBytes> out, size_t offset, T value) {
  std::memcpy(out.data() + offset, &value, sizeof(value));
}

template <typename T>
T Get(std::span<const std::byte, kFrameHeaderBytes> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

std::byte* Allocate(size_t bytes) {
  void* memory = std::aligned_alloc(64, RoundUp(bytes, 64));
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<std::byte*>(memory);
}

}  // namespace

void Frame::Free::operator()(std::byte* memory) const { std::free(memory); }

void EncodeFrameHeader(const FrameHeader& header, std::span<std::byte, kFrameHeaderBytes> out) {
  Put(out, 0, kFrameMagic);
  Put(out, 4, header.version);
  Put(out, 6, header.type);
  Put(out, 8, header.request_id);
  Put(out, 16, header.time_limit_us);
  Put(out, 24, header.payload_bytes);
  Put(out, 28, header.raw_bytes);
  Put(out, 32, header.flags);
  Put(out, kCheckOffset, uint32_t{XXH32(out.data(), kCheckOffset, 0)});
}

absl::Status DecodeFrameHeader(std::span<const std::byte, kFrameHeaderBytes> bytes,
                               uint32_t max_frame_bytes, FrameHeader* out) {
  if (const auto magic = Get<uint32_t>(bytes, 0); magic != kFrameMagic) {
    return InvalidArgument("frame: magic is {:#010x}, should be {:#010x}", magic, kFrameMagic);
  }
  const uint32_t check = XXH32(bytes.data(), kCheckOffset, 0);
  if (Get<uint32_t>(bytes, kCheckOffset) != check) {
    return InvalidArgument("frame: header check is {:#010x}, should be {:#010x}",
                           Get<uint32_t>(bytes, kCheckOffset), check);
  }
  out->version = Get<uint16_t>(bytes, 4);
  out->type = Get<uint16_t>(bytes, 6);
  out->request_id = Get<uint64_t>(bytes, 8);
  out->time_limit_us = Get<uint64_t>(bytes, 16);
  out->payload_bytes = Get<uint32_t>(bytes, 24);
  out->raw_bytes = Get<uint32_t>(bytes, 28);
  out->flags = Get<uint32_t>(bytes, 32);
  if (out->version < kMinProtocolVersion || out->version > kProtocolVersion) {
    return FailedPrecondition(
        "frame: the other side speaks protocol version {}, this side versions {} to {}",
        out->version, kMinProtocolVersion, kProtocolVersion);
  }
  if ((out->flags & ~kKnownFlags) != 0) {
    return InvalidArgument("frame {}: unknown flags {:#x}", TypeName(out->type), out->flags);
  }
  if (const uint64_t size = FrameBytes(out->payload_bytes, out->raw_bytes);
      size > max_frame_bytes) {
    return InvalidArgument("frame {}: {} bytes, the limit is {}", TypeName(out->type), size,
                           max_frame_bytes);
  }
  return absl::OkStatus();
}

std::string TypeName(uint16_t type) {
  if (!MessageType_IsValid(type)) return fmt::format("type {}", type);
  std::string name = MessageType_Name(static_cast<MessageType>(type));
  for (char& c : name) c = (c >= 'A' && c <= 'Z') ? static_cast<char>(c - 'A' + 'a') : c;
  return name;
}

std::string EncodeFrameHead(FrameHeader header, std::string_view payload, size_t raw_bytes) {
  TK_CHECK(payload.size() <= kMaxFrameBytes && raw_bytes <= kMaxFrameBytes);
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  header.raw_bytes = static_cast<uint32_t>(raw_bytes);
  std::string out(kFrameHeaderBytes + RoundUp(payload.size(), 8), '\0');
  EncodeFrameHeader(header, std::span<std::byte, kFrameHeaderBytes>(
                                reinterpret_cast<std::byte*>(out.data()), kFrameHeaderBytes));
  std::memcpy(out.data() + kFrameHeaderBytes, payload.data(), payload.size());
  return out;
}

std::string_view RawPadding(size_t raw_bytes) {
  static constexpr char kZeros[8] = {};
  return {kZeros, RoundUp(raw_bytes, 8) - raw_bytes};
}

FrameReader::FrameReader(uint32_t max_frame_bytes)
    : max_frame_bytes_(max_frame_bytes), staging_(Allocate(kStagingBytes)) {}

std::span<std::byte> FrameReader::Writable() {
  if (large_) return {large_.get() + large_received_, large_bytes_ - large_received_};
  if (begin_ == end_) begin_ = end_ = 0;
  if (begin_ != 0) {
    std::memmove(staging_.get(), staging_.get() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  TK_CHECK(end_ < kStagingBytes);
  return {staging_.get() + end_, kStagingBytes - end_};
}

void FrameReader::Received(size_t bytes) {
  if (large_) {
    TK_CHECK(bytes <= large_bytes_ - large_received_);
    large_received_ += bytes;
    return;
  }
  TK_CHECK(bytes <= kStagingBytes - end_);
  end_ += bytes;
}

absl::StatusOr<std::optional<Frame>> FrameReader::NextLarge() {
  if (large_received_ < large_bytes_) return std::nullopt;
  Frame frame;
  frame.header_ = header_;
  frame.body_ = large_.get();
  frame.memory_ = std::move(large_);
  return frame;
}

absl::StatusOr<std::optional<Frame>> FrameReader::Next() {
  if (large_) return NextLarge();
  const size_t available = end_ - begin_;
  if (available < kFrameHeaderBytes) return std::nullopt;
  std::byte* at = staging_.get() + begin_;
  TK_RETURN_IF_ERROR(
      DecodeFrameHeader(std::span<const std::byte, kFrameHeaderBytes>(at, kFrameHeaderBytes),
                        max_frame_bytes_, &header_));
  const size_t size = FrameBytes(header_.payload_bytes, header_.raw_bytes);
  if (available >= size) {
    Frame frame;
    frame.header_ = header_;
    frame.body_ = at + kFrameHeaderBytes;
    begin_ += size;
    return frame;
  }
  if (size <= kStagingBytes) return std::nullopt;
  // Untouched memory costs nothing: a peer that announces much must also send it.
  large_bytes_ = size - kFrameHeaderBytes;
  large_received_ = available - kFrameHeaderBytes;
  large_.reset(Allocate(large_bytes_));
  std::memcpy(large_.get(), at + kFrameHeaderBytes, large_received_);
  begin_ = end_ = 0;
  return std::nullopt;
}

void FrameReader::Keep(Frame& frame) {
  if (frame.memory_ || frame.body_ == nullptr) return;
  const size_t bytes =
      FrameBytes(frame.header_.payload_bytes, frame.header_.raw_bytes) - kFrameHeaderBytes;
  frame.memory_.reset(Allocate(bytes + 1));
  std::memcpy(frame.memory_.get(), frame.body_, bytes);
  frame.body_ = frame.memory_.get();
}

}  // namespace turnkeep::wire
