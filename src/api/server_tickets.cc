#include "api/server_tickets.h"

#include <algorithm>
#include <cstring>
#include <set>

#include <spdlog/spdlog.h>

#include "api/wire_fields.h"
#include "api/wire_messages.h"
#include "api/wire_plan.h"
#include "core/check.h"
#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {

namespace {

// Prompts up to this many tokens are matched on the server's thread; hashing longer ones would
// keep others waiting for more than a fraction of a millisecond.
constexpr size_t kInlineTokens = 16'384;

// What of a request's time a restore may wait for room; the rest is for its answer.
constexpr double kShareOfWait = 0.9;

void ToWire(uint64_t ticket, const RestoreProgress& progress, wire::Progress* out) {
  out->set_ticket(ticket);
  out->set_layers_ready(progress.layers_ready);
  out->set_valid_tokens(progress.valid_tokens);
  out->set_finished(progress.finished);
  out->set_miss_reason(progress.miss_reason);
}

// Keeps the frame, in which the prompt's tokens lie, for a worker. Returns what the job then holds:
// the frame, and what was decoded of its message.
template <typename Job>
uint64_t KeepFrame(wire::Frame& frame, Job& job) {
  wire::FrameReader::Keep(frame);
  job.frame = std::move(frame);
  const wire::FrameHeader& header = job.frame.header();
  job.request.prompt.tokens = {reinterpret_cast<const uint32_t*>(job.frame.raw().data()),
                               header.raw_bytes / sizeof(uint32_t)};
  return wire::FrameBytes(header.payload_bytes, header.raw_bytes) + header.payload_bytes +
         job.prompt.block_hashes.size() * sizeof(BlockHash);
}

bool Same(const RestoreProgress& a, const RestoreProgress& b) {
  return a.layers_ready == b.layers_ready && a.valid_tokens == b.valid_tokens &&
         a.finished == b.finished && a.miss_reason == b.miss_reason;
}

}  // namespace

ConnectionTickets::~ConnectionTickets() { Clear(); }

bool ConnectionTickets::Handles(uint16_t type) {
  switch (type) {
    case wire::BEGIN_SAVE:
    case wire::BEGIN_IMPORT:
    case wire::COMMIT:
    case wire::BEGIN_RESTORE:
    case wire::CUT:
    case wire::REPORT_DAMAGE:
    case wire::RELEASE:
    case wire::PAGE_READ:
    case wire::PAGE_WRITE:
      return true;
    default:
      return false;
  }
}

void ConnectionTickets::Handle(wire::Frame& frame) {
  const uint16_t type = frame.header().type;
  absl::Status status;
  if (type == wire::RELEASE || type == wire::REPORT_DAMAGE || type == wire::PAGE_WRITE) {
    status = type == wire::RELEASE         ? Release(frame)
             : type == wire::REPORT_DAMAGE ? ReportDamage(frame)
                                           : PageWrite(frame);
    // There is no reply that could carry the error.
    if (!status.ok()) connection_.Kick("bad_frame", status);
    return;
  }
  const std::shared_ptr<Responder> responder = NewResponder(frame);
  switch (type) {
    case wire::BEGIN_SAVE:
      status = BeginSave(frame, responder);
      break;
    case wire::BEGIN_IMPORT:
      status = BeginImport(frame, responder);
      break;
    case wire::BEGIN_RESTORE:
      status = BeginRestore(frame, responder);
      break;
    case wire::COMMIT:
      status = Commit(frame, responder);
      break;
    case wire::CUT:
      status = Cut(frame, responder);
      break;
    default:
      status = PageRead(frame, responder);
      break;
  }
  if (!status.ok()) responder->Error(status);
}

std::shared_ptr<Responder> ConnectionTickets::NewResponder(const wire::Frame& frame) {
  connection_.CallStarted();
  return std::make_shared<Responder>(connection_.weak_from_this(), frame.header());
}

absl::Status ConnectionTickets::CheckNewTicket(uint64_t ticket) const {
  const uint32_t limit = connection_.context().options().max_tickets_per_connection;
  if (connection_.context().draining()) return Unavailable("begin: turnkeepd is shutting down");
  if (saves_.contains(ticket) || restores_.contains(ticket)) {
    return InvalidArgument("begin: ticket {} is in use", ticket);
  }
  if (count() >= limit) {
    return ResourceExhausted("begin: this connection has {} tickets, the limit is {}", count(),
                             limit);
  }
  const uint64_t all = connection_.context().totals().tickets;
  if (all >= kMaxTickets)
    return ResourceExhausted("begin: all clients have {} tickets, the limit is {}", all,
                             kMaxTickets);
  return absl::OkStatus();
}

