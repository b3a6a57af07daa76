#include "overlap_bench.h"

#include <algorithm>
#include <map>
#include <memory>
#include <span>
#include <utility>

#include <absl/time/clock.h>

#include "bench_support.h"
#include "core/status.h"
#include "core/units.h"
#include "gpu_tier/cpu_page_mover.h"
#include "gpu_tier/host_device.h"
#include "gpu_tier/layer_restore.h"
#include "gpu_tier/layer_save.h"
#include "gpu_tier/pipeline_lanes.h"
#include "gpu_tier/read_buffer.h"
#include "store/store.h"

namespace turnkeep::bench {
namespace {

constexpr uint32_t kKvHeads = 8;
constexpr uint32_t kHeadDim = 128;
constexpr uint32_t kPageTokens = 16;
constexpr uint64_t kPieceBytes = kMiB;

// Store, device and engine of one context.
class Rig {
 public:
  static absl::StatusOr<std::unique_ptr<Rig>> Make(const OverlapOptions& options,
                                                   OverlapDevice device) {
    auto rig = std::unique_ptr<Rig>(new Rig(options, std::move(device)));
    TK_RETURN_IF_ERROR(rig->Prepare());
    return rig;
  }

  uint64_t layer_bytes() const { return LayerPageBytes(layout_.layers[0], 1) * options_.tokens; }
  uint64_t bytes() const { return layer_bytes() * options_.layers; }
  Device& device() { return device_; }
  ~Rig() {
    for (const auto& [begin, memory] : registered_) device_.UnregisterHost(memory).IgnoreError();
  }

  // The loop without any KV moved.
  absl::StatusOr<double> Compute(double layer_s) {
    const Stopwatch watch;
    for (uint32_t layer = 0; layer < options_.layers; ++layer) TK_RETURN_IF_ERROR(Launch(layer_s));
    TK_RETURN_IF_ERROR(compute_->Synchronize());
    return watch.Seconds();
  }

  struct Restored {
    double total_s = 0;
    double stall_s = 0;
  };
  // The loop with its restore, which has loaded `head_start` bytes when the job starts. `buffer`:
  // of device memory. Without `overlap` the loop starts when all is loaded.
  struct How {
    double layer_s = 0;
    uint64_t head_start = 0;
    uint64_t buffer = kMinStagingSlots * kPieceBytes;
    bool overlap = true;
  };
  absl::StatusOr<Restored> Restore(const How& how) {
    TK_ASSIGN_OR_RETURN(auto ticket,
                        kv_->BeginRestore({.prompt = {.tokens = tokens_}, .layout = fingerprint_}));
    // Loading takes bytes / link; the head start ends with the buffer full.
    const uint64_t buffer = std::max(how.buffer, how.head_start);
    PipelineLanes& lanes = LanesFor(buffer);
    const Stopwatch before;
    Stopwatch job;
    TK_ASSIGN_OR_RETURN(
        auto restore,
        LayerRestore::Start(device_, layout_, std::move(ticket),
                            {.buffer_bytes = buffer, .piece_bytes = kPieceBytes, .lanes = &lanes}));
    if (how.head_start > 0) {
      const double lead_s = static_cast<double>(how.head_start) / where_.link_bytes_per_s;
      absl::SleepFor(absl::Seconds(lead_s * 1.2 + 0.005 - before.Seconds()));
      job = Stopwatch();
    }
    TK_RETURN_IF_ERROR(restore->Bind(*mover_));
    if (!how.overlap) {
      for (uint32_t layer = 0; layer < options_.layers; ++layer)
        TK_RETURN_IF_ERROR(WaitFor(*restore, layer));
      TK_RETURN_IF_ERROR(compute_->Synchronize());
    }
    for (uint32_t layer = 0; layer < options_.layers; ++layer) {
      if (how.overlap) TK_RETURN_IF_ERROR(WaitFor(*restore, layer));
      if (how.layer_s > 0) TK_RETURN_IF_ERROR(Launch(how.layer_s));
    }
    TK_RETURN_IF_ERROR(compute_->Synchronize());
    Restored out{.total_s = job.Seconds()};
    TK_ASSIGN_OR_RETURN(const LayerRestoreReport report, restore->Report());
    out.stall_s = report.stall_s;
    return out;
  }

