#include "api/server_calls.h"

#include <algorithm>

#include "api/wire_fields.h"
#include "api/wire_messages.h"
#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {

namespace {

// What one LIST or TREE may ask for; an answer must fit in a frame.
constexpr uint32_t kMaxListed = 100'000;

template <typename Message, typename Value>
absl::StatusOr<std::string> Answer(const absl::StatusOr<Value>& value) {
  TK_RETURN_IF_ERROR(value.status());
  Message message;
  wire::ToWire(*value, &message);
  return message.SerializeAsString();
}

absl::StatusOr<std::string> RegisterLayout(KvStore& store, const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::Layout>(frame.payload()));
  TK_ASSIGN_OR_RETURN(const KvLayout layout, DecodeLayout(message.encoding()));
  TK_ASSIGN_OR_RETURN(const Fingerprint fingerprint, store.RegisterLayout(layout));
  wire::Layout reply;
  reply.set_fingerprint(wire::IdBytes(fingerprint));
  return reply.SerializeAsString();
}

absl::StatusOr<std::string> GetLayout(KvStore& store, const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::LayoutRef>(frame.payload()));
  TK_ASSIGN_OR_RETURN(const Fingerprint fingerprint,
                      wire::FingerprintFromWire(message.fingerprint()));
  TK_ASSIGN_OR_RETURN(const KvLayout layout, store.GetLayout(fingerprint));
  wire::Layout reply;
  reply.set_encoding(EncodeLayout(layout));
  reply.set_fingerprint(message.fingerprint());
  return reply.SerializeAsString();
}

absl::StatusOr<std::string> OnSession(KvStore& store, const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::SessionRef>(frame.payload()));
  const std::string& name = message.session();
  switch (frame.header().type) {
    case wire::DROP:
      TK_RETURN_IF_ERROR(store.DropSession(name));
      return std::string();
    case wire::PIN:
      return Answer<wire::SessionInfo>(store.PinSession(name));
    case wire::UNPIN:
      return Answer<wire::SessionInfo>(store.UnpinSession(name));
    case wire::STAT:
      return Answer<wire::SessionInfo>(store.StatSession(name));
    default:
      return Answer<wire::SessionDetail>(store.ShowSession(name));
  }
}

absl::StatusOr<std::string> List(KvStore& store, const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::ListRequest>(frame.payload()));
  ListRequest request = wire::FromWire(message);
  request.limit = std::min(request.limit, kMaxListed);
  TK_ASSIGN_OR_RETURN(const auto sessions, store.ListSessions(request));
  wire::SessionList reply;
  for (const SessionInfo& info : sessions) wire::ToWire(info, reply.add_sessions());
  return reply.SerializeAsString();
}

absl::StatusOr<std::string> Tree(KvStore& store, const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::TreeRequest>(frame.payload()));
  TK_ASSIGN_OR_RETURN(const auto nodes,
                      store.Tree({.max_nodes = std::min(message.max_nodes(), kMaxListed)}));
  wire::TreeReply reply;
  for (const TreeNode& node : nodes) wire::ToWire(node, reply.add_nodes());
  return reply.SerializeAsString();
}

absl::StatusOr<std::string> Explain(KvStore& store, const wire::Frame& frame) {
  TK_RETURN_IF_ERROR(wire::CheckFields(frame.payload(), wire::kExplainFields));
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::ExplainRequest>(frame.payload()));
  wire::ReceivedPrompt prompt;
  ExplainRequest request;
  TK_RETURN_IF_ERROR(wire::FromWire(message, frame.raw(), &prompt, &request));
  return Answer<wire::Explanation>(store.Explain(request));
}

}  // namespace

bool IsStoreCall(uint16_t type) {
  return (type >= wire::REGISTER_LAYOUT && type <= wire::STATUS) || type == wire::HINT ||
         type == wire::ACTIVITY;
}

absl::StatusOr<std::string> RunVerify(
    Store& store, TenantNumber tenant, const wire::Frame& frame,
    const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress,
    const std::function<bool()>& cancelled) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::VerifyRequest>(frame.payload()));
  return Answer<wire::VerifyReport>(store.Verify(
      tenant, {.session = message.session(), .repair = message.repair()}, progress, cancelled));
}

absl::StatusOr<std::string> RunStoreCall(KvStore& store, const wire::Frame& frame) {
  const auto type = static_cast<wire::MessageType>(frame.header().type);
  if (type != wire::EXPLAIN && !frame.raw().empty()) {
    return InvalidArgument("{}: {} raw bytes, it takes none", wire::TypeName(type),
                           frame.raw().size());
  }
  switch (type) {
    case wire::REGISTER_LAYOUT:
      return RegisterLayout(store, frame);
    case wire::GET_LAYOUT:
      return GetLayout(store, frame);
    case wire::FORK: {
      TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::ForkRequest>(frame.payload()));
      return Answer<wire::SessionInfo>(store.ForkSession(wire::FromWire(message)));
    }
    case wire::TRUNCATE: {
      TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::TruncateRequest>(frame.payload()));
      return Answer<wire::SessionInfo>(store.TruncateSession(wire::FromWire(message)));
    }
    case wire::RENAME: {
      TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::RenameRequest>(frame.payload()));
      return Answer<wire::SessionInfo>(store.RenameSession(message.from(), message.to()));
    }
    case wire::SET_TTL: {
      TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::SetTtlRequest>(frame.payload()));
      return Answer<wire::SessionInfo>(
          store.SetSessionTtl(message.session(), wire::FromMicros(message.ttl_us())));
    }
    case wire::LIST:
      return List(store, frame);
    case wire::EXPLAIN:
      return Explain(store, frame);
    case wire::TREE:
      return Tree(store, frame);
    case wire::HINT: {
      TK_RETURN_IF_ERROR(wire::CheckFields(frame.payload(), wire::kHintFields));
      TK_RETURN_IF_ERROR(wire::CheckFields(frame.payload(), wire::kHintContentFields));
      TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::HintRequest>(frame.payload()));
      TK_ASSIGN_OR_RETURN(const HintRequest request, wire::FromWire(message));
      wire::HintReply reply;
      wire::ToWire(store.Hint(request), &reply);
      return reply.SerializeAsString();
    }
    case wire::ACTIVITY: {
      TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::ActivityRequest>(frame.payload()));
      return Answer<wire::Activity>(store.GetActivity(
          {.after = message.after(), .limit = std::min(message.limit(), kMaxActivity)}));
    }
    case wire::STATUS:
      return Answer<wire::StoreStatus>(store.Status());
    default:
      return OnSession(store, frame);
  }
}

}  // namespace turnkeep
