// RestoreTicket of the client; see client_tickets.h.
#include <algorithm>
#include <compare>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>

#include "api/client_tickets.h"
#include "core/check.h"
#include "core/slot_access.h"
#include "core/status.h"

namespace turnkeep {

namespace {

struct SpanSource {
  ChunkId id;
  uint64_t epoch = 0;
  Digest root;
  const ChunkGeometry* geometry = nullptr;
  std::span<const std::byte> image;  // shared memory only
};

// What one PAGE_READ asks for.
struct Piece {
  uint32_t layer = 0;
  uint64_t span = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  auto operator<=>(const Piece&) const = default;
};

// Asked for and not taken yet, at most; of kPagePieceBytes or less each.
constexpr size_t kPiecesAhead = 8;
// Nothing is asked for ahead while the connection has so many requests without an answer. The
// daemon refuses the 257th page: half of that is left to what is wanted now.
constexpr size_t kUnansweredAhead = 128;

class ClientRestoreTicket : public RestoreTicket {
 public:
  explicit ClientRestoreTicket(RestoreTicketParts parts) : parts_(std::move(parts)) {}
  ~ClientRestoreTicket() override {
    parts_.connection->RemoveRestore(parts_.ticket);
    parts_.connection->Release(parts_.ticket);
  }

  absl::Status Init(const wire::Frame& plan);

  uint64_t token_count() const override { return parts_.state->valid_tokens(); }
  uint64_t generation() const override { return generation_; }
  std::span<const RestoredSpan> spans() const override { return spans_; }
  const ChunkId& chunk(size_t span) const override { return sources_[span].id; }
  std::string miss_reason() const override { return parts_.state->miss_reason(); }
  absl::StatusOr<uint64_t> WaitLayer(uint32_t layer, absl::Duration deadline) override;
  absl::Status ReadPage(size_t span, uint32_t layer, std::span<std::byte> destination) override;
  std::span<const std::byte> Page(size_t span, uint32_t layer) override;
  absl::Status VerifyPage(size_t span, uint32_t layer) override;
  absl::StatusOr<ChunkHeader> Header(size_t span) override;

 private:
  absl::Status AddSpan(const wire::RestoreEntry& entry);
  // Nearly all chunks are full, so the last answer mostly fits.
  const ChunkGeometry* GeometryFor(uint32_t token_count) {
    if (!sources_.empty() && sources_.back().geometry->token_count == token_count) {
      return sources_.back().geometry;
    }
    return &parts_.layout->Geometry(token_count);
  }
  absl::Status MapSpan(const wire::RestoreEntry& entry, SpanSource& source);
  absl::Status CheckAccess(size_t span, uint32_t layer) const;
  absl::StatusOr<const ChunkHeader*> HeaderOf(size_t span);
  absl::StatusOr<ChunkHeader> LoadHeader(size_t span);
  // Over TCP: copies a page (kHeaderLayer: the header) from the daemon. Who reads page after page
  // has the next ones asked for meanwhile.
  absl::Status Fetch(size_t span, uint32_t layer, std::span<std::byte> destination);
  absl::StatusOr<std::unique_ptr<ClientConnection::Request>> AskFor(const Piece& piece,
                                                                    absl::Time deadline);
  absl::StatusOr<wire::Frame> FetchPiece(const Piece& piece);
  std::optional<Piece> PieceAfter(Piece piece) const;
  void AskAhead(const Piece& piece);
  absl::StatusOr<std::span<const std::byte>> FetchedPage(size_t span, uint32_t layer);
  absl::Status Damaged(size_t span, uint32_t layer, absl::Status why);
  void GiveUp(const std::string& reason) { parts_.state->Shrink(0, reason); }

  const RestoreTicketParts parts_;
  uint64_t generation_ = 0;
  std::vector<RestoredSpan> spans_;
  std::vector<SpanSource> sources_;
  std::vector<std::shared_ptr<const SharedMemory>> segments_;  // keep the images alive
  uint32_t segment_of_last_ = 0;

