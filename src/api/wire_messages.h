// Between the values of core/kv_types.h and the messages of turnkeep.proto. What comes
// from the other side is checked here: lengths of ids, enumerations, prompts.
//
// Thread-safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "api/turnkeep.pb.h"
#include "core/activity.h"
#include "core/hint.h"
#include "core/kv_types.h"
#include "core/status.h"

namespace turnkeep::wire {

// Parses `bytes` as `Message`; InvalidArgument names the message.
template <typename Message>
absl::StatusOr<Message> Parse(std::span<const std::byte> bytes) {
  Message message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return InvalidArgument("frame: payload of {} bytes is not a {}", bytes.size(),
                           message.GetTypeName());
  }
  return message;
}

int64_t ToMicros(absl::Duration duration);  // infinite: -1
absl::Duration FromMicros(int64_t micros);

void ToWire(const absl::Status& status, Error* out);
absl::Status FromWire(const Error& error);  // never OK

template <typename Id>
std::string IdBytes(const Id& id) {
  return std::string(reinterpret_cast<const char*>(id.bytes.data()), id.bytes.size());
}
// InvalidArgument unless 32 bytes.
absl::StatusOr<Fingerprint> FingerprintFromWire(const std::string& bytes);
absl::StatusOr<ChunkId> ChunkIdFromWire(const std::string& bytes);

// A prompt: block hashes go into the message, tokens become the frame's raw bytes.
void ToWire(const turnkeep::Prompt& prompt, Prompt* out);
std::span<const std::byte> RawOf(const turnkeep::Prompt& prompt);
// A prompt as received; the prompt borrows from it and from the frame.
struct ReceivedPrompt {
  std::vector<BlockHash> block_hashes;
  turnkeep::Prompt prompt;
};
absl::Status FromWire(const Prompt& message, std::span<const std::byte> raw, ReceivedPrompt* out);

void ToWire(const turnkeep::SaveRequest& request, BeginSaveRequest* out);
// out->prompt borrows from *prompt.
absl::Status FromWire(const BeginSaveRequest& message, std::span<const std::byte> raw,
                      ReceivedPrompt* prompt, turnkeep::SaveRequest* out);
void ToWire(const turnkeep::RestoreRequest& request, BeginRestoreRequest* out);
// Of *held, too.
absl::Status FromWire(const BeginRestoreRequest& message, std::span<const std::byte> raw,
                      ReceivedPrompt* prompt, std::vector<ChunkId>* held,
                      turnkeep::RestoreRequest* out);
void ToWire(const turnkeep::ImportRequest& request, BeginImportRequest* out);
absl::StatusOr<turnkeep::ImportRequest> FromWire(const BeginImportRequest& message);
void ToWire(const CommitResult& result, CommitReply* out);
CommitResult FromWire(const CommitReply& message);

void ToWire(const turnkeep::ForkRequest& request, ForkRequest* out);
turnkeep::ForkRequest FromWire(const ForkRequest& message);
void ToWire(const turnkeep::TruncateRequest& request, TruncateRequest* out);
turnkeep::TruncateRequest FromWire(const TruncateRequest& message);
void ToWire(const turnkeep::ListRequest& request, ListRequest* out);
turnkeep::ListRequest FromWire(const ListRequest& message);

void ToWire(const turnkeep::SessionInfo& info, SessionInfo* out);
absl::StatusOr<turnkeep::SessionInfo> FromWire(const SessionInfo& message);
void ToWire(const turnkeep::SessionDetail& detail, SessionDetail* out);
absl::StatusOr<turnkeep::SessionDetail> FromWire(const SessionDetail& message);

// wire_hint.cc
void ToWire(const turnkeep::HintRequest& request, HintRequest* out);
absl::StatusOr<turnkeep::HintRequest> FromWire(const HintRequest& message);
void ToWire(const turnkeep::HintReply& reply, HintReply* out);
turnkeep::HintReply FromWire(const HintReply& message);

// wire_activity.cc
void ToWire(const turnkeep::Activity& activity, Activity* out);
turnkeep::Activity FromWire(const Activity& message);

void ToWire(const turnkeep::ExplainRequest& request, ExplainRequest* out);
absl::Status FromWire(const ExplainRequest& message, std::span<const std::byte> raw,
                      ReceivedPrompt* prompt, turnkeep::ExplainRequest* out);
void ToWire(const turnkeep::Explanation& explanation, Explanation* out);
absl::StatusOr<turnkeep::Explanation> FromWire(const Explanation& message);
void ToWire(const turnkeep::TreeNode& node, TreeNode* out);
absl::StatusOr<turnkeep::TreeNode> FromWire(const TreeNode& message);
void ToWire(const turnkeep::VerifyReport& report, VerifyReport* out);
turnkeep::VerifyReport FromWire(const VerifyReport& message);
void ToWire(const turnkeep::StoreStatus& status, StoreStatus* out);
turnkeep::StoreStatus FromWire(const StoreStatus& message);

}  // namespace turnkeep::wire