  enum class SaveMode { kNone, kWait, kOverlap };
  // Two jobs one after another; the first one's KV is saved. Returns until the second has ended.
  absl::StatusOr<double> SaveBetweenJobs(SaveMode mode, double layer_s, uint64_t buffer) {
    std::unique_ptr<LayerSave> save;
    if (mode != SaveMode::kNone) {
      // New tokens each time, so that all of them are written.
      const std::string session = fmt::format("saved-{}", ++saves_);
      // A dropped session's memory may be unmapped, which registered memory must not be.
      if (saves_ > 1 && !where_.registers_memory)
        TK_RETURN_IF_ERROR(kv_->DropSession(fmt::format("saved-{}", saves_ - 1)));
      const auto tokens = TokensOf(100 + saves_, options_.tokens);
      TK_ASSIGN_OR_RETURN(auto ticket, kv_->BeginSave({.session = session,
                                                       .layout = fingerprint_,
                                                       .prompt = {.tokens = tokens}}));
      TK_RETURN_IF_ERROR(RegisterPages(*ticket, ticket->chunks().size()));
      TK_ASSIGN_OR_RETURN(save, LayerSave::Start(device_, layout_, std::move(ticket), *mover_,
                                                 {.buffer_bytes = buffer,
                                                  .piece_bytes = kPieceBytes,
                                                  .lanes = &LanesFor(buffer)}));
    }
    const Stopwatch watch;
    for (uint32_t layer = 0; layer < options_.layers; ++layer) {
      TK_RETURN_IF_ERROR(Launch(layer_s));
      if (mode == SaveMode::kOverlap) TK_RETURN_IF_ERROR(save->LayerComputed(layer, *compute_));
    }
    if (mode == SaveMode::kWait) {
      for (uint32_t layer = 0; layer < options_.layers; ++layer)
        TK_RETURN_IF_ERROR(save->LayerComputed(layer, *compute_));
      TK_RETURN_IF_ERROR(save->WaitUntilArrived());
    }
    if (mode == SaveMode::kOverlap) TK_RETURN_IF_ERROR(save->LetReuse(*compute_));
    for (uint32_t layer = 0; layer < options_.layers; ++layer) TK_RETURN_IF_ERROR(Launch(layer_s));
    TK_RETURN_IF_ERROR(compute_->Synchronize());
    const double seconds = watch.Seconds();
    if (save != nullptr) TK_RETURN_IF_ERROR(save->Commit(absl::Seconds(60)).status());
    return seconds;
  }

 private:
  Rig(const OverlapOptions& options, OverlapDevice where)
      : options_(options),
        layout_(LayoutOf("bench-overlap", options.layers, kKvHeads, kHeadDim, DType::kFloat16)),
        where_(std::move(where)),
        device_(*where_.device),
        tokens_(TokensOf(7, options.tokens)) {}

  // Kept from round to round, as an engine's are from turn to turn. A kept lane serves whoever asks
  // for less, so that each size of buffer has its own.
  PipelineLanes& LanesFor(uint64_t buffer) {
    if (lanes_ == nullptr || lanes_buffer_ != buffer) {
      lanes_.reset();
      lanes_ = std::make_unique<PipelineLanes>(
          device_, PipelineLanes::Options{.budget_bytes = 2 * buffer + kMiB});
      lanes_buffer_ = buffer;
    }
    return *lanes_;
  }
  // Of each chunk the memory of all its layer pages, once.
  template <typename Ticket>
  absl::Status RegisterPages(Ticket& ticket, size_t chunk_count) {
    constexpr uintptr_t kPage = 4096;
    for (size_t chunk = 0; chunk < chunk_count && where_.registers_memory; ++chunk) {
      uintptr_t begin = UINTPTR_MAX;
      uintptr_t end = 0;
      for (uint32_t layer = 0; layer < options_.layers; ++layer) {
        const auto page = ticket.Page(chunk, layer);
        const auto at = reinterpret_cast<uintptr_t>(page.data());
        begin = std::min(begin, at / kPage * kPage);
        end = std::max(end, RoundUp(at + page.size(), kPage));
      }
      const std::span<std::byte> memory(reinterpret_cast<std::byte*>(begin), end - begin);
      if (!registered_.emplace(begin, memory).second) continue;
      if (const absl::Status status = device_.RegisterHost(memory); !status.ok()) {
        registered_.erase(begin);
        return status;
      }
    }
    return absl::OkStatus();
  }
  // The context's chunks, whose memory restores read.
  absl::Status RegisterContext() {
    TK_ASSIGN_OR_RETURN(auto ticket,
                        kv_->BeginRestore({.prompt = {.tokens = tokens_}, .layout = fingerprint_}));
    for (uint32_t layer = 0; layer < options_.layers; ++layer)
      TK_RETURN_IF_ERROR(ticket->WaitLayer(layer).status());
    return RegisterPages(*ticket, ticket->spans().size());
  }

