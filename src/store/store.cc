#include <algorithm>
#include <utility>

#include <absl/synchronization/notification.h>
#include <absl/time/clock.h>
#include <openssl/rand.h>
#include <boost/asio/thread_pool.hpp>

#include "core/check.h"
#include "core/slot_access.h"
#include "core/status.h"
#include "disk_tier/aligned_buffer.h"
#include "store/embedded.h"
#include "store/load.h"
#include "store/save_task.h"
#include "store/store_impl.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

namespace {

// Epochs are numbered from a fresh range at every opening, so that one that was given but
// never reached the index is not given again.
// Of prefetches so many bytes are in flight for each operation that the device may have: as large
// as the reads of a load are.
constexpr uint64_t kPrefetchReadBytes = 512 * kKiB;
constexpr uint64_t kEpochsPerRun = uint64_t{1} << 36;

absl::Status CheckOptions(const StoreOptions& options) {
  if (options.host_bytes < kBlockBytes)
    return InvalidArgument("host_bytes {} is below {}", options.host_bytes, kBlockBytes);
  if (options.host_segment_bytes < kBlockBytes) {
    return InvalidArgument("host_segment_bytes {} is below {}", options.host_segment_bytes,
                           kBlockBytes);
  }
  if (!(options.low_watermark > 0 && options.low_watermark <= options.high_watermark &&
        options.high_watermark <= 1)) {
    return InvalidArgument(
        "low_watermark {} and high_watermark {} must satisfy 0 < low <= high <= 1",
        options.low_watermark, options.high_watermark);
  }
  if (!(options.max_pinned_share >= 0 && options.max_pinned_share <= 1)) {
    return InvalidArgument("max_pinned_share {} is outside 0..1", options.max_pinned_share);
  }
  if (!(options.prefetch_share >= 0 && options.prefetch_share <= 1)) {
    return InvalidArgument("prefetch_share {} is outside 0..1", options.prefetch_share);
  }
  if (options.policy == "belady") {
    return InvalidArgument("policy 'belady' must be told the future: it is for replay only");
  }
  if (options.io_depth == 0 || options.io_depth > kMaxIoQueueDepth) {
    return InvalidArgument("io_depth {} is outside 1..{}", options.io_depth, kMaxIoQueueDepth);
  }
  if (options.max_sessions == 0 || options.max_sessions > kMaxSessions) {
    return InvalidArgument("max_sessions {} is outside 1..{}", options.max_sessions, kMaxSessions);
  }
  if (options.default_ttl <= absl::ZeroDuration())
    return InvalidArgument("default_ttl is not positive");
  return absl::OkStatus();
}

// What a verified copy out of the arena does on this machine, bytes a second.
double MeasureHostBandwidth() {
  std::vector<std::byte> from(4 * kMiB, std::byte{1});
  std::vector<std::byte> to(from.size());
  const int64_t begin = Clock::System()->NowNs();
  CopyWithDigest({}, from, to);
  const int64_t elapsed = std::max<int64_t>(1, Clock::System()->NowNs() - begin);
  return static_cast<double>(from.size()) / (static_cast<double>(elapsed) * 1e-9);
}

}  // namespace

std::string_view NameOf(Durability durability) {
  switch (durability) {
    case Durability::kNone:
      return "none";
    case Durability::kWrite:
      return "write";
    case Durability::kSync:
      return "sync";
  }
  return "unknown";
}

absl::StatusOr<Durability> DurabilityFromName(std::string_view name) {
  for (const Durability durability : {Durability::kNone, Durability::kWrite, Durability::kSync}) {
    if (name == NameOf(durability)) return durability;
  }
  return InvalidArgument("durability '{}' is none of: none, write, sync", name);
}

// ---- opening and closing ---------------------------------------------------------

absl::StatusOr<std::unique_ptr<Store>> Store::Open(StoreOptions options) {
  TK_ASSIGN_OR_RETURN(std::unique_ptr<StoreImpl> store, StoreImpl::Open(std::move(options)));
  return std::unique_ptr<Store>(std::move(store));
}

StoreImpl::StoreImpl(StoreOptions options, Placement placement)
    : state_(std::move(options), nullptr, std::move(placement)) {
  absl::MutexLock lock(&state_.mu);
  // An index goes on meaning the same chunk while a hint speaks of it.
  for (Expectations* hints : {&expectations_, &retained_}) {
    hints->on_first = [this](ChunkIndex chunk) {
      state_.mu.AssertHeld();
      state_.AddOperationRef(chunk);
    };
    hints->on_last = [this](ChunkIndex chunk) {
      state_.mu.AssertHeld();
      state_.DropOperationRef(chunk);
    };
  }
}