template <typename Result>
std::function<void(Result)> ConnectionTickets::Begun(uint64_t ticket, const Wanted& wanted,
                                                     std::shared_ptr<Responder> responder,
                                                     Finish<Result> finish) {
  return [self = connection_.weak_from_this(), gate = connection_.context().gate(), ticket,
          wanted = std::weak_ptr(wanted), responder = std::move(responder), finish](Result result) {
    const auto answer = [self, ticket, wanted, responder, finish](Result begun) {
      const auto connection = self.lock();
      if (!connection) return;
      if (wanted.expired()) {  // released meanwhile; the operation ends here
        return responder->Error(Unavailable("{}: ticket {} was released",
                                            wire::TypeName(responder->header().type), ticket));
      }
      (connection->tickets().*finish)(ticket, responder, std::move(begun));
    };
    // Most begin at once, inside the call: answered without another turn of the loop.
    if (gate->OnServerThread()) return answer(std::move(result));
    gate->Post([answer, result = std::move(result)]() mutable { answer(std::move(result)); });
  };
}

absl::Status ConnectionTickets::RunBegin(const char* what, uint64_t ticket, uint64_t bytes,
                                         std::function<void()> work) {
  const absl::Status taken = connection_.RunOnWorker(what, bytes, std::move(work));
  if (!taken.ok()) Forget(ticket);
  return taken;
}

// ---- save ------------------------------------------------------------------------

absl::Status ConnectionTickets::BeginSave(wire::Frame& frame,
                                          const std::shared_ptr<Responder>& responder) {
  TK_RETURN_IF_ERROR(wire::CheckFields(frame.payload(), wire::kSaveFields));
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::BeginSaveRequest>(frame.payload()));
  TK_RETURN_IF_ERROR(CheckNewTicket(message.ticket()));
  // Shared by the worker that may run this and nobody else.
  struct Job {
    wire::Frame frame;
    wire::ReceivedPrompt prompt;
    SaveRequest request;
  };
  auto job = std::make_shared<Job>();
  TK_RETURN_IF_ERROR(wire::FromWire(message, frame.raw(), &job->prompt, &job->request));
  const uint64_t ticket = message.ticket();
  const Wanted& wanted = saves_[ticket].wanted;
  ++connection_.context().totals().tickets;
  responder->ArmDeadline(responder);
  ServerContext& context = connection_.context();
  const TenantNumber tenant = connection_.tenant().number;
  auto done = Begun(ticket, wanted, responder, &ConnectionTickets::FinishBeginSave);
  if (job->request.prompt.token_count() <= kInlineTokens) {
    context.store().BeginSave(tenant, job->request, std::move(done));
    return absl::OkStatus();
  }
  return RunBegin("begin save", ticket, KeepFrame(frame, *job),
                  [&store = context.store(), tenant, job, done] {
                    store.BeginSave(tenant, job->request, done);
                  });
}

absl::Status ConnectionTickets::BeginImport(wire::Frame& frame,
                                            const std::shared_ptr<Responder>& responder) {
  TK_RETURN_IF_ERROR(wire::CheckFields(frame.payload(), wire::kImportFields));
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::BeginImportRequest>(frame.payload()));
  TK_RETURN_IF_ERROR(CheckNewTicket(message.ticket()));
  auto request = wire::FromWire(message);
  TK_RETURN_IF_ERROR(request.status());
  const uint64_t ticket = message.ticket();
  const Wanted& wanted = saves_[ticket].wanted;
  ++connection_.context().totals().tickets;
  responder->ArmDeadline(responder);
  // The decoded request, for its frame is not kept.
  const uint64_t bytes = frame.payload().size() + request->chunks.size() * sizeof(ImportedChunk) +
                         request->slices.size() * sizeof(ImportRequest::Slice);
  auto work = [&store = connection_.context().store(), tenant = connection_.tenant().number,
               request = *std::move(request),
               done = Begun(ticket, wanted, responder, &ConnectionTickets::FinishBeginSave)] {
    store.BeginImport(tenant, request, done);
  };
  return RunBegin("begin import", ticket, bytes, std::move(work));
}

