// Bandwidths: restore from the host tier, restore from disk, save to disk.
//
// The model is a Llama-3-8B-like one: 32 layers, 8 KV heads of 128, bfloat16, so 128 KiB a
// token, layer pages of 256 KiB and chunks of 8 MiB.

#include <atomic>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <thread>
#include <utility>

#include <absl/synchronization/mutex.h>

#include "bench_support.h"
#include "core/status.h"
#include "disk_tier/block_device.h"
#include "host_tier/shared_memory.h"
#include "store/store.h"
#include "store_bench.h"

namespace turnkeep::bench {

namespace {

constexpr uint32_t kLayers = 32;
constexpr uint32_t kDepth = 32;
// Reads of the restore path group layers up to this; the raw reads have the same size.
constexpr uint64_t kReadBytes = 512 * kKiB;
constexpr uint64_t kSessionsInStream = 8;
constexpr int kSavers = 4;
// Rounds of restores, and of saves, that lie side by side on the disk.
constexpr uint64_t kRotations = 3;
// Rounds before the first that counts: files are made and their blocks written once.
constexpr uint32_t kWarmRounds = 3;

std::string StreamName(uint64_t round, uint64_t n) { return fmt::format("stream-{}-{}", round, n); }

KvLayout Model() { return LayoutOf("bench-8b", kLayers, 8, 128, DType::kBFloat16); }

std::vector<std::byte> RandomBytes(uint64_t bytes) {
  std::mt19937_64 random(1);
  std::vector<std::byte> out(bytes);
  for (uint64_t i = 0; i + 8 <= bytes; i += 8) {
    const uint64_t word = random();
    std::memcpy(out.data() + i, &word, 8);
  }
  return out;
}

// Reads everything of a session into `buffer` (one layer page at a time, rotating through
// it) and returns the seconds from the request to the last verified byte.
// Without a buffer every layer is only waited for: it is in host memory then, and verified.
absl::StatusOr<double> RestoreAll(KvStore& kv, const std::string& session,
                                  const Fingerprint& layout, uint64_t page_bytes,
                                  std::span<std::byte> buffer) {
  const Stopwatch watch;
  TK_ASSIGN_OR_RETURN(auto ticket, kv.BeginRestore({.session = session, .layout = layout}));
  uint64_t at = 0;
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    TK_ASSIGN_OR_RETURN(const uint64_t tokens, ticket->WaitLayer(layer));
    if (tokens == 0) return Internal("restore of '{}' missed: {}", session, ticket->miss_reason());
    for (size_t i = 0; i < ticket->spans().size() && !buffer.empty(); ++i) {
      TK_RETURN_IF_ERROR(ticket->ReadPage(i, layer, buffer.subspan(at, page_bytes)));
      at = at + 2 * page_bytes <= buffer.size() ? at + page_bytes : 0;
    }
  }
  return watch.Seconds();
}

double CopyAll(std::span<const std::byte> from, std::span<std::byte> to, uint64_t page_bytes,
               uint64_t bytes) {
  const Stopwatch watch;
  uint64_t at = 0;
  for (uint64_t done = 0; done < bytes; done += page_bytes) {
    std::memcpy(to.data() + at, from.data() + done % from.size(), page_bytes);
    at = at + 2 * page_bytes <= to.size() ? at + page_bytes : 0;
  }
  return watch.Seconds();
}

// Raw transfers of `request_bytes` each at depth kDepth over one preallocated file, which is as
// large as what the store moves in kRotations rounds: below us there may be a cache.
class RawDevice {
 public:
  static absl::StatusOr<std::unique_ptr<RawDevice>> Open(const std::string& directory,
                                                         uint64_t bytes, uint64_t request_bytes) {
    auto raw = std::unique_ptr<RawDevice>(new RawDevice);
    raw->bytes_ = RoundDown(bytes, request_bytes);
    raw->request_bytes_ = request_bytes;
    // As large as what the store moves, so that neither side stays in the caches, and of the
    // same kind of memory: what pages it has decides what a direct transfer costs.
    TK_ASSIGN_OR_RETURN(
        raw->buffer_,
        SharedMemory::Create("raw-transfers", std::max(raw->bytes_, kDepth * request_bytes),
                             PageSize::kNormal));
    const auto random = RandomBytes(raw->buffer_.bytes());
    std::memcpy(raw->buffer_.memory().data(), random.data(), random.size());
    TK_ASSIGN_OR_RETURN(raw->device_, OpenBestBlockDevice(directory, {.queue_depth = kDepth}));
    raw->device_->RegisterMemory(raw->buffer_.memory());
    TK_RETURN_IF_ERROR(raw->device_->CreateFile(1, kRotations * raw->bytes_));
    for (uint64_t i = 0; i < kRotations; ++i) TK_RETURN_IF_ERROR(raw->Run(IoOp::kWrite).status());
    return raw;
  }
  ~RawDevice() {
    if (device_ == nullptr) return;
    device_->UnregisterMemory(buffer_.memory());
    (void)device_->DeleteFile(1);
  }