absl::StatusOr<std::unique_ptr<StoreImpl>> StoreImpl::Open(StoreOptions options) {
  TK_RETURN_IF_ERROR(CheckOptions(options));
  if (options.data_dir.empty()) options.durability = Durability::kNone;
  TK_ASSIGN_OR_RETURN(auto host_policy, MakePolicy(options.policy));
  TK_ASSIGN_OR_RETURN(auto disk_policy, MakePolicy(options.policy));
  Placement placement({.host_capacity_bytes = options.host_bytes,
                       .disk_capacity_bytes = options.data_dir.empty() ? 0 : options.disk_bytes,
                       .high_watermark = options.high_watermark,
                       .low_watermark = options.low_watermark,
                       .write_through = options.durability != Durability::kNone,
                       .max_pinned_share = options.max_pinned_share,
                       .prefetch_bytes = static_cast<uint64_t>(
                           static_cast<double>(options.host_bytes) * options.prefetch_share),
                       // What a restore that arrives may find ahead of it in the device.
                       .prefetch_in_flight_bytes = options.io_depth * kPrefetchReadBytes,
                       .prefetch_bytes_per_second = options.prefetch_bytes_per_second},
                      std::move(host_policy), std::move(disk_policy));
  auto store = std::unique_ptr<StoreImpl>(new StoreImpl(std::move(options), std::move(placement)));
  TK_ASSIGN_OR_RETURN(auto arena,
                      HostArena::Open({.capacity_bytes = store->state_.options.host_bytes,
                                       .segment_bytes = store->state_.options.host_segment_bytes,
                                       .huge_pages = store->state_.options.huge_pages,
                                       .observer = store.get()}));
  {
    absl::MutexLock lock(&store->state_.mu);
    store->state_.arena = std::move(arena);
    store->admission_.SetCopyRate(MeasureHostBandwidth());
  }
  store->opened_ns_ = store->state_.NowNs();
  if (!store->state_.options.data_dir.empty()) TK_RETURN_IF_ERROR(store->OpenDisk());
  store->verifiers_ = std::make_unique<boost::asio::thread_pool>(
      std::clamp(std::thread::hardware_concurrency() / 4, 1u, 4u));
  store->writer_ = std::make_unique<DiskWriter>(&store->state_);
  TK_RETURN_IF_ERROR(store->StartRun());
  return store;
}

absl::Status StoreImpl::OpenDisk() {
  const StoreOptions& options = state_.options;
  DiskTierOptions disk;
  disk.directory = options.data_dir;
  disk.device = {.engine = options.io_uring ? BlockDeviceOptions::Engine::kAuto
                                            : BlockDeviceOptions::Engine::kThreads,
                 .direct_io = options.direct_io,
                 .queue_depth = options.io_depth};
  disk.extents = {.capacity_bytes = options.disk_bytes,
                  .file_bytes = options.extent_file_bytes,
                  .write_budget_bytes_per_day = options.disk_write_bytes_per_day,
                  .clock = options.clock};
  if (options.wrap_device) disk.wrap_device = options.wrap_device;
  if (options.wrap_index) disk.wrap_index = options.wrap_index;
  absl::MutexLock lock(&state_.mu);
  IndexLoader loader(&state_);
  TK_ASSIGN_OR_RETURN(state_.disk, OpenDiskTier(std::move(disk), loader));
  loader.Finish(state_.disk.meta);
  opening_changes_ = loader.TakeSuperseded();
  for (const std::string& problem : state_.disk.report.problems)
    state_.Warn("recovery: " + problem);
  return absl::OkStatus();
}

absl::Status StoreImpl::StartRun() {
  {
    absl::MutexLock lock(&state_.mu);
    state_.on_room = [this] {
      state_.mu.AssertHeld();
      room_made_ = true;
    };
  }
  if (state_.has_disk()) {
    IndexBatch batch = std::move(opening_changes_);
    {
      absl::MutexLock lock(&state_.mu);
      batch.SetNextEpoch(state_.next_epoch + kEpochsPerRun);
    }
    batch.SetCleanShutdown(false);
    TK_RETURN_IF_ERROR(ApplyBlocking(*state_.disk.index, std::move(batch), SyncMode::kSync));
  }
  housekeeper_ = std::thread([this] { Housekeep(); });
  absl::MutexLock lock(&state_.mu);
  writer_->WakeForWork();
  return absl::OkStatus();
}