void ConnectionTickets::FinishBeginSave(uint64_t ticket,
                                        const std::shared_ptr<Responder>& responder,
                                        SaveResult result) {
  Save& save = saves_.at(ticket);
  absl::Status status = result.status();
  if (status.ok() && responder->answered()) status = DeadlineExceeded("begin save: too late");
  if (status.ok()) {
    save.operation = *std::move(result);
    status = SendSavePlan(ticket, *save.operation, *responder);
  }
  if (!status.ok()) {
    Forget(ticket);
    responder->Error(status);
  }
}

absl::Status ConnectionTickets::SendSavePlan(uint64_t ticket, const SaveOperation& operation,
                                             Responder& responder) {
  const auto slots = operation.slots();
  const auto chunks = operation.chunks();
  TK_CHECK(slots.size() == chunks.size());
  if (connection_.shared_memory()) TK_RETURN_IF_ERROR(GrantSlots(slots));
  auto entries = std::make_shared<std::vector<wire::SaveEntry>>(slots.size());
  uint32_t segment = 0;  // neighbours mostly share one
  uint64_t slot_bytes = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    wire::SaveEntry& entry = (*entries)[i];
    std::memcpy(entry.chunk, slots[i].id.bytes.data(), sizeof(entry.chunk));
    entry.epoch = slots[i].epoch;
    entry.token_begin = chunks[i].token_begin;
    entry.token_count = chunks[i].token_count;
    if (!connection_.shared_memory()) continue;
    const SlotRef slot = slots[i].slot;
    if (slot.segment != segment) {
      TK_ASSIGN_OR_RETURN(slot_bytes, connection_.SlotBytes(slot.segment));
      segment = slot.segment;
    }
    entry.segment = segment;
    entry.slot_offset = slot.slot * slot_bytes;
  }
  wire::SavePlan plan;
  plan.set_ticket(ticket);
  plan.set_known_tokens(operation.known_tokens());
  plan.set_accepted_tokens(operation.accepted_tokens());
  plan.set_entry_count(static_cast<uint32_t>(entries->size()));
  responder.Reply(plan.SerializeAsString(), wire::AsBytes(*entries), entries);
  return absl::OkStatus();
}

absl::Status ConnectionTickets::Commit(const wire::Frame& frame,
                                       const std::shared_ptr<Responder>& responder) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::TicketRef>(frame.payload()));
  const uint64_t ticket = message.ticket();
  TK_ASSIGN_OR_RETURN(Save * save, FindSave("commit", ticket));
  if (save->committing) return FailedPrecondition("commit: ticket {} is committed already", ticket);
  TK_RETURN_IF_ERROR(save->failed);
  save->committing = true;
  responder->ArmDeadline(responder);
  save->operation->Commit(
      [gate = connection_.context().gate(), responder](absl::StatusOr<CommitResult> result) {
        // Always in another turn: this may run inside the operation's own destructor.
        gate->Post([responder, result = std::move(result)] {
          if (!result.ok()) return responder->Error(result.status());
          wire::CommitReply reply;
          wire::ToWire(*result, &reply);
          responder->Reply(reply.SerializeAsString());
        });
      });
  return absl::OkStatus();
}

// ---- restore ---------------------------------------------------------------------