  absl::Status Prepare() {
    const uint32_t pages = static_cast<uint32_t>(DivideRoundUp(options_.tokens, kPageTokens));
    const PagedSpec spec{.kind = PagedKind::kKvPageTokenHead,
                         .element_bytes = 2,
                         .page_tokens = kPageTokens,
                         .page_count = pages,
                         .kv_heads = kKvHeads,
                         .key_dim = kHeadDim,
                         .value_dim = kHeadDim,
                         .layers = options_.layers};
    TK_ASSIGN_OR_RETURN(const uint64_t engine_bytes, PagedBytes(spec));
    TK_ASSIGN_OR_RETURN(engine_, device_.Allocate(engine_bytes));
    TK_ASSIGN_OR_RETURN(compute_, device_.NewStream());
    const std::vector<std::byte> ones(engine_bytes, std::byte{0x3C});
    TK_RETURN_IF_ERROR(
        compute_->Copy(CopyKind::kToDevice, engine_.data(), ones.data(), engine_bytes));
    TK_RETURN_IF_ERROR(compute_->Synchronize());
    PageMoverOptions mover{.layout = layout_};
    for (uint32_t page = 0; page < pages; ++page) mover.pages.push_back(pages - 1 - page);
    for (uint32_t layer = 0; layer < options_.layers; ++layer) {
      TK_ASSIGN_OR_RETURN(const PagedLayer planes, PlanesOf(spec, engine_.data(), layer));
      mover.layers.push_back({.planes = planes});
    }
    TK_ASSIGN_OR_RETURN(mover_, where_.make_mover(std::move(mover)));
    const uint64_t contexts = where_.registers_memory ? 4 + 2 * (options_.rounds + 1) : 4;
    TK_ASSIGN_OR_RETURN(store_, Store::Open({.host_bytes = contexts * bytes() + kGiB}));
    TK_ASSIGN_OR_RETURN(kv_, store_->ForTenant("bench"));
    TK_ASSIGN_OR_RETURN(fingerprint_, kv_->RegisterLayout(layout_));
    const std::vector<std::byte> page(LayerPageBytes(layout_.layers[0], layout_.chunk_tokens),
                                      std::byte{0x3C});
    TK_RETURN_IF_ERROR(
        SaveContext(*kv_, {"context", 0, fingerprint_, options_.layers, tokens_}, page).status());
    return RegisterContext();
  }
  absl::Status Launch(double layer_s) { return where_.compute(*compute_, layer_s); }
  absl::Status WaitFor(LayerRestore& restore, uint32_t layer) {
    TK_ASSIGN_OR_RETURN(const uint64_t tokens, restore.WaitLayer(layer, *compute_));
    if (tokens != options_.tokens)
      return Internal("layer {}: {} of {} tokens came back", layer, tokens, options_.tokens);
    return absl::OkStatus();
  }

