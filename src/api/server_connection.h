// One client's connection: receives frames, hands them on, sends answers, and ends it all
// when the client hangs up, dies or misbehaves. Internal to src/api; server's thread only,
// except for Responder's constants.
//
// Life: hello -> open -> (kicked ->) closed. A connection that the server ends with tickets
// still open is kicked: it hears no more and is told so by end of file, but its tickets are
// kept until the client hangs up or its process ends. Until then the client may still write into
// the slots of its saves, so they must not be given to anybody else.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include "api/frame.h"
#include "api/server_context.h"
#include "api/turnkeep.pb.h"
#include "api/unique_fd.h"

namespace turnkeep {

class ConnectionTickets;
class ServerConnection;

// The way back of one request: one answer, or none when the connection ends first. Shared by
// the operation that will answer and the connection's list of deadlines.
class Responder {
 public:
  using Clock = std::chrono::steady_clock;
  Responder(std::weak_ptr<ServerConnection> connection, const wire::FrameHeader& header);

  // Constant: any thread.
  const wire::FrameHeader& header() const { return header_; }
  bool expired() const { return Clock::now() >= deadline_; }
  absl::Status Late() const;  // what is answered then
  Clock::time_point deadline() const { return deadline_; }

  // Server's thread. Only the first answer goes out.
  void Reply(std::string_view payload, std::span<const std::byte> raw = {},
             std::shared_ptr<const void> raw_owner = nullptr);
  void Error(const absl::Status& status);
  // A frame before the answer.
  void Push(wire::MessageType type, std::string_view payload);
  bool answered() const { return answered_; }
  // Answers DeadlineExceeded by itself when the request's time is over.
  void ArmDeadline(std::shared_ptr<Responder> self);

 private:
  std::shared_ptr<ServerConnection> Finish(absl::StatusCode code);

  const std::weak_ptr<ServerConnection> connection_;
  const wire::FrameHeader header_;
  const Clock::time_point start_ = Clock::now();
  const Clock::time_point deadline_;
  bool answered_ = false;
};

// Lives as long as somebody wants an answer: who works at one holds a weak_ptr of it. Its only
// sharer is whoever wants it.
using Wanted = std::shared_ptr<const int>;

struct OutboundFrame {
  std::string head;                       // header, payload and padding
  std::span<const std::byte> raw;         // after it
  std::shared_ptr<const void> raw_owner;  // keeps raw alive; the queue is its only other sharer
  std::vector<UniqueFd> fds;
};

class ServerConnection : public std::enable_shared_from_this<ServerConnection> {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;

  ServerConnection(ServerContext& context, Socket socket, bool unix_socket);
  ~ServerConnection();
  void Start();

  ServerContext& context() { return context_; }
  const TenantHandle& tenant() const { return tenant_; }
  ConnectionTickets& tickets() { return *tickets_; }
  bool shared_memory() const { return unix_socket_; }

  void Send(wire::FrameHeader header, std::string_view payload, std::span<const std::byte> raw = {},
            std::shared_ptr<const void> raw_owner = nullptr, std::vector<UniqueFd> fds = {});
  // Whether an answer with a page goes out soon: not much that was sent before it is unread.
  bool HasRoomForPages() const;
  // Sends the descriptors of those segments that the client does not have yet.
  absl::Status GrantSegments(const std::set<uint32_t>& segments);
  void RevokeSegments(const std::vector<uint32_t>& segments);
  // Bytes of a slot of a segment, which must have been granted.
  absl::StatusOr<uint64_t> SlotBytes(uint32_t segment) const;

  // Ends a connection that did what it must not. `reason` is a metric's label, one word.
  void Kick(const std::string& reason, const absl::Status& why);
  // Ends it now: tickets are destroyed.
  void Close(const std::string& why);

  // ServerContext's, for a call of this connection that holds `bytes` while it waits.
  absl::Status RunOnWorker(std::string what, uint64_t bytes, std::function<void()> work);
  void CallStarted();
  void CallFinished(const wire::FrameHeader& header, absl::Duration latency, absl::StatusCode code);
  void AddDeadline(std::shared_ptr<Responder> responder);

 private:
  enum class State { kHello, kGreeting, kOpen, kKicked, kClosed };

  void IdentifyPeer();
  void WatchProcess(int pid);
  void WaitReadable();
  void OnReadable();
  // Receives once; false when there is nothing (more) for now or the connection is over.
  bool ReceiveOnce();
  bool HandleFrames();
  void HandleFrame(wire::Frame& frame);
  void HandleHello(const wire::Frame& frame);
  absl::StatusOr<std::string> TenantOf(const wire::Hello& hello) const;
  void FinishHello(absl::StatusOr<TenantHandle> tenant);
  void RunCall(wire::Frame& frame);
  absl::Status TakeResidency(const wire::Frame& frame);
  void Flush();
  // True when the frame is wholly sent.
  bool SendSome(OutboundFrame& frame, size_t* sent);
  void StopSending();
  // A descriptor of the segment to be sent with `message`, which it is added to.
  absl::StatusOr<UniqueFd> DuplicateSegment(uint32_t segment, wire::SegmentGrants& message);
  void ArmDeadlineTimer();
  std::string Name() const;

  ServerContext& context_;
  Socket socket_;
  const bool unix_socket_;
  const uint64_t number_;
  State state_ = State::kHello;
  bool kicked_ = false;
  uint32_t peer_uid_ = 0;
  int peer_pid_ = 0;
  std::string client_name_;
  TenantHandle tenant_;
  wire::FrameReader reader_;
  std::unique_ptr<ConnectionTickets> tickets_;
  std::unique_ptr<GpuEngine> gpu_;  // from the first report on, until it closes

  // Ends with the connection: calls that run on workers see by it whether anybody waits for them.
  Wanted wanted_ = std::make_shared<const int>();

  std::deque<OutboundFrame> outbound_;
  uint64_t outbound_bytes_ = 0;
  size_t sent_of_first_ = 0;  // bytes of outbound_.front()
  bool waiting_writable_ = false;
  bool sending_stopped_ = false;

  std::map<uint32_t, uint64_t> granted_;  // segment -> bytes of its slots
  uint64_t running_calls_ = 0;
  const std::shared_ptr<std::atomic<uint64_t>> queued_bytes_ =
      std::make_shared<std::atomic<uint64_t>>(0);  // QueuedCall::connection_bytes
  std::multimap<Responder::Clock::time_point, std::shared_ptr<Responder>> deadlines_;
  boost::asio::steady_timer deadline_timer_;
  boost::asio::steady_timer life_timer_;  // hello, and the farewell of a kicked one
  std::optional<boost::asio::posix::stream_descriptor> process_;
};

}  // namespace turnkeep