  absl::Mutex mutex_;
  // Verified headers, by span; the pointers are constant once set.
  std::vector<std::unique_ptr<const ChunkHeader>> headers_ ABSL_GUARDED_BY(mutex_);
  // TCP: pages handed out by Page(), by span × layers + layer.
  absl::flat_hash_map<uint64_t, std::vector<std::byte>> pages_ ABSL_GUARDED_BY(mutex_);
  // TCP: what has been asked for before it was wanted.
  struct Ahead {
    std::map<Piece, std::unique_ptr<ClientConnection::Request>> asked;
    std::optional<Piece> expected;  // follows the last one fetched
    bool asking = false;            // a thread is
    bool off = false;
  };
  Ahead pages_ahead_ ABSL_GUARDED_BY(mutex_);
  Ahead headers_ahead_ ABSL_GUARDED_BY(mutex_);
};

absl::Status ClientRestoreTicket::Init(const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto plan, wire::Parse<wire::RestorePlan>(frame.payload()));
  const uint32_t count = plan.entry_count();
  TK_RETURN_IF_ERROR(wire::CheckEntries<wire::RestoreEntry>(frame.raw(), count));
  generation_ = plan.generation();
  spans_.reserve(count);
  sources_.reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    TK_RETURN_IF_ERROR(AddSpan(wire::EntryAt<wire::RestoreEntry>(frame.raw(), i)));
  }
  parts_.state->Update(plan.progress());
  absl::MutexLock lock(&mutex_);
  headers_.resize(spans_.size());
  return absl::OkStatus();
}

absl::Status ClientRestoreTicket::AddSpan(const wire::RestoreEntry& entry) {
  const uint64_t end = uint64_t{entry.first_in_chunk} + entry.token_count;
  if (entry.token_count == 0 || end > entry.chunk_token_count ||
      entry.chunk_token_count > parts_.layout->layout().chunk_tokens ||
      entry.tier > static_cast<uint32_t>(Tier::kGpu)) {
    return Internal("restore plan: tokens [{}, {}) of a chunk of {} in tier {}",
                    entry.first_in_chunk, end, entry.chunk_token_count, entry.tier);
  }
  SpanSource source{.epoch = entry.epoch,
                    .root = {.low = entry.root_low, .high = entry.root_high},
                    .geometry = GeometryFor(entry.chunk_token_count)};
  std::memcpy(source.id.bytes.data(), entry.chunk, sizeof(entry.chunk));
  const Tier tier = static_cast<Tier>(entry.tier);
  if (parts_.connection->shared_memory() && tier != Tier::kGpu)
    TK_RETURN_IF_ERROR(MapSpan(entry, source));
  spans_.push_back({.token_begin = entry.token_begin,
                    .token_count = entry.token_count,
                    .first_in_chunk = entry.first_in_chunk,
                    .chunk_token_count = entry.chunk_token_count,
                    .stored_position = entry.stored_position,
                    .tier = tier});
  sources_.push_back(source);
  return absl::OkStatus();
}

