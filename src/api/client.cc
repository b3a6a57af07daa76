#include "api/client.h"

#include <algorithm>

#include "api/client_impl.h"
#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {

// ---- connection ------------------------------------------------------------------

Client::Impl::~Impl() {
  std::shared_ptr<ClientConnection> connection;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    connection = connection_;
  }
  if (connection) connection->Shut("the client was closed");
  if (thread_.joinable()) thread_.join();
}

absl::Status Client::Impl::Start() {
  const absl::Status status = ConnectOnce();
  if (!status.ok() && !(options_.start_disconnected && absl::IsUnavailable(status))) return status;
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

absl::Status Client::Impl::ConnectOnce() {
  auto connection = ClientConnection::Open(options_);
  absl::Status status = connection.status();
  if (status.ok()) status = RegisterAgain(**connection);
  absl::MutexLock lock(&mutex_);
  // The destructor has seen no connection to shut.
  if (stopping_) status = Unavailable("the client was closed");
  if (!status.ok()) {
    why_disconnected_ = status;
    return status;
  }
  connection_ = *std::move(connection);
  info_ = connection_->info();
  return absl::OkStatus();
}

absl::Status Client::Impl::RegisterAgain(ClientConnection& connection) {
  std::vector<std::shared_ptr<const ClientLayout>> layouts;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [fingerprint, known] : layouts_) {
      if (known.registered) layouts.push_back(known.info);
    }
  }
  for (const auto& info : layouts) {
    wire::Layout message;
    message.set_encoding(EncodeLayout(info->layout()));
    TK_RETURN_IF_ERROR(connection
                           .Exchange(wire::REGISTER_LAYOUT, message.SerializeAsString(),
                                     absl::Now() + options_.connect_timeout)
                           .status());
  }
  return absl::OkStatus();
}

void Client::Impl::Run() {
  absl::Duration backoff = options_.min_backoff;
  for (;;) {
    std::shared_ptr<ClientConnection> connection;
    {
      absl::MutexLock lock(&mutex_);
      connection = connection_;
    }
    if (connection) {
      connection->ReadLoop();
      absl::MutexLock lock(&mutex_);
      connection_ = nullptr;
      why_disconnected_ = connection->LostStatus();
      backoff = options_.min_backoff;
    }
    connection = nullptr;
    {
      absl::MutexLock lock(&mutex_);
      if (!options_.reconnect) return;
      mutex_.AwaitWithTimeout(absl::Condition(&stopping_), backoff);
      if (stopping_) return;
    }
    backoff = std::min(backoff * 2, options_.max_backoff);
    (void)ConnectOnce();  // the reason is kept in why_disconnected_
  }
}

absl::StatusOr<std::shared_ptr<ClientConnection>> Client::Impl::Connection() const {
  absl::MutexLock lock(&mutex_);
  if (connection_ && !connection_->lost()) return connection_;
  const absl::Status& why = connection_ ? connection_->LostStatus() : why_disconnected_;
  return Unavailable("turnkeepd is away: {}", MessageOf(why));
}

ServerInfo Client::Impl::info() const {
  absl::MutexLock lock(&mutex_);
  return info_;
}

void Client::Impl::Remember(const Fingerprint& fingerprint, const KvLayout& layout,
                            bool registered) {
  absl::MutexLock lock(&mutex_);
  KnownLayout& known = layouts_[fingerprint];
  if (!known.info) known.info = std::make_shared<const ClientLayout>(layout);
  known.registered = known.registered || registered;
}

std::shared_ptr<const ClientLayout> Client::Impl::Find(const Fingerprint& fingerprint) const {
  absl::MutexLock lock(&mutex_);
  const auto it = layouts_.find(fingerprint);
  return it == layouts_.end() ? nullptr : it->second.info;
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(ClientOptions options) {
  if (options.socket_path.empty() == options.tcp_address.empty()) {
    return InvalidArgument("connect: give either socket_path ('{}') or tcp_address ('{}')",
                           options.socket_path, options.tcp_address);
  }
  if (options.min_backoff <= absl::ZeroDuration() || options.max_backoff < options.min_backoff) {
    return InvalidArgument("connect: min_backoff {} and max_backoff {}",
                           absl::FormatDuration(options.min_backoff),
                           absl::FormatDuration(options.max_backoff));
  }
  if (options.busy_poll < absl::ZeroDuration() ||
      options.busy_poll > absl::Microseconds(kMaxBusyPollMicros)) {
    return InvalidArgument("connect: busy_poll {} is outside 0 to {} us",
                           absl::FormatDuration(options.busy_poll), kMaxBusyPollMicros);
  }
  auto impl = std::make_unique<Impl>(std::move(options));
  TK_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Client>(new Client(std::move(impl)));
}

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

bool Client::connected() const { return impl_->Connection().ok(); }
ServerInfo Client::server_info() const { return impl_->info(); }

// ---- layouts and tickets -----------------------------------------------------------

absl::StatusOr<Fingerprint> Client::RegisterLayout(const KvLayout& layout) {
  TK_RETURN_IF_ERROR(ValidateLayout(layout));
  wire::Layout message;
  message.set_encoding(EncodeLayout(layout));
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::Layout>(wire::REGISTER_LAYOUT, message));
  TK_ASSIGN_OR_RETURN(const Fingerprint fingerprint,
                      wire::FingerprintFromWire(reply.fingerprint()));
  impl_->Remember(fingerprint, layout, /*registered=*/true);
  return fingerprint;
}