  // Bytes a second.
  absl::StatusOr<double> Run(IoOp op) {
    const Stopwatch watch;
    const uint64_t base = run_count_++ % kRotations * bytes_;
    absl::Mutex mu;
    uint64_t next = 0;
    uint32_t running = 0;
    absl::Status failure;
    std::function<void()> start = [&] {
      uint64_t offset = 0;
      {
        absl::MutexLock lock(&mu);
        if (next >= bytes_ || !failure.ok()) return;
        offset = std::exchange(next, next + request_bytes_);
        ++running;
      }
      std::vector<IoRequest> request;
      request.push_back(
          {.op = op,
           .file = 1,
           .offset = base + offset,
           .buffer = buffer_.memory().subspan(offset % buffer_.bytes(), request_bytes_),
           .done = [&](const absl::Status& status, uint64_t) {
             {
               absl::MutexLock lock(&mu);
               if (!status.ok()) failure = status;
             }
             start();
             absl::MutexLock lock(&mu);
             --running;
           }});
      if (const absl::Status status = device_->Submit(request); !status.ok()) {
        absl::MutexLock lock(&mu);
        failure = status;
        --running;
      }
    };
    for (uint32_t i = 0; i < kDepth; ++i) start();
    absl::MutexLock lock(&mu);
    const auto idle = [&] { return running == 0; };
    mu.Await(absl::Condition(&idle));
    if (!failure.ok()) return failure;
    return static_cast<double>(bytes_) / watch.Seconds();
  }

 private:
  RawDevice() = default;
  std::unique_ptr<BlockDevice> device_;
  SharedMemory buffer_;
  uint64_t bytes_ = 0;
  uint64_t request_bytes_ = 0;
  uint64_t run_count_ = 0;
};

// Saves as an engine does, one after another: the next one's pages are filled while the
// last one's are written. Returns bytes a second until all are durable.
absl::StatusOr<double> SaveStream(KvStore& kv, const Fingerprint& layout, uint64_t tokens,
                                  uint32_t round, const std::vector<std::byte>& source) {
  const Stopwatch watch;
  absl::Mutex mu;
  absl::Status failure;
  std::vector<std::thread> savers;
  std::atomic<uint64_t> next{0};
  std::atomic<uint64_t> bytes{0};
  for (int thread = 0; thread < kSavers; ++thread) {
    savers.emplace_back([&] {
      for (;;) {
        const uint64_t n = next.fetch_add(1);
        if (n >= kSessionsInStream) return;
        const uint64_t seed = 1000 + round * kSessionsInStream + n;
        const auto saved = SaveContext(
            kv, {StreamName(round, n), 0, layout, kLayers, TokensOf(seed, tokens)}, source);
        const bool good = saved.ok() && saved->durable && saved->token_count == tokens;
        if (good) bytes += saved->new_bytes;
        if (good) continue;
        absl::MutexLock lock(&mu);
        failure = saved.ok()
                      ? Internal("save was cut to {} tokens: {}", saved->token_count, saved->note)
                      : saved.status();
        return;
      }
    });
  }
  for (std::thread& saver : savers) saver.join();
  if (!failure.ok()) return failure;
  const double rate = static_cast<double>(bytes.load()) / watch.Seconds();
  return rate;
}

absl::StatusOr<Share> MeasureSaves(const StoreBenchOptions& options, KvStore& kv,
                                   const Fingerprint& layout, uint64_t bytes,
                                   const std::vector<std::byte>& source,
                                   const std::function<void()>& tick) {
  const KvLayout model = Model();
  const uint64_t chunk_bytes = BytesPerToken(model) * model.chunk_tokens;
  const uint64_t tokens =
      RoundDown(bytes / BytesPerToken(model) / kSessionsInStream, model.chunk_tokens);
  TK_ASSIGN_OR_RETURN(const auto raw, RawDevice::Open(options.directory + "/raw", bytes,
                                                      std::min(chunk_bytes, 16 * kMiB)));
  std::vector<double> saved;
  std::vector<double> written;
  for (uint32_t round = 0; round < kWarmRounds + options.rounds; ++round) {
    if (round >= kWarmRounds) tick();
    // Old rounds go, so that slots are written again as in a store that has filled its disk.
    for (uint64_t n = 0; round >= 2 && n < kSessionsInStream; ++n) {
      TK_RETURN_IF_ERROR(kv.DropSession(StreamName(round - 2, n)));
    }
    TK_ASSIGN_OR_RETURN(const double rate, SaveStream(kv, layout, tokens, round, source));
    TK_ASSIGN_OR_RETURN(const double bound, raw->Run(IoOp::kWrite));
    if (round < kWarmRounds) continue;
    saved.push_back(rate);
    written.push_back(bound);
  }
  return Share{Median(saved), Median(written)};
}

}  // namespace

