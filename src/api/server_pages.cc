// Pages in frames, for connections without shared memory: the part of ConnectionTickets
// that copies between slots and the socket.
#include <cstring>

#include "api/server_tickets.h"
#include "api/wire_messages.h"
#include "core/status.h"

namespace turnkeep {

namespace {

// One answer; larger pages are read in pieces.
constexpr uint32_t kMaxPieceBytes = 4 * kMiB;
constexpr size_t kMaxWaitingPages = 256;

const ChunkGeometry& GeometryFor(std::map<uint32_t, ChunkGeometry>& cache, const KvLayout& layout,
                                 uint32_t token_count) {
  const auto it = cache.find(token_count);
  if (it != cache.end()) return it->second;
  return cache.emplace(token_count, GeometryOf(layout, token_count)).first->second;
}

}  // namespace

// A client may ask for many pages at once. They are copied for it in the order in which they were
// asked for, and only so far ahead of what it takes: its requests cost little memory here, and
// never make it a slow reader.
absl::Status ConnectionTickets::PageRead(const wire::Frame& frame,
                                         const std::shared_ptr<Responder>& responder) {
  TK_ASSIGN_OR_RETURN(auto message, wire::Parse<wire::PageRead>(frame.payload()));
  if (waiting_pages_.empty() && connection_.HasRoomForPages()) return SendPage(message, *responder);
  if (waiting_pages_.size() >= kMaxWaitingPages) {
    return ResourceExhausted("page read: {} page requests of this connection wait, the limit is {}",
                             waiting_pages_.size(), kMaxWaitingPages);
  }
  waiting_pages_.push_back({std::move(message), responder});
  responder->ArmDeadline(responder);
  return absl::OkStatus();
}

void ConnectionTickets::AnswerWaitingPages() {
  while (!waiting_pages_.empty() && connection_.HasRoomForPages()) {
    const WaitingPage page = std::move(waiting_pages_.front());
    waiting_pages_.pop_front();
    if (page.responder->answered()) continue;  // too late
    const absl::Status status = SendPage(page.message, *page.responder);
    if (!status.ok()) page.responder->Error(status);
  }
}

absl::Status ConnectionTickets::SendPage(const wire::PageRead& message, Responder& responder) {
  TK_ASSIGN_OR_RETURN(Restore * restore, FindRestore("page read", message.ticket()));
  const RestoreOperation& operation = *restore->operation;
  const uint32_t layer = message.layer();
  if (message.span() >= operation.spans().size() ||
      (layer != kHeaderLayer && layer >= operation.layout().layers.size())) {
    return InvalidArgument("page read: span {} layer {}", message.span(), layer);
  }
  const RestoreProgress progress = operation.progress();
  const uint32_t needed_layers = layer == kHeaderLayer ? 1 : layer + 1;
  if (progress.layers_ready < needed_layers ||
      operation.spans()[message.span()].token_begin >= progress.valid_tokens) {
    return FailedPrecondition("page read: span {} layer {} has not been restored", message.span(),
                              layer);
  }
  const ChunkSlot& slot = operation.slots()[message.span()];
  if (slot.memory.empty()) {
    return FailedPrecondition("page read: the engine said that it has chunk {}",
                              slot.id.ShortHex());
  }
  const ChunkGeometry& geometry =
      GeometryFor(restore->geometries, operation.layout(), slot.token_count);
  const uint64_t page_offset = layer == kHeaderLayer ? 0 : geometry.page_offset[layer];
  const uint64_t page_bytes =
      layer == kHeaderLayer ? geometry.header_bytes : geometry.page_bytes[layer];
  if (message.length() > kMaxPieceBytes || message.offset() > page_bytes ||
      page_bytes - message.offset() < message.length()) {
    return InvalidArgument("page read: {} bytes at {} of a page of {}, at most {} at once",
                           message.length(), message.offset(), page_bytes, kMaxPieceBytes);
  }
  // A copy, because the ticket may end before the bytes are out.
  const std::byte* from = slot.memory.data() + page_offset + message.offset();
  auto bytes = std::make_shared<std::vector<std::byte>>(from, from + message.length());
  wire::PageData reply;
  reply.set_ticket(message.ticket());
  responder.Reply(reply.SerializeAsString(), *bytes, bytes);
  return absl::OkStatus();
}

absl::Status ConnectionTickets::PageWrite(const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::PageWrite>(frame.payload()));
  TK_ASSIGN_OR_RETURN(Save * save, FindSave("page write", message.ticket()));
  if (!save->failed.ok()) return absl::OkStatus();  // the commit says so
  save->failed = WritePiece(*save, frame);
  return absl::OkStatus();
}

absl::Status ConnectionTickets::WritePiece(Save& save, const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::PageWrite>(frame.payload()));
  if (save.committing) return FailedPrecondition("page write: the save is committed already");
  const SaveOperation& operation = *save.operation;
  if (message.chunk() >= operation.slots().size() ||
      message.layer() >= operation.layout().layers.size()) {
    return InvalidArgument("page write: chunk {} layer {}", message.chunk(), message.layer());
  }
  const ChunkSlot& slot = operation.slots()[message.chunk()];
  const ChunkGeometry& geometry =
      GeometryFor(save.geometries, operation.layout(), slot.token_count);
  const uint64_t page_bytes = geometry.page_bytes[message.layer()];
  const std::span<const std::byte> bytes = frame.raw();
  if (message.offset() > page_bytes || page_bytes - message.offset() < bytes.size()) {
    return InvalidArgument("page write: {} bytes at {} of a page of {}", bytes.size(),
                           message.offset(), page_bytes);
  }
  std::memcpy(slot.memory.data() + geometry.page_offset[message.layer()] + message.offset(),
              bytes.data(), bytes.size());
  if (message.digest().empty()) return absl::OkStatus();
  if (message.digest().size() != sizeof(Digest)) {
    return InvalidArgument("page write: a digest of {} bytes", message.digest().size());
  }
  std::memcpy(slot.memory.data() + kLayerDigestOffset + sizeof(Digest) * message.layer(),
              message.digest().data(), sizeof(Digest));
  return absl::OkStatus();
}

}  // namespace turnkeep