absl::StatusOr<KvLayout> Client::GetLayout(const Fingerprint& fingerprint) {
  wire::LayoutRef message;
  message.set_fingerprint(wire::IdBytes(fingerprint));
  TK_ASSIGN_OR_RETURN(const auto reply, impl_->Call<wire::Layout>(wire::GET_LAYOUT, message));
  TK_ASSIGN_OR_RETURN(KvLayout layout, DecodeLayout(reply.encoding()));
  impl_->Remember(fingerprint, layout, /*registered=*/false);
  return layout;
}

namespace {

// The layout of a save or restore, asked for once when another client registered it.
absl::StatusOr<std::shared_ptr<const ClientLayout>> KnownLayoutOf(
    Client& client, const std::function<std::shared_ptr<const ClientLayout>()>& find,
    const Fingerprint& fingerprint) {
  if (auto info = find()) return info;
  const auto layout = client.GetLayout(fingerprint);
  if (absl::IsNotFound(layout.status())) {
    return InvalidArgument("layout {}: not registered", fingerprint.ShortHex());
  }
  TK_RETURN_IF_ERROR(layout.status());
  return find();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SaveTicket>> Client::BeginSave(const SaveRequest& request) {
  TK_ASSIGN_OR_RETURN(const auto layout,
                      KnownLayoutOf(
                          *this, [&] { return impl_->Find(request.layout); }, request.layout));
  TK_ASSIGN_OR_RETURN(const auto connection, impl_->Connection());
  const uint64_t ticket = connection->NewTicket();
  wire::BeginSaveRequest message;
  wire::ToWire(request, &message);
  message.set_ticket(ticket);
  const auto plan = connection->Roundtrip(wire::BEGIN_SAVE, message.SerializeAsString(),
                                          wire::RawOf(request.prompt),
                                          impl_->RequestDeadline() + request.space_deadline);
  if (!plan.ok()) {
    connection->Release(ticket);  // it may still be granted
    return plan.status();
  }
  return MakeSaveTicket(connection, layout, ticket, *plan);
}

absl::StatusOr<std::unique_ptr<SaveTicket>> Client::BeginImport(const ImportRequest& request) {
  TK_ASSIGN_OR_RETURN(const auto layout,
                      KnownLayoutOf(
                          *this, [&] { return impl_->Find(request.layout); }, request.layout));
  TK_ASSIGN_OR_RETURN(const auto connection, impl_->Connection());
  const uint64_t ticket = connection->NewTicket();
  wire::BeginImportRequest message;
  wire::ToWire(request, &message);
  message.set_ticket(ticket);
  const std::string payload = message.SerializeAsString();
  if (wire::FrameBytes(payload.size(), 0) > kMaxFrameBytes) {
    return InvalidArgument("import: its description has {} bytes, the limit is {}", payload.size(),
                           kMaxFrameBytes);
  }
  const auto plan =
      connection->Roundtrip(wire::BEGIN_IMPORT, payload, {}, impl_->RequestDeadline());
  if (!plan.ok()) {
    connection->Release(ticket);
    return plan.status();
  }
  return MakeSaveTicket(connection, layout, ticket, *plan);
}

absl::StatusOr<std::unique_ptr<RestoreTicket>> Client::BeginRestore(const RestoreRequest& request) {
  TK_ASSIGN_OR_RETURN(const auto layout,
                      KnownLayoutOf(
                          *this, [&] { return impl_->Find(request.layout); }, request.layout));
  TK_ASSIGN_OR_RETURN(const auto connection, impl_->Connection());
  const uint64_t ticket = connection->NewTicket();
  const absl::Time deadline = absl::Now() + request.deadline;
  wire::BeginRestoreRequest message;
  wire::ToWire(request, &message);
  message.set_ticket(ticket);
  RestoreTicketParts parts{.connection = connection,
                           .layout = layout,
                           .ticket = ticket,
                           .state = std::make_shared<RestoreState>(),
                           .deadline = deadline};
  connection->AddRestore(ticket, parts.state);
  const auto plan = connection->Roundtrip(wire::BEGIN_RESTORE, message.SerializeAsString(),
                                          wire::RawOf(request.prompt), impl_->RequestDeadline());
  if (!plan.ok()) {
    connection->RemoveRestore(ticket);
    connection->Release(ticket);
    return plan.status();
  }
  return MakeRestoreTicket(std::move(parts), *plan);
}

}  // namespace turnkeep
