// One connection of a client to the daemon: from connect to loss, never reused. Internal to
// src/api; users see client.h.
//
// Shared by the Client (while it is the current one) and by every ticket begun on it: the
// socket is closed when the last of them lets go, because the daemon may give a ticket's slots
// to others as soon as the socket is closed.
//
// Thread-safe. Any number of threads call Roundtrip and WaitForLayer; who waits receives, one at a
// time and for all, so that an answer reaches its caller without a change of thread. One thread
// runs ReadLoop, which receives what comes while nobody waits.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include "api/client.h"
#include "api/frame.h"
#include "api/restore_state.h"
#include "api/unique_fd.h"
#include "api/wire_messages.h"
#include "host_tier/shared_memory.h"

namespace turnkeep {

class ClientConnection {
 public:
  // Connects and says hello; at most options.connect_timeout. Errors as Client::Connect.
  static absl::StatusOr<std::shared_ptr<ClientConnection>> Open(const ClientOptions& options);
  ~ClientConnection();
  ClientConnection(const ClientConnection&) = delete;
  ClientConnection& operator=(const ClientConnection&) = delete;

  // One request and its reply before ReadLoop runs; used while the connection is set up.
  absl::StatusOr<wire::Frame> Exchange(wire::MessageType type, std::string_view payload,
                                       absl::Time deadline);
  // Receives until the connection is lost or Shut, leaving it to those who wait.
  void ReadLoop();
  // Ends ReadLoop and all calls with Unavailable. The socket stays open.
  void Shut(const std::string& reason);
  bool lost() const { return lost_.load(std::memory_order_acquire); }
  absl::Status LostStatus() const;

  using VerifyProgress = std::function<void(uint64_t, uint64_t)>;
  // Sends a request and waits for its reply: that or the daemon's error, Unavailable when
  // the connection is or gets lost, DeadlineExceeded. `raw` is borrowed for the call.
  absl::StatusOr<wire::Frame> Roundtrip(wire::MessageType type, std::string_view payload,
                                        std::span<const std::byte> raw, absl::Time deadline,
                                        const VerifyProgress& progress = nullptr);
  // The same in two steps, so that several requests are on their way at once: replies come in any
  // order. Destroying the request forgets its reply. Must not outlive the connection.
  class Request;
  absl::StatusOr<std::unique_ptr<Request>> Begin(wire::MessageType type, std::string_view payload,
                                                 std::span<const std::byte> raw,
                                                 absl::Time deadline);
  absl::StatusOr<wire::Frame> Await(Request& request, absl::Time deadline,
                                    const VerifyProgress& progress = nullptr);
  // Requests on their way, of all threads and tickets.
  size_t unanswered() const;
  // Sends what has no reply.
  absl::Status Send(wire::MessageType type, std::string_view payload,
                    std::span<const std::byte> raw, absl::Time deadline);

  template <typename Reply, typename Request>
  absl::StatusOr<Reply> Call(wire::MessageType type, const Request& request, absl::Time deadline,
                             std::span<const std::byte> raw = {},
                             const VerifyProgress& progress = nullptr) {
    TK_ASSIGN_OR_RETURN(const wire::Frame frame,
                        Roundtrip(type, request.SerializeAsString(), raw, deadline, progress));
    return wire::Parse<Reply>(frame.payload());
  }

  const ServerInfo& info() const { return info_; }
  bool shared_memory() const { return info_.shared_memory; }
  absl::Duration request_timeout() const { return request_timeout_; }

  uint64_t NewTicket() { return next_ticket_.fetch_add(1, std::memory_order_relaxed); }
  void AddRestore(uint64_t ticket, std::shared_ptr<RestoreState> state);
  void RemoveRestore(uint64_t ticket);
  // Waits until `layer` of the restore is ready, or never will be; false if `deadline` came first.
  bool WaitForLayer(const RestoreState& state, uint32_t layer, absl::Time deadline);
  // Tells the daemon that a ticket is over; does not wait for an answer.
  void Release(uint64_t ticket);

  // The mapping of a segment that the daemon has granted. Internal: it has not.
  absl::StatusOr<std::shared_ptr<const SharedMemory>> Segment(uint32_t segment);

 private:
  struct PendingCall {
    bool done = false;
    absl::StatusOr<wire::Frame> result{absl::UnknownError("")};
    std::optional<wire::VerifyProgress> progress;
  };

  void Forget(uint64_t request_id);
  ClientConnection(UniqueFd fd, const ClientOptions& options);
  absl::Status SayHello(const ClientOptions& options);
  absl::Status SendFrame(const std::string& head, std::span<const std::byte> raw,
                         absl::Time deadline);
  absl::Status WriteAll(const std::string& head, std::span<const std::byte> raw,
                        absl::Time deadline);
  // Receives once into the reader, waiting at most until `deadline`: awake for the first
  // ClientOptions::busy_poll, then asleep.
  absl::Status Receive(absl::Time deadline);
  // Handles what has been received; receives once more if that was nothing.
  absl::Status ReceiveSome(absl::Time deadline);
  // Waits for `done` (which takes no lock), receiving where nobody else does; false if `deadline`
  // came first.
  template <typename Done>
  bool WaitUntil(const Done& done, absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Handle(wire::Frame& frame);
  absl::Status HandleGrants(const wire::Frame& frame);
  absl::Status HandleRevoke(const wire::Frame& frame);
  absl::Status HandlePush(const wire::Frame& frame);
  void Lose(const absl::Status& why);

  const UniqueFd fd_;
  const absl::Duration request_timeout_;
  const absl::Duration busy_poll_;
  ServerInfo info_;  // constant after Open
  std::atomic<uint64_t> next_ticket_{1};
  // Set once, after lost_status_; readers that see it see that.
  std::atomic<bool> lost_{false};

  // Of whoever has the right to receive.
  wire::FrameReader reader_;
  std::vector<UniqueFd> received_fds_;

  mutable absl::Mutex mutex_;
  bool sending_ ABSL_GUARDED_BY(mutex_) = false;    // the right to write to the socket
  bool receiving_ ABSL_GUARDED_BY(mutex_) = false;  // the right to read from it
  int waiting_ ABSL_GUARDED_BY(mutex_) = 0;         // callers that will receive for themselves
  absl::Status lost_status_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_request_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::flat_hash_map<uint64_t, PendingCall*> pending_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::shared_ptr<RestoreState>> restores_ ABSL_GUARDED_BY(mutex_);
  // Sharers: this table until the daemon revokes the segment, and tickets that use it.
  absl::flat_hash_map<uint32_t, std::shared_ptr<const SharedMemory>> segments_
      ABSL_GUARDED_BY(mutex_);
};

class ClientConnection::Request {
 public:
  Request(ClientConnection& connection, wire::MessageType type)
      : connection_(connection), type_(type) {}
  ~Request() { connection_.Forget(id_); }
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

 private:
  friend class ClientConnection;
  ClientConnection& connection_;
  const wire::MessageType type_;
  uint64_t id_ = 0;   // 0: never sent
  PendingCall call_;  // guarded by the connection's lock
};

}  // namespace turnkeep
