// The saves and restores of one connection. Internal to src/api; server's thread only.
//
// Destroying a ticket, or all of them, destroys the store's operation, which gives back its
// pins and slots. Callbacks of the store carry ticket numbers, not pointers: what comes after a
// ticket's end finds nothing.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "api/server_connection.h"
#include "core/layout.h"
#include "store/operations.h"

namespace turnkeep {

class ConnectionTickets {
 public:
  explicit ConnectionTickets(ServerConnection& connection) : connection_(connection) {}
  ~ConnectionTickets();

  // Whether messages of this type are for us.
  static bool Handles(uint16_t type);
  void Handle(wire::Frame& frame);

  size_t count() const { return saves_.size() + restores_.size(); }
  // Answers page requests that waited, as far as there is room for them in the outbound queue.
  void AnswerWaitingPages();
  void Clear();

 private:
  // Geometries of the chunks of one ticket, by token count.
  using Geometries = std::map<uint32_t, ChunkGeometry>;
  struct Save {
    std::unique_ptr<SaveOperation> operation;       // null while it is beginning
    Wanted wanted = std::make_shared<const int>();  // ends with the ticket
    bool committing = false;
    absl::Status failed;  // a page write that was refused
    Geometries geometries;
  };
  struct ProgressBox;
  struct Restore {
    std::unique_ptr<RestoreOperation> operation;    // null while it is beginning
    Wanted wanted = std::make_shared<const int>();  // ends with the ticket
    RestoreProgress sent;
    Geometries geometries;
  };
  using SaveResult = absl::StatusOr<std::unique_ptr<SaveOperation>>;
  using RestoreResult = absl::StatusOr<std::unique_ptr<RestoreOperation>>;

  template <typename Result>
  using Finish = void (ConnectionTickets::*)(uint64_t ticket, const std::shared_ptr<Responder>&,
                                             Result);

  std::shared_ptr<Responder> NewResponder(const wire::Frame& frame);
  // What the store calls when a save or restore has begun, from any thread; `finish` runs on the
  // server's, unless the ticket has ended: another one may have its number by then.
  template <typename Result>
  std::function<void(Result)> Begun(uint64_t ticket, const Wanted& wanted,
                                    std::shared_ptr<Responder> responder, Finish<Result> finish);
  // OK when a ticket of this number may begin.
  absl::Status CheckNewTicket(uint64_t ticket) const;

  // Begins it on a worker. Where it cannot wait for one there is no ticket any more.
  absl::Status RunBegin(const char* what, uint64_t ticket, uint64_t bytes,
                        std::function<void()> work);

  absl::Status BeginSave(wire::Frame& frame, const std::shared_ptr<Responder>& responder);
  absl::Status BeginImport(wire::Frame& frame, const std::shared_ptr<Responder>& responder);
  void FinishBeginSave(uint64_t ticket, const std::shared_ptr<Responder>& responder,
                       SaveResult result);
  absl::Status SendSavePlan(uint64_t ticket, const SaveOperation& operation, Responder& responder);
  absl::Status Commit(const wire::Frame& frame, const std::shared_ptr<Responder>& responder);

  absl::Status BeginRestore(wire::Frame& frame, const std::shared_ptr<Responder>& responder);
  void FinishBeginRestore(uint64_t ticket, const std::shared_ptr<Responder>& responder,
                          RestoreResult result);
  absl::Status SendRestorePlan(uint64_t ticket, Restore& restore, Responder& responder);
  void ObserveRestore(uint64_t ticket, Restore& restore);
  void SendProgress(uint64_t ticket, const RestoreProgress& progress);
  absl::Status Cut(const wire::Frame& frame, const std::shared_ptr<Responder>& responder);
  absl::Status ReportDamage(const wire::Frame& frame);
  absl::Status Release(const wire::Frame& frame);

  // A page request of which the answer waits until the client has taken others.
  struct WaitingPage {
    wire::PageRead message;
    std::shared_ptr<Responder> responder;
  };
  absl::Status PageRead(const wire::Frame& frame, const std::shared_ptr<Responder>& responder);
  absl::Status SendPage(const wire::PageRead& message, Responder& responder);
  absl::Status PageWrite(const wire::Frame& frame);
  absl::Status WritePiece(Save& save, const wire::Frame& frame);

  absl::Status GrantSlots(std::span<const ChunkSlot> slots);
  absl::StatusOr<Save*> FindSave(const char* what, uint64_t ticket);
  absl::StatusOr<Restore*> FindRestore(const char* what, uint64_t ticket);
  void Forget(uint64_t ticket);

  ServerConnection& connection_;
  std::map<uint64_t, Save> saves_;
  std::map<uint64_t, Restore> restores_;
  std::deque<WaitingPage> waiting_pages_;
};

}  // namespace turnkeep
