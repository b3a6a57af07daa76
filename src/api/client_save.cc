// SaveTicket of the client; see client_tickets.h.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "api/client_tickets.h"
#include "core/check.h"
#include "core/slot_access.h"
#include "core/status.h"

namespace turnkeep {

const ChunkGeometry& ClientLayout::Geometry(uint32_t token_count) const {
  absl::MutexLock lock(&mutex_);
  std::unique_ptr<const ChunkGeometry>& geometry = geometries_[token_count];
  if (!geometry) {
    geometry = std::make_unique<const ChunkGeometry>(GeometryOf(layout_, token_count));
  }
  return *geometry;
}

namespace {

struct FreeMemory {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using OwnedMemory = std::unique_ptr<std::byte, FreeMemory>;

struct ChunkImage {
  ChunkId id;
  uint64_t epoch = 0;
  const ChunkGeometry* geometry = nullptr;
  std::span<std::byte> memory;
};

class ClientSaveTicket : public SaveTicket {
 public:
  ClientSaveTicket(std::shared_ptr<ClientConnection> connection,
                   std::shared_ptr<const ClientLayout> layout, uint64_t ticket)
      : connection_(std::move(connection)), layout_(std::move(layout)), ticket_(ticket) {}
  ~ClientSaveTicket() override { connection_->Release(ticket_); }

  absl::Status Init(const wire::Frame& plan);

  uint64_t known_tokens() const override { return known_tokens_; }
  uint64_t accepted_tokens() const override { return accepted_tokens_; }
  std::span<const ChunkToSave> chunks() const override { return chunks_; }
  std::span<std::byte> Page(size_t chunk, uint32_t layer) override;
  absl::Status FinishLayer(uint32_t layer) override;
  absl::StatusOr<CommitResult> Commit(absl::Duration deadline) override;

 private:
  absl::Status AddChunk(const wire::SaveEntry& entry);
  absl::Status SendPage(size_t chunk, uint32_t layer);
  // Over TCP: a page changed after it was sent would be stored as it was before.
  absl::Status CheckUnchanged() const;