absl::Status ConnectionTickets::BeginRestore(wire::Frame& frame,
                                             const std::shared_ptr<Responder>& responder) {
  TK_RETURN_IF_ERROR(wire::CheckFields(frame.payload(), wire::kRestoreFields));
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::BeginRestoreRequest>(frame.payload()));
  TK_RETURN_IF_ERROR(CheckNewTicket(message.ticket()));
  struct Job {
    wire::Frame frame;
    wire::ReceivedPrompt prompt;
    std::vector<ChunkId> held;
    RestoreRequest request;
  };
  auto job = std::make_shared<Job>();
  TK_RETURN_IF_ERROR(wire::FromWire(message, frame.raw(), &job->prompt, &job->held, &job->request));
  const uint64_t ticket = message.ticket();
  // It waits for room no longer than the answer may take.
  job->request.deadline =
      std::min(job->request.deadline,
               absl::FromChrono(responder->deadline() - Responder::Clock::now()) * kShareOfWait);
  const Wanted& wanted = restores_[ticket].wanted;
  ServerContext& context = connection_.context();
  ++context.totals().tickets;
  const TenantNumber tenant = connection_.tenant().number;
  auto abandoned = [wanted = std::weak_ptr(wanted)] { return wanted.expired(); };
  auto done = Begun(ticket, wanted, responder, &ConnectionTickets::FinishBeginRestore);
  if (job->request.prompt.token_count() <= kInlineTokens) {
    context.store().BeginRestore(tenant, job->request, std::move(done), std::move(abandoned));
    if (!responder->answered()) responder->ArmDeadline(responder);
    return absl::OkStatus();
  }
  responder->ArmDeadline(responder);
  return RunBegin("begin restore", ticket, KeepFrame(frame, *job),
                  [&store = context.store(), tenant, job, done, abandoned] {
                    store.BeginRestore(tenant, job->request, done, abandoned);
                  });
}

void ConnectionTickets::FinishBeginRestore(uint64_t ticket,
                                           const std::shared_ptr<Responder>& responder,
                                           RestoreResult result) {
  Restore& restore = restores_.at(ticket);
  absl::Status status = result.status();
  if (status.ok() && responder->answered()) status = DeadlineExceeded("begin restore: too late");
  if (status.ok()) {
    restore.operation = *std::move(result);
    status = SendRestorePlan(ticket, restore, *responder);
  }
  if (!status.ok()) {
    Forget(ticket);
    responder->Error(status);
  }
}

absl::Status ConnectionTickets::SendRestorePlan(uint64_t ticket, Restore& restore,
                                                Responder& responder) {
  const RestoreOperation& operation = *restore.operation;
  const auto slots = operation.slots();
  const auto spans = operation.spans();
  TK_CHECK(slots.size() == spans.size());
  if (connection_.shared_memory()) TK_RETURN_IF_ERROR(GrantSlots(slots));
  auto entries = std::make_shared<std::vector<wire::RestoreEntry>>(slots.size());
  uint32_t segment = 0;  // neighbours mostly share one
  uint64_t slot_bytes = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    wire::RestoreEntry& entry = (*entries)[i];
    std::memcpy(entry.chunk, slots[i].id.bytes.data(), sizeof(entry.chunk));
    entry.root_low = slots[i].root.low;
    entry.root_high = slots[i].root.high;
    entry.epoch = slots[i].epoch;
    entry.token_begin = spans[i].token_begin;
    entry.stored_position = spans[i].stored_position;
    entry.token_count = spans[i].token_count;
    entry.first_in_chunk = spans[i].first_in_chunk;
    entry.chunk_token_count = spans[i].chunk_token_count;
    entry.tier = static_cast<uint32_t>(spans[i].tier);
    const SlotRef slot = slots[i].slot;
    if (!connection_.shared_memory() || slot.is_null()) continue;
    if (slot.segment != segment) {
      TK_ASSIGN_OR_RETURN(slot_bytes, connection_.SlotBytes(slot.segment));
      segment = slot.segment;
    }
    entry.segment = segment;
    entry.slot_offset = slot.slot * slot_bytes;
  }
  wire::RestorePlan plan;
  plan.set_generation(operation.generation());
  plan.set_entry_count(static_cast<uint32_t>(entries->size()));
  restore.sent = operation.progress();
  ToWire(ticket, restore.sent, plan.mutable_progress());
  responder.Reply(plan.SerializeAsString(), wire::AsBytes(*entries), entries);
  if (!restore.sent.finished) ObserveRestore(ticket, restore);
  return absl::OkStatus();
}

// The newest progress of one restore on its way to the server's thread: when several
// changes come before it looks, only the last is sent. Shared by the store's observer and
// the posted handler.
struct ConnectionTickets::ProgressBox {
  absl::Mutex mutex;
  RestoreProgress latest ABSL_GUARDED_BY(mutex);
  bool posted ABSL_GUARDED_BY(mutex) = false;
};