absl::Status StoreImpl::Close(absl::Duration deadline) {
  const absl::Time until = absl::Now() + deadline;
  {
    absl::MutexLock lock(&state_.mu);
    if (closed_) return absl::OkStatus();
    state_.closing = true;
    closed_ = true;
    if (state_.has_disk()) {
      for (ChunkIndex i = 0; i < state_.catalog.end(); ++i) {
        const ChunkEntry& entry = state_.catalog[i];
        if (entry.in_use && entry.InHost() && entry.disk.IsNull())
          state_.Notify(Kind::kWriteWanted, i);
      }
      // Last uses since the sessions were written.
      for (const auto& tenant : state_.registry.tenants()) {
        if (!tenant) continue;
        for (const auto& [name, session] : state_.sessions.OfTenant(tenant->number)) {
          writer_->Persist(session->number, ChangeOf(session, session->spans.size()), {},
                           [](const PersistResult&) {});
        }
      }
    }
  }
  if (!state_.has_disk()) return absl::OkStatus();
  if (!writer_->WaitIdle(until)) {
    return DeadlineExceeded("close '{}': chunks were still being written to disk after {}",
                            state_.options.data_dir, absl::FormatDuration(deadline));
  }
  IndexBatch batch;
  batch.SetCleanShutdown(true);
  return ApplyBlocking(*state_.disk.index, std::move(batch), SyncMode::kSync);
}

StoreImpl::~StoreImpl() {
  {
    absl::MutexLock lock(&state_.mu);
    state_.closing = true;
    stop_ = true;
  }
  if (housekeeper_.joinable()) housekeeper_.join();
  {
    // Reads end before the writer, which their callbacks wake.
    absl::MutexLock lock(&state_.mu);
    const auto no_reads = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu) {
      return loads_.empty() && reads_running_ == 0;
    };
    state_.mu.Await(absl::Condition(&no_reads));
  }
  verifiers_.reset();
  writer_.reset();
  {
    absl::MutexLock lock(&state_.mu);
    state_.on_room = nullptr;
    released_segments_ = nullptr;
  }
  // The index's and the device's threads end before what their callbacks refer to; the
  // arena goes first, since it takes its segments back from the device.
  absl::MutexLock lock(&state_.mu);
  state_.arena.reset();
}

// ---- housekeeping ----------------------------------------------------------------

void StoreImpl::OnSegmentCreated(const SegmentInfo& segment) {
  if (state_.disk.device) state_.disk.device->RegisterMemory(segment.memory);
}

void StoreImpl::OnSegmentDestroyed(const SegmentInfo& segment) {
  state_.mu.AssertHeld();
  // No slot of it is held, so no operation uses it and this does not wait.
  if (state_.disk.device) state_.disk.device->UnregisterMemory(segment.memory);
  if (released_segments_) released_segments_(segment.id);
}

absl::StatusOr<SegmentGrant> StoreImpl::Segment(uint32_t segment) {
  absl::MutexLock lock(&state_.mu);
  const auto info = state_.arena->FindSegment(segment);
  if (!info.has_value()) return NotFound("segment {} does not exist", segment);
  return SegmentGrant{.segment = segment,
                      .tenant = info->tenant,
                      .segment_bytes = info->memory.size(),
                      .slot_bytes = info->slot_bytes,
                      .fd = info->fd};
}

void StoreImpl::ObserveReleasedSegments(std::function<void(uint32_t)> observer) {
  absl::MutexLock lock(&state_.mu);
  released_segments_ = std::move(observer);
}

// ---- tenants, layouts, checks ----------------------------------------------------

