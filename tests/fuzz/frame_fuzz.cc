// The frame decoder: any stream of bytes, cut anywhere, gives the same frames or the same error.
#include <algorithm>
#include <cstring>
#include <optional>

#include <xxhash.h>

#include "api/frame.h"
#include "fuzz/fuzz_target.h"

namespace turnkeep::testing {
namespace {

constexpr uint32_t kMaxBytes = 1 << 20;
constexpr size_t kCheckOffset = 36;

struct Outcome {
  std::vector<std::string> frames;  // payload, raw bytes and type of each
  absl::StatusCode end = absl::StatusCode::kOk;
  bool idle = true;
  bool operator==(const Outcome&) const = default;
};

std::string Digested(const wire::Frame& frame) {
  const auto payload = frame.payload();
  const auto raw = frame.raw();
  TK_CHECK(payload.size() == frame.header().payload_bytes);
  TK_CHECK(raw.size() == frame.header().raw_bytes);
  TK_CHECK(raw.empty() || reinterpret_cast<uintptr_t>(raw.data()) % 8 == 0);
  std::string text(TextOf(payload));
  text += '|';
  text += TextOf(raw);
  return text + std::to_string(frame.header().type);
}

// Feeds `input` to a reader in pieces of at most `piece_bytes`.
Outcome Read(std::span<const std::byte> input, size_t piece_bytes, bool keep) {
  wire::FrameReader reader(kMaxBytes);
  Outcome outcome;
  while (true) {
    auto next = reader.Next();
    if (!next.ok()) {
      outcome.end = next.status().code();
      outcome.idle = false;
      return outcome;
    }
    if (next->has_value()) {
      if (keep) wire::FrameReader::Keep(**next);
      outcome.frames.push_back(Digested(**next));
      continue;
    }
    if (input.empty()) break;
    const std::span<std::byte> area = reader.Writable();
    TK_CHECK(!area.empty());
    const size_t bytes = std::min({area.size(), input.size(), piece_bytes});
    std::memcpy(area.data(), input.data(), bytes);
    reader.Received(bytes);
    input = input.subspan(bytes);
  }
  outcome.idle = reader.idle();
  return outcome;
}

// Mutated headers would all end at their check; this one is made right.
std::string WithRightCheck(std::span<const std::byte> input) {
  std::string bytes(TextOf(input));
  if (bytes.size() >= wire::kFrameHeaderBytes) {
    const uint32_t check = XXH32(bytes.data(), kCheckOffset, 0);
    std::memcpy(bytes.data() + kCheckOffset, &check, sizeof(check));
  }
  return bytes;
}

void Run(std::span<const std::byte> input) {
  if (input.size() > 4 * kMaxBytes) return;
  const std::string checked = WithRightCheck(input);
  for (const std::span<const std::byte> stream : {input, BytesOf(checked)}) {
    const Outcome whole = Read(stream, SIZE_MAX, false);
    TK_CHECK(Read(stream, 1 + stream.size() % 61, true) == whole);
    if (stream.size() < 512) TK_CHECK(Read(stream, 1, false) == whole);
  }
}

std::string FrameOf(uint16_t type, std::string_view payload, std::string_view raw) {
  std::string bytes = wire::EncodeFrameHead({.type = type, .request_id = 7}, payload, raw.size());
  bytes += raw;
  bytes += wire::RawPadding(raw.size());
  return bytes;
}

std::vector<std::string> Seeds() {
  const std::string small = FrameOf(2, "abc", "");
  const std::string raw = FrameOf(40, "payload of 19 bytes", std::string(37, 'r'));
  const std::string large = FrameOf(71, "p", std::string(100'000, 'R'));
  return {small, raw, small + raw + small, large, large + small, FrameOf(0, "", "")};
}

}  // namespace

const FuzzTarget kFuzzTarget = {"frame", Run, Seeds, 8000};

}  // namespace turnkeep::testing