absl::Status ClientRestoreTicket::MapSpan(const wire::RestoreEntry& entry, SpanSource& source) {
  if (segments_.empty() || segment_of_last_ != entry.segment) {
    TK_ASSIGN_OR_RETURN(auto segment, parts_.connection->Segment(entry.segment));
    segments_.push_back(std::move(segment));
    segment_of_last_ = entry.segment;
  }
  const std::span<const std::byte> memory = segments_.back()->memory();
  const uint64_t bytes = source.geometry->image_bytes;
  if (entry.slot_offset > memory.size() || memory.size() - entry.slot_offset < bytes) {
    return Internal("restore plan: slot at {} of a segment of {} bytes", entry.slot_offset,
                    memory.size());
  }
  source.image = memory.subspan(entry.slot_offset, bytes);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ClientRestoreTicket::WaitLayer(uint32_t layer, absl::Duration deadline) {
  if (layer >= parts_.layout->layer_count()) {
    return InvalidArgument("wait for layer {}: the layout has {}", layer,
                           parts_.layout->layer_count());
  }
  RestoreState& state = *parts_.state;
  if (spans_.empty()) return 0;
  if (!parts_.connection->WaitForLayer(state, layer,
                                       std::min(absl::Now() + deadline, parts_.deadline))) {
    wire::CutRequest cut;
    cut.set_ticket(parts_.ticket);
    cut.set_layer(layer);
    const auto progress = parts_.connection->Call<wire::Progress>(
        wire::CUT, cut, absl::Now() + parts_.connection->request_timeout());
    if (progress.ok()) {
      state.Update(*progress);
    } else {
      GiveUp(MessageOf(progress.status()));
    }
  }
  const uint64_t tokens = state.TokensOf(layer);
  if (tokens == 0) GiveUp(state.miss_reason());
  return tokens;
}

absl::Status ClientRestoreTicket::CheckAccess(size_t span, uint32_t layer) const {
  if (span >= spans_.size() || layer >= parts_.layout->layer_count()) {
    return InvalidArgument("restore: span {} layer {}, there are {} and {}", span, layer,
                           spans_.size(), parts_.layout->layer_count());
  }
  if (spans_[span].token_begin >= parts_.state->valid_tokens()) {
    return NotFound("restore: tokens from {} on are a miss: {}", parts_.state->valid_tokens(),
                    parts_.state->miss_reason());
  }
  if (!parts_.state->layer_ready(layer)) {
    return FailedPrecondition("restore: layer {} was not waited for", layer);
  }
  if (spans_[span].tier == Tier::kGpu) {
    return FailedPrecondition("restore: chunk {} is one that the engine has",
                              sources_[span].id.ShortHex());
  }
  return absl::OkStatus();
}

absl::StatusOr<ChunkHeader> ClientRestoreTicket::LoadHeader(size_t span) {
  const SpanSource& source = sources_[span];
  if (parts_.connection->shared_memory()) {
    return DecodeChunkHeader(source.image, source.id, source.epoch, source.root);
  }
  std::vector<std::byte> bytes(source.geometry->header_bytes);
  TK_RETURN_IF_ERROR(Fetch(span, kHeaderLayer, bytes));
  return DecodeChunkHeader(bytes, source.id, source.epoch, source.root);
}

absl::StatusOr<const ChunkHeader*> ClientRestoreTicket::HeaderOf(size_t span) {
  {
    absl::MutexLock lock(&mutex_);
    if (headers_[span]) return headers_[span].get();
  }
  auto header = LoadHeader(span);
  if (header.ok() && header->layer_digests.size() != parts_.layout->layer_count()) {
    header = DataLoss("read chunk {}: header of {} layers, the layout has {}",
                      sources_[span].id.ShortHex(), header->layer_digests.size(),
                      parts_.layout->layer_count());
  }
  if (!header.ok()) {
    return absl::IsDataLoss(header.status()) ? Damaged(span, kHeaderLayer, header.status())
                                             : header.status();
  }
  absl::MutexLock lock(&mutex_);
  if (!headers_[span]) {
    headers_[span] = std::make_unique<const ChunkHeader>(std::move(*header));
  }
  return headers_[span].get();
}

absl::StatusOr<ChunkHeader> ClientRestoreTicket::Header(size_t span) {
  TK_RETURN_IF_ERROR(CheckAccess(span, 0));
  TK_ASSIGN_OR_RETURN(const ChunkHeader* header, HeaderOf(span));
  return *header;
}

absl::Status ClientRestoreTicket::ReadPage(size_t span, uint32_t layer,
                                           std::span<std::byte> destination) {
  TK_RETURN_IF_ERROR(CheckAccess(span, layer));
  TK_ASSIGN_OR_RETURN(const ChunkHeader* header, HeaderOf(span));
  const SpanSource& source = sources_[span];
  absl::Status status;
  if (parts_.connection->shared_memory()) {
    status = turnkeep::ReadPage(source.image, *source.geometry, *header, layer, destination);
  } else {
    if (destination.size() != source.geometry->page_bytes[layer]) {
      return InvalidArgument("read chunk {}: destination of layer {} has {} bytes, the page has {}",
                             source.id.ShortHex(), layer, destination.size(),
                             source.geometry->page_bytes[layer]);
    }
    TK_RETURN_IF_ERROR(Fetch(span, layer, destination));
    const Digest digest =
        ComputeDigest({.chunk = source.id, .layer = layer, .epoch = source.epoch}, destination);
    if (digest != header->layer_digests[layer]) {
      status =
          DataLoss("read chunk {}: digest of layer {} does not match", source.id.ShortHex(), layer);
    }
  }
  return absl::IsDataLoss(status) ? Damaged(span, layer, status) : status;
}

std::span<const std::byte> ClientRestoreTicket::Page(size_t span, uint32_t layer) {
  if (!CheckAccess(span, layer).ok()) return {};
  const SpanSource& source = sources_[span];
  if (parts_.connection->shared_memory()) {
    return source.image.subspan(source.geometry->page_offset[layer],
                                source.geometry->page_bytes[layer]);
  }
  const auto page = FetchedPage(span, layer);
  return page.ok() ? *page : std::span<const std::byte>();
}

absl::Status ClientRestoreTicket::VerifyPage(size_t span, uint32_t layer) {
  TK_RETURN_IF_ERROR(CheckAccess(span, layer));
  TK_ASSIGN_OR_RETURN(const ChunkHeader* header, HeaderOf(span));
  const SpanSource& source = sources_[span];
  absl::Status status;
  if (parts_.connection->shared_memory()) {
    status = turnkeep::VerifyPage(source.image, *source.geometry, *header, layer);
  } else {
    TK_ASSIGN_OR_RETURN(const auto page, FetchedPage(span, layer));
    const Digest digest =
        ComputeDigest({.chunk = source.id, .layer = layer, .epoch = source.epoch}, page);
    if (digest != header->layer_digests[layer]) {
      status =
          DataLoss("read chunk {}: digest of layer {} does not match", source.id.ShortHex(), layer);
    }
  }
  return absl::IsDataLoss(status) ? Damaged(span, layer, status) : status;
}

absl::StatusOr<std::span<const std::byte>> ClientRestoreTicket::FetchedPage(size_t span,
                                                                            uint32_t layer) {
  const uint64_t key = span * parts_.layout->layer_count() + layer;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = pages_.find(key);
    if (it != pages_.end()) return std::span<const std::byte>(it->second);
  }
  std::vector<std::byte> page(sources_[span].geometry->page_bytes[layer]);
  TK_RETURN_IF_ERROR(Fetch(span, layer, page));
  absl::MutexLock lock(&mutex_);
  // The map may move the vectors, not what they hold.
  return std::span<const std::byte>(pages_.try_emplace(key, std::move(page)).first->second);
}