absl::StatusOr<TenantNumber> StoreImpl::OpenTenant(const std::string& name) {
  TK_RETURN_IF_ERROR(ValidateName("tenant", name));
  const Tenant* tenant = nullptr;
  {
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    tenant = state_.registry.FindTenant(name);
    if (tenant != nullptr && !unwritten_tenants_.contains(tenant->number)) {
      return TenantNumber{tenant->number};
    }
    if (tenant == nullptr) {
      const size_t number = state_.registry.tenants().size();
      if (number >= kMaxTenants) {
        return ResourceExhausted("tenant '{}': {} tenants is the limit", name, kMaxTenants);
      }
      TenantKey key;
      if (RAND_bytes(key.data(), static_cast<int>(key.size())) != 1) {
        return Internal("tenant '{}': no random bytes for its key", name);
      }
      tenant = state_.registry.AddTenant(static_cast<uint16_t>(number), name, key);
      unwritten_tenants_.insert(tenant->number);
    }
  }
  if (state_.has_disk()) {
    IndexBatch batch;
    batch.PutTenant({.number = tenant->number, .name = name, .key = tenant->key});
    TK_RETURN_IF_ERROR(ApplyBlocking(*state_.disk.index, std::move(batch), SyncMode::kSync));
  }
  absl::MutexLock lock(&state_.mu);
  unwritten_tenants_.erase(tenant->number);
  return TenantNumber{tenant->number};
}

absl::StatusOr<std::unique_ptr<KvStore>> StoreImpl::ForTenant(const std::string& name) {
  TK_ASSIGN_OR_RETURN(const TenantNumber tenant, OpenTenant(name));
  return MakeEmbedded(this, tenant);
}

std::vector<std::string> StoreImpl::ListTenants() {
  absl::MutexLock lock(&state_.mu);
  std::vector<std::string> names;
  for (const auto& tenant : state_.registry.tenants()) {
    if (tenant) names.push_back(tenant->name);
  }
  return names;
}

absl::StatusOr<Fingerprint> StoreImpl::RegisterLayout(const KvLayout& layout) {
  TK_RETURN_IF_ERROR(ValidateLayout(layout));
  const Fingerprint fingerprint = FingerprintOf(layout);
  const LayoutInfo* info = nullptr;
  {
    absl::MutexLock lock(&state_.mu);
    TK_RETURN_IF_ERROR(CheckOpen());
    info = state_.registry.FindLayout(fingerprint);
    if (info != nullptr && !unwritten_layouts_.contains(info->number)) return fingerprint;
    if (info == nullptr) {
      const size_t number = state_.registry.layouts().size();
      if (number >= kMaxLayouts) {
        return ResourceExhausted("layout '{}': {} layouts is the limit", layout.model, kMaxLayouts);
      }
      info = state_.registry.AddLayout(static_cast<uint16_t>(number), layout);
      unwritten_layouts_.insert(info->number);
    }
  }
  if (state_.has_disk()) {
    IndexBatch batch;
    batch.PutLayout({.number = info->number, .encoding = EncodeLayout(layout)});
    TK_RETURN_IF_ERROR(ApplyBlocking(*state_.disk.index, std::move(batch), SyncMode::kSync));
  }
  absl::MutexLock lock(&state_.mu);
  unwritten_layouts_.erase(info->number);
  return fingerprint;
}

absl::StatusOr<KvLayout> StoreImpl::GetLayout(const Fingerprint& fingerprint) {
  absl::MutexLock lock(&state_.mu);
  TK_RETURN_IF_ERROR(CheckOpen());
  const LayoutInfo* info = state_.registry.FindLayout(fingerprint);
  if (info == nullptr) return NotFound("layout {} is not registered", fingerprint.ShortHex());
  return info->layout;
}

absl::Status StoreImpl::CheckOpen() {
  return state_.closing ? Unavailable("the store is closing") : absl::OkStatus();
}

absl::StatusOr<const Tenant*> StoreImpl::TenantOf(TenantNumber number) {
  const Tenant* tenant = state_.registry.TenantAt(number);
  if (tenant == nullptr) return PermissionDenied("tenant {} does not exist", number);
  return tenant;
}

absl::StatusOr<const LayoutInfo*> StoreImpl::LayoutOf(const Fingerprint& fingerprint) {
  const LayoutInfo* info = state_.registry.FindLayout(fingerprint);
  if (info == nullptr)
    return InvalidArgument("layout {} is not registered", fingerprint.ShortHex());
  return info;
}

absl::StatusOr<Session*> StoreImpl::SessionOf(TenantNumber tenant, const std::string& name) {
  Session* session = state_.sessions.Find(static_cast<uint16_t>(tenant), name);
  if (session != nullptr) return session;
  const Forgotten* gone = state_.FindForgottenSession(static_cast<uint16_t>(tenant), name);
  if (gone == nullptr) return NotFound("there is no session '{}'", name);
  return NotFound("there is no session '{}': it {} ({})", name, gone->reason,
                  UnixTimeText(gone->unix_s));
}