void ConnectionTickets::ObserveRestore(uint64_t ticket, Restore& restore) {
  auto box = std::make_shared<ProgressBox>();
  restore.operation->Observe(
      [self = connection_.weak_from_this(), gate = connection_.context().gate(), ticket,
       wanted = std::weak_ptr(restore.wanted), box](const RestoreProgress& progress) {
        {
          absl::MutexLock lock(&box->mutex);
          box->latest = progress;
          if (std::exchange(box->posted, true)) return;
        }
        gate->Post([self, ticket, wanted, box] {
          RestoreProgress latest;
          {
            absl::MutexLock lock(&box->mutex);
            box->posted = false;
            latest = box->latest;
          }
          const auto connection = self.lock();
          if (connection && !wanted.expired()) connection->tickets().SendProgress(ticket, latest);
        });
      });
}

void ConnectionTickets::SendProgress(uint64_t ticket, const RestoreProgress& progress) {
  const auto it = restores_.find(ticket);
  if (it == restores_.end() || Same(it->second.sent, progress)) return;
  it->second.sent = progress;
  wire::Progress message;
  ToWire(ticket, progress, &message);
  connection_.Send({.type = wire::PROGRESS}, message.SerializeAsString());
}

absl::Status ConnectionTickets::Cut(const wire::Frame& frame,
                                    const std::shared_ptr<Responder>& responder) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::CutRequest>(frame.payload()));
  TK_ASSIGN_OR_RETURN(Restore * restore, FindRestore("cut", message.ticket()));
  if (message.layer() >= restore->operation->layout().layers.size()) {
    return InvalidArgument("cut: layer {}, the layout has {}", message.layer(),
                           restore->operation->layout().layers.size());
  }
  restore->operation->CutAtLayer(message.layer());
  wire::Progress reply;
  ToWire(message.ticket(), restore->operation->progress(), &reply);
  responder->Reply(reply.SerializeAsString());
  return absl::OkStatus();
}

absl::Status ConnectionTickets::ReportDamage(const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::DamageReport>(frame.payload()));
  TK_ASSIGN_OR_RETURN(Restore * restore, FindRestore("report damage", message.ticket()));
  if (message.span() >= restore->operation->spans().size() ||
      (message.layer() != kHeaderLayer &&
       message.layer() >= restore->operation->layout().layers.size())) {
    return InvalidArgument("report damage: span {} layer {}", message.span(), message.layer());
  }
  restore->operation->ReportDamage(message.span(), message.layer());
  SendProgress(message.ticket(), restore->operation->progress());
  return absl::OkStatus();
}

// ---- both ------------------------------------------------------------------------

absl::Status ConnectionTickets::Release(const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::TicketRef>(frame.payload()));
  // A client whose begin failed cannot know whether the ticket exists.
  Forget(message.ticket());
  return absl::OkStatus();
}

absl::Status ConnectionTickets::GrantSlots(std::span<const ChunkSlot> slots) {
  std::set<uint32_t> segments;
  uint32_t last = 0;
  for (const ChunkSlot& slot : slots) {
    if (slot.slot.is_null() || slot.slot.segment == last) continue;
    segments.insert(slot.slot.segment);
    last = slot.slot.segment;
  }
  return connection_.GrantSegments(segments);
}

absl::StatusOr<ConnectionTickets::Save*> ConnectionTickets::FindSave(const char* what,
                                                                     uint64_t ticket) {
  const auto it = saves_.find(ticket);
  if (it == saves_.end() || !it->second.operation) {
    return InvalidArgument("{}: no save has ticket {}", what, ticket);
  }
  return &it->second;
}

absl::StatusOr<ConnectionTickets::Restore*> ConnectionTickets::FindRestore(const char* what,
                                                                           uint64_t ticket) {
  const auto it = restores_.find(ticket);
  if (it == restores_.end() || !it->second.operation) {
    return InvalidArgument("{}: no restore has ticket {}", what, ticket);
  }
  return &it->second;
}

void ConnectionTickets::Forget(uint64_t ticket) {
  const size_t gone = saves_.erase(ticket) + restores_.erase(ticket);
  connection_.context().totals().tickets -= gone;
}

void ConnectionTickets::Clear() {
  connection_.context().totals().tickets -= count();
  waiting_pages_.clear();
  // Out of the maps first: an operation's end may call back.
  const auto saves = std::exchange(saves_, {});
  const auto restores = std::exchange(restores_, {});
}

}  // namespace turnkeep