  const OverlapOptions options_;
  const KvLayout layout_;
  const OverlapDevice where_;
  Device& device_;
  const std::vector<uint32_t> tokens_;
  DeviceMemory engine_;
  std::unique_ptr<LayerMover> mover_;
  std::unique_ptr<DeviceStream> compute_;
  std::unique_ptr<PipelineLanes> lanes_;
  uint64_t lanes_buffer_ = 0;
  std::unique_ptr<Store> store_;
  std::unique_ptr<KvStore> kv_;
  Fingerprint fingerprint_;
  uint64_t saves_ = 0;
  std::map<uintptr_t, std::span<std::byte>> registered_;
};

class Measurement {
 public:
  Measurement(const OverlapOptions& options, Rig& rig) : options_(options), rig_(rig) {}

  absl::StatusOr<OverlapResult> Run() {
    result_.device = rig_.device().Description();
    result_.cuda = rig_.device().is_cuda();
    result_.bytes = rig_.bytes();
    result_.layer_bytes = rig_.layer_bytes();
    Tick("load alone");
    // The restore with nothing to compute, pipelined within itself.
    TK_ASSIGN_OR_RETURN(const OverlapRow load, Measure({.layer_s = 0}));
    load_s_ = load.total_s;
    TK_RETURN_IF_ERROR(Balanced());
    TK_RETURN_IF_ERROR(Slow());
    TK_RETURN_IF_ERROR(Saves());
    return result_;
  }

 private:
  void Tick(const char* what) { options_.progress(what, step_++, 6); }
  double LayerSeconds(double load_share) const { return load_s_ / load_share / options_.layers; }

  // Medians over the rounds.
  absl::StatusOr<OverlapRow> Measure(const Rig::How& how) {
    std::vector<double> totals, stalls, computes;
    for (uint32_t round = 0; round < options_.rounds + 1; ++round) {
      double compute_s = 0;
      if (how.layer_s > 0) {
        TK_ASSIGN_OR_RETURN(compute_s, rig_.Compute(how.layer_s));
      }
      TK_ASSIGN_OR_RETURN(const Rig::Restored restored, rig_.Restore(how));
      if (round == 0) continue;  // warm-up
      computes.push_back(compute_s);
      totals.push_back(restored.total_s);
      stalls.push_back(restored.stall_s);
    }
    OverlapRow row{.mode = !how.overlap         ? "none"
                           : how.head_start > 0 ? "buffer"
                                                : "overlap",
                   .load_s = load_s_,
                   .compute_s = Median(computes),
                   .total_s = Median(totals),
                   .stall_s = how.overlap ? Median(stalls) : 0,
                   .buffer_bytes = std::max(how.buffer, how.head_start)};
    const std::vector<uint64_t> layer_bytes(options_.layers, rig_.layer_bytes());
    const std::vector<double> layer_compute_s(options_.layers, how.layer_s);
    row.predicted_stall_s = PredictStallSeconds(
        {.layer_bytes = layer_bytes,
         .layer_compute_s = layer_compute_s,
         .link_bytes_per_s = static_cast<double>(rig_.bytes()) / std::max(load_s_, 1e-9),
         .preloaded_bytes = how.head_start});
    return row;
  }
  absl::StatusOr<OverlapRow> Add(const char* name, const Rig::How& how) {
    TK_ASSIGN_OR_RETURN(OverlapRow row, Measure(how));
    row.name = name;
    result_.rows.push_back(row);
    return row;
  }

  absl::Status Balanced() {
    Tick("loading no slower than compute");
    const double layer_s = LayerSeconds(options_.balanced_load);
    TK_RETURN_IF_ERROR(Add("balanced", {.layer_s = layer_s, .overlap = false}).status());
    TK_ASSIGN_OR_RETURN(const OverlapRow plain, Add("balanced", {.layer_s = layer_s}));
    TK_ASSIGN_OR_RETURN(
        const OverlapRow buffered,
        Add("balanced", {.layer_s = layer_s, .head_start = 2 * rig_.layer_bytes()}));
    const auto share = [](const OverlapRow& row) {
      return std::max(row.total_s - row.compute_s, 0.0) / row.compute_s;
    };
    result_.stall_share = share(plain);
    result_.stall_share_predicted = plain.predicted_stall_s / plain.compute_s;
    result_.stall_share_buffered = share(buffered);
    return absl::OkStatus();
  }

