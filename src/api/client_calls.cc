// The calls of Client that are one request and one reply, or none.
#include <cstring>

#include "api/client.h"
#include "api/client_impl.h"
#include "api/wire_plan.h"
#include "core/status.h"

namespace turnkeep {

namespace {
// Well below what a frame holds.
constexpr size_t kMaxHintBytes = 16 << 20;
}  // namespace

absl::StatusOr<SessionInfo> Client::ForkSession(const ForkRequest& request) {
  wire::ForkRequest message;
  wire::ToWire(request, &message);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::SessionInfo>(wire::FORK, message));
  return wire::FromWire(reply);
}

absl::StatusOr<SessionInfo> Client::TruncateSession(const TruncateRequest& request) {
  wire::TruncateRequest message;
  wire::ToWire(request, &message);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::SessionInfo>(wire::TRUNCATE, message));
  return wire::FromWire(reply);
}

absl::StatusOr<SessionInfo> Client::RenameSession(const std::string& from, const std::string& to) {
  wire::RenameRequest message;
  message.set_from(from);
  message.set_to(to);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::SessionInfo>(wire::RENAME, message));
  return wire::FromWire(reply);
}

absl::Status Client::DropSession(const std::string& name) {
  wire::SessionRef message;
  message.set_session(name);
  return impl_->Call<wire::Empty>(wire::DROP, message).status();
}

absl::StatusOr<SessionInfo> Client::PinSession(const std::string& name) {
  wire::SessionRef message;
  message.set_session(name);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::SessionInfo>(wire::PIN, message));
  return wire::FromWire(reply);
}

absl::StatusOr<SessionInfo> Client::UnpinSession(const std::string& name) {
  wire::SessionRef message;
  message.set_session(name);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::SessionInfo>(wire::UNPIN, message));
  return wire::FromWire(reply);
}

absl::StatusOr<SessionInfo> Client::SetSessionTtl(const std::string& name, absl::Duration ttl) {
  wire::SetTtlRequest message;
  message.set_session(name);
  message.set_ttl_us(wire::ToMicros(ttl));
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::SessionInfo>(wire::SET_TTL, message));
  return wire::FromWire(reply);
}

absl::StatusOr<std::vector<SessionInfo>> Client::ListSessions(const ListRequest& request) {
  wire::ListRequest message;
  wire::ToWire(request, &message);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::SessionList>(wire::LIST, message));
  std::vector<SessionInfo> sessions;
  sessions.reserve(reply.sessions_size());
  for (const wire::SessionInfo& info : reply.sessions()) {
    TK_ASSIGN_OR_RETURN(sessions.emplace_back(), wire::FromWire(info));
  }
  return sessions;
}

absl::StatusOr<SessionInfo> Client::StatSession(const std::string& name) {
  wire::SessionRef message;
  message.set_session(name);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::SessionInfo>(wire::STAT, message));
  return wire::FromWire(reply);
}

absl::StatusOr<SessionDetail> Client::ShowSession(const std::string& name) {
  wire::SessionRef message;
  message.set_session(name);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::SessionDetail>(wire::SHOW, message));
  return wire::FromWire(reply);
}

HintReply Client::Hint(const HintRequest& request) {
  wire::HintRequest message;
  wire::ToWire(request, &message);
  if (message.ByteSizeLong() > kMaxHintBytes) {
    return AnswerAll(
        request, HintOutcome::kRejected,
        fmt::format("a hint of {} bytes, the limit is {}", message.ByteSizeLong(), kMaxHintBytes));
  }
  const auto reply = impl_->Call<wire::HintReply>(wire::HINT, message);
  if (!reply.ok()) return AnswerAll(request, HintOutcome::kRejected, MessageOf(reply.status()));
  HintReply answers = wire::FromWire(*reply);
  // As many answers as questions, whatever the other side sent.
  const HintAnswer none{.outcome = HintOutcome::kRejected, .reason = "the daemon gave no answer"};
  answers.queue.resize(request.queue ? request.queue->size() : 0, none);
  answers.items.resize(request.items.size(), none);
  answers.speeds.resize(request.speeds.size(), none);
  return answers;
}

absl::StatusOr<Activity> Client::GetActivity(const ActivityRequest& request) {
  wire::ActivityRequest message;
  message.set_after(request.after);
  message.set_limit(request.limit);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::Activity>(wire::ACTIVITY, message));
  return wire::FromWire(reply);
}

absl::StatusOr<Explanation> Client::Explain(const ExplainRequest& request) {
  wire::ExplainRequest message;
  wire::ToWire(request, &message);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::Explanation>(
                                            wire::EXPLAIN, message, wire::RawOf(request.prompt)));
  return wire::FromWire(reply);
}

absl::StatusOr<std::vector<TreeNode>> Client::Tree(const TreeRequest& request) {
  wire::TreeRequest message;
  message.set_max_nodes(request.max_nodes);
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::TreeReply>(wire::TREE, message));
  std::vector<TreeNode> nodes;
  nodes.reserve(reply.nodes_size());
  for (const wire::TreeNode& node : reply.nodes()) {
    TK_ASSIGN_OR_RETURN(nodes.emplace_back(), wire::FromWire(node));
  }
  return nodes;
}

absl::StatusOr<VerifyReport> Client::Verify(
    const VerifyRequest& request,
    const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress) {
  wire::VerifyRequest message;
  message.set_session(request.session);
  message.set_repair(request.repair);
  TK_ASSIGN_OR_RETURN(const auto connection, impl_->Connection());
  TK_ASSIGN_OR_RETURN(const auto reply,
                      connection->Call<wire::VerifyReport>(wire::VERIFY, message,
                                                           absl::InfiniteFuture(), {}, progress));
  return wire::FromWire(reply);
}

absl::StatusOr<StoreStatus> Client::Status() {
  TK_ASSIGN_OR_RETURN(const auto reply,
                      impl_->Call<wire::StoreStatus>(wire::STATUS, wire::Empty()));
  return wire::FromWire(reply);
}

absl::Status Client::ReportGpuResidency(std::span<const GpuChunk> chunks) {
  if (chunks.size() > kMaxGpuChunks)
    return InvalidArgument("gpu residency: {} chunks, the limit is {}", chunks.size(),
                           kMaxGpuChunks);
  std::vector<wire::GpuEntry> entries(chunks.size());
  for (size_t i = 0; i < chunks.size(); ++i) {
    std::memcpy(entries[i].chunk, chunks[i].chunk.bytes.data(), sizeof(entries[i].chunk));
    entries[i].bytes = chunks[i].bytes;
  }
  wire::GpuResidency message;
  message.set_entry_count(static_cast<uint32_t>(entries.size()));
  TK_ASSIGN_OR_RETURN(const auto connection, impl_->Connection());
  return connection->Send(wire::GPU_RESIDENCY, message.SerializeAsString(), wire::AsBytes(entries),
                          impl_->RequestDeadline());
}

}  // namespace turnkeep