absl::Status StoreImpl::CheckPrompt(const Prompt& prompt, const KvLayout& layout) const {
  if (prompt.hashed() && !prompt.tokens.empty()) {
    return InvalidArgument("prompt: both tokens ({}) and block_hashes ({}) are given",
                           prompt.tokens.size(), prompt.block_hashes.size());
  }
  const uint64_t tokens = prompt.token_count();
  const char* const field = prompt.hashed() ? "hashed_token_count" : "tokens";
  if (tokens == 0 || tokens > kMaxSessionTokens) {
    return InvalidArgument("prompt: {} is {}, outside 1..{}", field, tokens, kMaxSessionTokens);
  }
  if (!prompt.hashed()) return absl::OkStatus();
  const uint64_t blocks = DivideRoundUp(tokens, layout.chunk_tokens);
  if (prompt.block_hashes.size() != blocks) {
    return InvalidArgument(
        "prompt: hashed_token_count {} in chunks of {} needs {} block_hashes, there are {}", tokens,
        layout.chunk_tokens, blocks, prompt.block_hashes.size());
  }
  for (size_t i = 0; i < prompt.block_hashes.size(); ++i) {
    const size_t bytes = prompt.block_hashes[i].size();
    if (bytes == 0 || bytes > kMaxBlockHashBytes) {
      return InvalidArgument("prompt: block_hashes[{}] has {} bytes, outside 1..{}", i, bytes,
                             kMaxBlockHashBytes);
    }
  }
  return absl::OkStatus();
}

// ---- headers that are only on disk -----------------------------------------------

PromptMatch StoreImpl::MatchWithHeaders(
    const std::function<PromptMatch(const HeaderTokens&)>& match) {
  // Each round reads one header; a prompt departs from few chunks.
  constexpr int kMaxRounds = 16;
  HeaderTokens headers;
  for (int round = 0;; ++round) {
    PromptMatch result = match(headers);
    if (result.needs_header == kNoChunk) return result;
    if (round == kMaxRounds) {
      result.needs_header = kNoChunk;
      result.stop_reason = "the prompt departs from what is stored";
      return result;
    }
    const ChunkIndex chunk = result.needs_header;
    const ChunkEntry entry = state_.catalog[chunk];
    const LayoutInfo* layout = state_.registry.LayoutAt(entry.layout);
    state_.AddOperationRef(chunk);
    state_.Notify(Kind::kDiskPinned, chunk);
    state_.mu.Unlock();
    absl::StatusOr<std::vector<uint32_t>> tokens = ReadHeaderTokens(entry, *layout);
    state_.mu.Lock();
    state_.Notify(Kind::kDiskUnpinned, chunk);
    if (!tokens.ok()) {
      state_.DropDamagedDisk(chunk, absl::IsDataLoss(tokens.status()) ? MissingReason::kDigestFailed
                                                                      : MissingReason::kReadFailed);
    }
    headers[{chunk, entry.epoch}] = tokens.ok() ? *std::move(tokens) : std::vector<uint32_t>{};
    state_.DropOperationRef(chunk);
  }
}

absl::StatusOr<std::vector<uint32_t>> StoreImpl::ReadHeaderTokens(const ChunkEntry& entry,
                                                                  const LayoutInfo& layout) {
  const ChunkGeometry& geometry = layout.Geometry(entry.token_count);
  AlignedBuffer buffer(std::min(RoundUp(geometry.header_bytes, kBlockBytes), geometry.image_bytes));
  TK_RETURN_IF_ERROR(ReadExtentBlocking(entry.disk, 0, buffer.span()));
  TK_ASSIGN_OR_RETURN(ChunkHeader header,
                      DecodeChunkHeader(buffer.span(), entry.id, entry.epoch, entry.root));
  return std::move(header.tokens);
}

absl::Status StoreImpl::ReadExtentBlocking(ExtentRef extent, uint64_t offset,
                                           std::span<std::byte> buffer) {
  absl::Notification done;
  absl::Status result;
  TK_RETURN_IF_ERROR(
      state_.disk.extents->Read(extent, offset, buffer, [&](const absl::Status& status, uint64_t) {
        result = status;
        done.Notify();
      }));
  done.WaitForNotification();
  return result;
}

}  // namespace turnkeep