absl::StatusOr<BandwidthResult> MeasureBandwidth(const StoreBenchOptions& options) {
  BandwidthResult result;
  const KvLayout model = Model();
  const uint64_t token_bytes = BytesPerToken(model);
  result.page_bytes = LayerPageBytes(model.layers[0], model.chunk_tokens);
  const uint64_t tokens = RoundDown(options.bandwidth_bytes / token_bytes, model.chunk_tokens);
  const uint64_t bytes = tokens * token_bytes;
  const uint64_t steps = 3 * options.rounds;
  uint64_t step = 0;
  const auto tick = [&](const char* what) { options.progress(what, step++, steps); };

  std::filesystem::create_directories(options.directory + "/raw");
  const std::vector<std::byte> source = RandomBytes(result.page_bytes);
  const std::vector<std::byte> copy_source = RandomBytes(bytes);
  std::vector<std::byte> engine(std::min<uint64_t>(bytes, 256 * kMiB), std::byte{1});
  // The host tier holds one session and a quarter: a restore of the least recently used of
  // three comes wholly from disk, into memory that the arena has had before.
  TK_ASSIGN_OR_RETURN(const auto store, Store::Open({.data_dir = options.directory + "/bandwidth",
                                                     .host_bytes = bytes * 5 / 4,
                                                     .disk_bytes = 8 * bytes + 4 * kGiB,
                                                     .io_depth = kDepth}));
  TK_ASSIGN_OR_RETURN(auto kv, store->ForTenant("bench"));
  TK_ASSIGN_OR_RETURN(const Fingerprint layout, kv->RegisterLayout(model));
  constexpr uint32_t kSessions = kRotations;
  const auto name = [](uint32_t i) { return fmt::format("restored-{}", i % kSessions); };
  for (uint32_t i = 0; i < kSessions; ++i) {
    TK_RETURN_IF_ERROR(
        SaveContext(*kv, {name(i), 0, layout, kLayers, TokensOf(i, tokens)}, source).status());
  }
  std::vector<double> host, copy, disk_read, disk_load, raw_read;
  const auto rate_of = [bytes](double seconds) { return static_cast<double>(bytes) / seconds; };
  for (uint32_t round = 0; round < options.rounds; ++round) {
    tick("host restore");
    TK_ASSIGN_OR_RETURN(const double seconds,
                        RestoreAll(*kv, name(kSessions - 1), layout, result.page_bytes, engine));
    host.push_back(rate_of(seconds));
    copy.push_back(rate_of(CopyAll(copy_source, engine, result.page_bytes, bytes)));
  }
  {
    TK_ASSIGN_OR_RETURN(const auto raw,
                        RawDevice::Open(options.directory + "/raw", bytes, kReadBytes));
    for (uint32_t round = 0; round < options.rounds; ++round) {
      tick("disk restore");
      TK_ASSIGN_OR_RETURN(const double seconds,
                          RestoreAll(*kv, name(2 * round), layout, result.page_bytes, engine));
      disk_read.push_back(rate_of(seconds));
      TK_ASSIGN_OR_RETURN(const double loaded,
                          RestoreAll(*kv, name(2 * round + 1), layout, result.page_bytes, {}));
      disk_load.push_back(rate_of(loaded));
      TK_ASSIGN_OR_RETURN(const double rate, raw->Run(IoOp::kRead));
      raw_read.push_back(rate);
    }
  }
  TK_ASSIGN_OR_RETURN(result.disk_save, MeasureSaves(options, *kv, layout, bytes, source,
                                                     [&] { tick("disk save"); }));
  TK_ASSIGN_OR_RETURN(const StoreStatus status, kv->Status());
  result.device = status.disk.description;
  kv.reset();
  TK_RETURN_IF_ERROR(store->Close(absl::Minutes(2)));
  std::error_code ignored;
  std::filesystem::remove_all(options.directory + "/bandwidth", ignored);
  std::filesystem::remove_all(options.directory + "/raw", ignored);
  result.host_restore = {Median(host), Median(copy)};
  result.disk_restore = {Median(disk_read), Median(raw_read)};
  result.disk_load = {Median(disk_load), Median(raw_read)};
  return result;
}

}  // namespace turnkeep::bench
