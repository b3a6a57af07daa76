// The messages of the protocol: any payload gives a value or an error. The first byte chooses
// the message; the second how many of the last bytes are the frame's raw bytes.
#include <cstring>
#include <type_traits>
#include <vector>

#include <google/protobuf/stubs/logging.h>

#include "api/wire_messages.h"
#include "core/layout.h"
#include "fuzz/fuzz_target.h"

namespace turnkeep::testing {
namespace {

constexpr int kMessages = 15;

template <typename Message>
void Decode(std::span<const std::byte> payload) {
  const auto message = wire::Parse<Message>(payload);
  if (message.ok()) (void)wire::FromWire(*message);
}

template <typename Message, typename Request>
void DecodeWithPrompt(std::span<const std::byte> payload, std::span<const std::byte> raw) {
  const auto message = wire::Parse<Message>(payload);
  if (!message.ok()) return;
  wire::ReceivedPrompt prompt;
  std::vector<ChunkId> held;
  Request request;
  absl::Status decoded;
  if constexpr (std::is_same_v<Request, RestoreRequest>) {
    decoded = wire::FromWire(*message, raw, &prompt, &held, &request);
  } else {
    decoded = wire::FromWire(*message, raw, &prompt, &request);
  }
  if (!decoded.ok()) return;
  // What is accepted can be walked to its end.
  uint64_t sum = 0;
  for (const uint32_t token : request.prompt.tokens) sum += token;
  for (const BlockHash& hash : request.prompt.block_hashes) sum += hash.size();
  for (const ChunkId& id : held) sum += id.bytes[0];
  TK_CHECK(sum + 1 > 0 || request.prompt.token_count() > 0);
}

void Run(std::span<const std::byte> input) {
  if (input.size() < 2) return;
  // Raw bytes begin on a multiple of 8, as a FrameReader gives them.
  const auto rest = input.subspan(2);
  const size_t raw_bytes = std::min<size_t>(static_cast<size_t>(input[1]), rest.size());
  std::vector<uint64_t> aligned(raw_bytes / 8 + 1);
  std::memcpy(aligned.data(), rest.data() + (rest.size() - raw_bytes), raw_bytes);
  const auto raw = std::as_bytes(std::span(aligned)).first(raw_bytes);
  const auto payload = rest.first(rest.size() - raw_bytes);
  switch (static_cast<int>(input[0]) % kMessages) {
    case 0:
      return DecodeWithPrompt<wire::BeginSaveRequest, SaveRequest>(payload, raw);
    case 1:
      return DecodeWithPrompt<wire::BeginRestoreRequest, RestoreRequest>(payload, raw);
    case 2:
      return Decode<wire::BeginImportRequest>(payload);
    case 3:
      return Decode<wire::CommitReply>(payload);
    case 4:
      return Decode<wire::ForkRequest>(payload);
    case 5:
      return Decode<wire::TruncateRequest>(payload);
    case 6:
      return Decode<wire::ListRequest>(payload);
    case 7:
      return Decode<wire::SessionInfo>(payload);
    case 8:
      return Decode<wire::SessionDetail>(payload);
    case 9:
      return Decode<wire::Error>(payload);
    case 10:
      return Decode<wire::Explanation>(payload);
    case 11:
      return Decode<wire::StoreStatus>(payload);
    case 12:
      return Decode<wire::HintRequest>(payload);
    case 13:
      return Decode<wire::HintReply>(payload);
    default:
      return Decode<wire::Activity>(payload);
  }
}

template <typename Message>
std::string Seed(char kind, const Message& message, std::string_view raw = "") {
  std::string bytes = {kind, static_cast<char>(raw.size())};
  message.AppendToString(&bytes);
  bytes += raw;
  return bytes;
}

std::vector<std::string> Seeds() {
  google::protobuf::SetLogHandler(nullptr);  // or it reports every mutated string on stderr
  const std::vector<uint32_t> tokens = {1, 2, 3, 4, 5};
  const std::string_view raw(reinterpret_cast<const char*>(tokens.data()), 20);
  const std::vector<BlockHash> hashes = {"hash-one", "hash-two"};
  Fingerprint layout;
  layout.bytes[3] = 9;
  wire::BeginSaveRequest save, hashed;
  wire::ToWire(SaveRequest{.session = "s",
                           .expected_generation = 4,
                           .layout = layout,
                           .prompt = {.tokens = tokens},
                           .ttl = absl::Seconds(9)},
               &save);
  wire::ToWire(SaveRequest{.session = "s",
                           .layout = layout,
                           .prompt = {.block_hashes = hashes, .hashed_token_count = 20}},
               &hashed);
  wire::BeginRestoreRequest restore;
  wire::ToWire(RestoreRequest{.session = "s", .prompt = {.tokens = tokens}, .layout = layout},
               &restore);
  wire::BeginImportRequest import;
  wire::ToWire(ImportRequest{.session = "s",
                             .layout = layout,
                             .chunks = {{.tokens = tokens, .token_count = 5}},
                             .slices = {{.chunk_index = 0, .first = 0, .count = 5}}},
               &import);
  wire::SessionInfo info;
  wire::ToWire(SessionInfo{.name = "s", .generation = 3, .layout = layout, .token_count = 5},
               &info);
  wire::TruncateRequest truncate;
  wire::ToWire(TruncateRequest{.session = "s", .drop_begin = 1, .drop_end = 4}, &truncate);
  wire::HintRequest hint;
  wire::ToWire(HintRequest{.queue = std::vector<WaitingRequest>{{.target = {.session = "s"},
                                                                 .waited = absl::Seconds(2),
                                                                 .priority = -3}},
                           .items = {{.action = HintAction::kExpect,
                                      .target = {.tokens = tokens, .layout = layout},
                                      .expected_times = {absl::Seconds(1), absl::Seconds(9)},
                                      .stop = StopReason::kToolUse}}},
               &hint);
  wire::HintReply answers;
  wire::ToWire(HintReply{.items = {{.outcome = HintOutcome::kMissing, .reason = "none"}}},
               &answers);
  wire::Activity activity;
  wire::ToWire(Activity{.expected = {{.target = "s"}}, .events = {{.number = 2, .why = "w"}}},
               &activity);
  return {Seed(14, activity), Seed(12, hint),  Seed(13, answers),
          Seed(0, save, raw), Seed(0, hashed), Seed(1, restore, raw),
          Seed(2, import),    Seed(7, info),   Seed(5, truncate)};
}

}  // namespace

const FuzzTarget kFuzzTarget = {"wire_message", Run, Seeds, 40000};

}  // namespace turnkeep::testing