  absl::Status Slow() {
    Tick("loading slower than compute");
    const double layer_s = LayerSeconds(options_.slow_load);
    TK_RETURN_IF_ERROR(Add("slow", {.layer_s = layer_s, .overlap = false}).status());
    TK_ASSIGN_OR_RETURN(const OverlapRow plain, Add("slow", {.layer_s = layer_s}));
    result_.slow_load_ratio = plain.total_s / std::max(plain.load_s, plain.compute_s);
    // The loop stands for a prefill of as many tokens as it takes.
    const auto tokens = static_cast<double>(options_.tokens);
    result_.buffer_bytes_predicted =
        ReadBufferBytes({.link_bytes_per_s = static_cast<double>(rig_.bytes()) / load_s_,
                         .load_s_per_token = load_s_ / tokens,
                         .prefill_s_per_token = plain.compute_s / tokens,
                         .history_tokens = options_.tokens,
                         .new_tokens = options_.tokens,
                         .budget_bytes = rig_.bytes()});
    TK_RETURN_IF_ERROR(
        Add("slow", {.layer_s = layer_s,
                     .head_start = RoundUp(result_.buffer_bytes_predicted, rig_.layer_bytes())})
            .status());
    Tick("smallest buffer");
    uint32_t low = 0;  // layers that are too few
    uint32_t high = options_.layers;
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      TK_ASSIGN_OR_RETURN(const OverlapRow row,
                          Measure({.layer_s = layer_s, .head_start = middle * rig_.layer_bytes()}));
      (row.stall_s <= 0.02 * row.compute_s ? high : low) = middle;
    }
    result_.buffer_bytes_measured = high * rig_.layer_bytes();
    return absl::OkStatus();
  }

  absl::Status Saves() {
    const double layer_s = LayerSeconds(options_.balanced_load);
    std::vector<double> none, waited, overlapped;
    for (uint32_t round = 0; round < options_.rounds + 1; ++round) {
      if (round < 2) Tick("saves");
      TK_ASSIGN_OR_RETURN(const double a, rig_.SaveBetweenJobs(Rig::SaveMode::kNone, layer_s, 0));
      TK_ASSIGN_OR_RETURN(const double b,
                          rig_.SaveBetweenJobs(Rig::SaveMode::kWait, layer_s, 64 * kMiB));
      TK_ASSIGN_OR_RETURN(const double c,
                          rig_.SaveBetweenJobs(Rig::SaveMode::kOverlap, layer_s, 64 * kMiB));
      if (round == 0) continue;
      none.push_back(a);
      waited.push_back(b - a);
      overlapped.push_back(c - a);
    }
    result_.save_sync_s = Median(waited);
    result_.save_async_s = Median(overlapped);
    result_.async_save_hidden_share = 1 - result_.save_async_s / result_.save_sync_s;
    return absl::OkStatus();
  }

  const OverlapOptions& options_;
  Rig& rig_;
  OverlapResult result_;
  double load_s_ = 0;
  uint64_t step_ = 0;
};

}  // namespace

OverlapDevice HostOverlapDevice(double link_bytes_per_s) {
  OverlapDevice host;
  host.device =
      std::make_unique<HostDevice>(HostDeviceOptions{.memory_bytes = 16 * kGiB,
                                                     .to_device_bytes_per_s = link_bytes_per_s,
                                                     .to_host_bytes_per_s = link_bytes_per_s,
                                                     .copy_latency = absl::Microseconds(5)});
  host.compute = [](DeviceStream& stream, double seconds) {
    return HostDevice::LaunchFor(stream, absl::Seconds(seconds), nullptr);
  };
  host.make_mover = [](PageMoverOptions options) -> absl::StatusOr<std::unique_ptr<LayerMover>> {
    return CpuPageMover::Make(std::move(options));
  };
  host.link_bytes_per_s = link_bytes_per_s;
  return host;
}

absl::StatusOr<OverlapResult> MeasureOverlap(const OverlapOptions& options, OverlapDevice device) {
  TK_ASSIGN_OR_RETURN(const auto rig, Rig::Make(options, std::move(device)));
  return Measurement(options, *rig).Run();
}

}  // namespace turnkeep::bench