absl::StatusOr<std::unique_ptr<ClientConnection::Request>> ClientRestoreTicket::AskFor(
    const Piece& piece, absl::Time deadline) {
  wire::PageRead request;
  request.set_ticket(parts_.ticket);
  request.set_span(static_cast<uint32_t>(piece.span));
  request.set_layer(piece.layer);
  request.set_offset(piece.offset);
  request.set_length(static_cast<uint32_t>(piece.bytes));
  return parts_.connection->Begin(wire::PAGE_READ, request.SerializeAsString(), {}, deadline);
}

// Layer by layer over all spans, as far as layers have arrived; headers by themselves.
std::optional<Piece> ClientRestoreTicket::PieceAfter(Piece piece) const {
  const bool header = piece.layer == kHeaderLayer;
  const auto whole = [&] {
    const ChunkGeometry& geometry = *sources_[piece.span].geometry;
    return header ? geometry.header_bytes : geometry.page_bytes[piece.layer];
  };
  piece.offset += piece.bytes;
  if (piece.offset >= whole()) {
    piece.offset = 0;
    do {
      ++piece.span;
      const bool last = piece.span == spans_.size() ||
                        spans_[piece.span].token_begin >= parts_.state->valid_tokens();
      if (!last) continue;
      if (header) return std::nullopt;
      piece.span = 0;
      ++piece.layer;
      if (piece.layer >= parts_.layout->layer_count() || !parts_.state->layer_ready(piece.layer))
        return std::nullopt;
    } while (spans_[piece.span].tier == Tier::kGpu);
  }
  piece.bytes = std::min(kPagePieceBytes, whole() - piece.offset);
  return piece;
}