  const std::shared_ptr<ClientConnection> connection_;
  const std::shared_ptr<const ClientLayout> layout_;
  const uint64_t ticket_;
  uint64_t known_tokens_ = 0;
  uint64_t accepted_tokens_ = 0;
  std::vector<ChunkToSave> chunks_;
  std::vector<ChunkImage> images_;
  // Keeps the memory of images_ alive: mapped segments, or our own copies.
  std::vector<std::shared_ptr<const SharedMemory>> segments_;
  uint32_t segment_of_last_ = 0;  // number of segments_.back()
  std::vector<OwnedMemory> copies_;
  // One flag a layer; set with release after the layer's digests are written.
  std::unique_ptr<std::atomic<bool>[]> finished_;
  std::atomic<bool> committed_{false};
};

absl::Status ClientSaveTicket::Init(const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto plan, wire::Parse<wire::SavePlan>(frame.payload()));
  TK_ASSIGN_OR_RETURN(const auto entries,
                      wire::ParseEntries<wire::SaveEntry>(frame.raw(), plan.entry_count()));
  known_tokens_ = plan.known_tokens();
  accepted_tokens_ = plan.accepted_tokens();
  finished_ = std::make_unique<std::atomic<bool>[]>(layout_->layer_count());
  chunks_.reserve(entries.size());
  images_.reserve(entries.size());
  for (const wire::SaveEntry& entry : entries) TK_RETURN_IF_ERROR(AddChunk(entry));
  return absl::OkStatus();
}

absl::Status ClientSaveTicket::AddChunk(const wire::SaveEntry& entry) {
  if (entry.token_count == 0 || entry.token_count > layout_->layout().chunk_tokens) {
    return Internal("save plan: a chunk of {} tokens", entry.token_count);
  }
  ChunkImage image{.epoch = entry.epoch, .geometry = &layout_->Geometry(entry.token_count)};
  std::memcpy(image.id.bytes.data(), entry.chunk, sizeof(entry.chunk));
  const uint64_t bytes = image.geometry->image_bytes;
  if (connection_->shared_memory()) {
    if (segments_.empty() || segment_of_last_ != entry.segment) {
      TK_ASSIGN_OR_RETURN(auto segment, connection_->Segment(entry.segment));
      segments_.push_back(std::move(segment));
      segment_of_last_ = entry.segment;
    }
    const std::span<std::byte> memory = segments_.back()->memory();
    if (entry.slot_offset > memory.size() || memory.size() - entry.slot_offset < bytes) {
      return Internal("save plan: slot at {} of a segment of {} bytes", entry.slot_offset,
                      memory.size());
    }
    image.memory = memory.subspan(entry.slot_offset, bytes);
  } else {
    copies_.emplace_back(static_cast<std::byte*>(std::aligned_alloc(kBlockBytes, bytes)));
    if (!copies_.back()) return ResourceExhausted("save: no memory for {} bytes", bytes);
    image.memory = {copies_.back().get(), bytes};
  }
  chunks_.push_back(
      {.token_begin = entry.token_begin, .token_count = entry.token_count, .chunk = image.id});
  images_.push_back(image);
  return absl::OkStatus();
}

std::span<std::byte> ClientSaveTicket::Page(size_t chunk, uint32_t layer) {
  TK_CHECK(chunk < images_.size());
  return PageIn(images_[chunk].memory, *images_[chunk].geometry, layer);
}

absl::Status ClientSaveTicket::FinishLayer(uint32_t layer) {
  if (layer >= layout_->layer_count()) {
    return InvalidArgument("finish layer: {}, the layout has {}", layer, layout_->layer_count());
  }
  if (committed_.load(std::memory_order_acquire)) {
    return FailedPrecondition("finish layer {}: the save is committed already", layer);
  }
  if (connection_->lost()) return connection_->LostStatus();
  for (size_t i = 0; i < images_.size(); ++i) {
    const ChunkImage& image = images_[i];
    SealPage(image.memory, *image.geometry, image.id, image.epoch, layer);
    if (!connection_->shared_memory()) TK_RETURN_IF_ERROR(SendPage(i, layer));
  }
  finished_[layer].store(true, std::memory_order_release);
  return absl::OkStatus();
}

absl::Status ClientSaveTicket::SendPage(size_t chunk, uint32_t layer) {
  const ChunkImage& image = images_[chunk];
  const std::span<const std::byte> page = Page(chunk, layer);
  const absl::Time deadline = absl::Now() + connection_->request_timeout();
  wire::PageWrite message;
  message.set_ticket(ticket_);
  message.set_chunk(static_cast<uint32_t>(chunk));
  message.set_layer(layer);
  uint64_t offset = 0;
  do {
    const uint64_t bytes = std::min<uint64_t>(kPagePieceBytes, page.size() - offset);
    message.set_offset(offset);
    if (offset + bytes == page.size()) {
      message.set_digest(image.memory.data() + kLayerDigestOffset + sizeof(Digest) * layer,
                         sizeof(Digest));
    }
    TK_RETURN_IF_ERROR(connection_->Send(wire::PAGE_WRITE, message.SerializeAsString(),
                                         page.subspan(offset, bytes), deadline));
    offset += bytes;
  } while (offset < page.size());
  return absl::OkStatus();
}

absl::Status ClientSaveTicket::CheckUnchanged() const {
  for (const ChunkImage& image : images_) {
    for (uint32_t layer = 0; layer < layout_->layer_count(); ++layer) {
      const Digest digest = ComputeDigest({.chunk = image.id, .layer = layer, .epoch = image.epoch},
                                          PageIn(image.memory, *image.geometry, layer));
      if (std::memcmp(&digest, image.memory.data() + kLayerDigestOffset + sizeof(Digest) * layer,
                      sizeof(digest)) != 0) {
        return DataLoss("commit: chunk {}: layer {} was changed after it was finished",
                        image.id.ShortHex(), layer);
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<CommitResult> ClientSaveTicket::Commit(absl::Duration deadline) {
  if (committed_.exchange(true, std::memory_order_acq_rel)) {
    return FailedPrecondition("commit: the save is committed already");
  }
  for (uint32_t layer = 0; !images_.empty() && layer < layout_->layer_count(); ++layer) {
    if (!finished_[layer].load(std::memory_order_acquire)) {
      committed_.store(false, std::memory_order_release);
      return FailedPrecondition("commit: layer {} is not finished", layer);
    }
  }
  if (!connection_->shared_memory()) TK_RETURN_IF_ERROR(CheckUnchanged());
  wire::TicketRef ref;
  ref.set_ticket(ticket_);
  TK_ASSIGN_OR_RETURN(const auto reply, connection_->Call<wire::CommitReply>(
                                            wire::COMMIT, ref, absl::Now() + deadline));
  return wire::FromWire(reply);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SaveTicket>> MakeSaveTicket(
    std::shared_ptr<ClientConnection> connection, std::shared_ptr<const ClientLayout> layout,
    uint64_t ticket, const wire::Frame& plan) {
  auto save = std::make_unique<ClientSaveTicket>(std::move(connection), std::move(layout), ticket);
  TK_RETURN_IF_ERROR(save->Init(plan));
  return save;
}

}  // namespace turnkeep