void ClientRestoreTicket::AskAhead(const Piece& piece) {
  std::vector<Piece> wanted;
  const bool header = piece.layer == kHeaderLayer;
  {
    absl::MutexLock lock(&mutex_);
    Ahead& ahead = header ? headers_ahead_ : pages_ahead_;
    if (ahead.off || ahead.asking) return;
    const bool in_order = !ahead.expected.has_value() || *ahead.expected == piece;
    ahead.expected = PieceAfter(piece);
    if (!in_order) {
      // Read in another order, or by several threads: what was asked for was asked in vain.
      ahead.off = !ahead.asked.empty();
      return ahead.asked.clear();
    }
    for (auto next = ahead.expected;
         next.has_value() && ahead.asked.size() + wanted.size() < kPiecesAhead;
         next = PieceAfter(*next)) {
      if (!ahead.asked.contains(*next)) wanted.push_back(*next);
    }
    ahead.asking = true;
  }
  std::vector<std::pair<Piece, std::unique_ptr<ClientConnection::Request>>> asked;
  for (const Piece& next : wanted) {
    if (parts_.connection->unanswered() >= kUnansweredAhead) break;
    auto request = AskFor(next, absl::Now() + parts_.connection->request_timeout());
    if (!request.ok()) break;  // whoever wants it will see why
    asked.emplace_back(next, *std::move(request));
  }
  absl::MutexLock lock(&mutex_);
  Ahead& ahead = header ? headers_ahead_ : pages_ahead_;
  ahead.asking = false;
  for (auto& [next, request] : asked) ahead.asked.emplace(next, std::move(request));
}

absl::StatusOr<wire::Frame> ClientRestoreTicket::FetchPiece(const Piece& piece) {
  const absl::Time deadline = absl::Now() + parts_.connection->request_timeout();
  std::unique_ptr<ClientConnection::Request> request;
  {
    absl::MutexLock lock(&mutex_);
    Ahead& ahead = piece.layer == kHeaderLayer ? headers_ahead_ : pages_ahead_;
    const auto it = ahead.asked.find(piece);
    if (it != ahead.asked.end()) {
      request = std::move(it->second);
      ahead.asked.erase(it);
    }
  }
  const bool asked_ahead = request != nullptr;
  if (!asked_ahead) {
    TK_ASSIGN_OR_RETURN(request, AskFor(piece, deadline));
  }
  AskAhead(piece);
  auto frame = parts_.connection->Await(*request, deadline);
  if (frame.ok() || !asked_ahead || parts_.connection->lost() || absl::Now() >= deadline) {
    return frame;
  }
  // Its time began when it was asked for, which may be long before anybody wanted it; or there was
  // no room for what is not wanted yet.
  TK_ASSIGN_OR_RETURN(request, AskFor(piece, deadline));
  return parts_.connection->Await(*request, deadline);
}

absl::Status ClientRestoreTicket::Fetch(size_t span, uint32_t layer,
                                        std::span<std::byte> destination) {
  for (uint64_t offset = 0; offset < destination.size();) {
    const Piece piece{.layer = layer,
                      .span = span,
                      .offset = offset,
                      .bytes = std::min<uint64_t>(kPagePieceBytes, destination.size() - offset)};
    TK_ASSIGN_OR_RETURN(const wire::Frame frame, FetchPiece(piece));
    if (frame.raw().size() != piece.bytes) {
      return Internal("page read: {} bytes came, {} were asked for", frame.raw().size(),
                      piece.bytes);
    }
    std::memcpy(destination.data() + offset, frame.raw().data(), piece.bytes);
    offset += piece.bytes;
  }
  return absl::OkStatus();
}

absl::Status ClientRestoreTicket::Damaged(size_t span, uint32_t layer, absl::Status why) {
  parts_.state->Shrink(spans_[span].token_begin, MessageOf(why));
  wire::DamageReport report;
  report.set_ticket(parts_.ticket);
  report.set_span(static_cast<uint32_t>(span));
  report.set_layer(layer);
  // A report that is lost costs nothing but another such finding.
  (void)parts_.connection->Send(wire::REPORT_DAMAGE, report.SerializeAsString(), {},
                                absl::Now() + parts_.connection->request_timeout());
  return why;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RestoreTicket>> MakeRestoreTicket(RestoreTicketParts parts,
                                                                 const wire::Frame& plan) {
  auto restore = std::make_unique<ClientRestoreTicket>(std::move(parts));
  TK_RETURN_IF_ERROR(restore->Init(plan));
  return restore;
}

}  // namespace turnkeep
