// Latencies over the daemon's socket at growing numbers of chunks, the memory that a chunk
// costs, and the write amplification of an append.
//
// The model here is as small as the format allows (one layer page of 1 KiB), so that a million
// chunks fit in 4 GiB: what is measured does not depend on the bytes of a chunk.

#include <malloc.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <utility>

#include "api/client.h"
#include "api/server.h"
#include "bench_support.h"
#include "core/chunk_identity.h"
#include "core/status.h"
#include "store/store.h"
#include "store_bench.h"

namespace turnkeep::bench {

namespace {

constexpr uint64_t kSessionTokens = 100'000;
constexpr uint64_t kPromptTokens = 128 * 1024;
constexpr uint64_t kMissTokens = 2'048;

KvLayout TinyModel() { return LayoutOf("bench-tiny", 1, 1, 4, DType::kFloat16); }

// Anonymous memory of this process: everything but the arena, which is shared memory.
uint64_t AnonymousBytes() {
  malloc_trim(0);
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind("RssAnon:", 0) == 0) return std::stoull(line.substr(8)) * kKiB;
  }
  return 0;
}

// A store, its server and one client, all of this process.
struct Daemon {
  std::unique_ptr<Store> store;
  std::unique_ptr<Server> server;
  std::unique_ptr<Client> client;

  absl::Status Stop() {
    client.reset();
    server.reset();
    return store->Close(absl::Minutes(5));
  }
};

absl::StatusOr<Daemon> Start(const StoreBenchOptions& options, uint64_t host_bytes,
                             uint64_t disk_bytes) {
  Daemon daemon;
  TK_ASSIGN_OR_RETURN(daemon.store, Store::Open({.data_dir = options.directory + "/scale",
                                                 .host_bytes = host_bytes,
                                                 .disk_bytes = disk_bytes,
                                                 .high_watermark = 1.0,
                                                 .low_watermark = 1.0}));
  const std::string socket = options.directory + "/bench.sock";
  TK_ASSIGN_OR_RETURN(daemon.server, Server::Start(*daemon.store, {.socket_path = socket}));
  TK_ASSIGN_OR_RETURN(
      daemon.client, Client::Connect({.socket_path = socket, .request_timeout = absl::Minutes(2)}));
  return daemon;
}

class Scale {
 public:
  Scale(const StoreBenchOptions& options, const Fingerprint& layout, Client& client)
      : options_(options), layout_(layout), client_(client), source_(4 * kKiB, std::byte{7}) {}

  absl::Status Fill(uint64_t chunks) {
    const uint64_t per_session = DivideRoundUp(kSessionTokens, kDefaultChunkTokens);
    if (sessions_ == 0) {
      TK_RETURN_IF_ERROR(Save("prompt", 1, kPromptTokens));
      chunks_ += kPromptTokens / kDefaultChunkTokens;
    }
    while (chunks_ + per_session <= chunks || sessions_ == 0) {
      TK_RETURN_IF_ERROR(
          Save(fmt::format("session-{}", sessions_), 100 + sessions_, kSessionTokens));
      ++sessions_;
      chunks_ += per_session;
      options_.progress("filling the store", chunks_, options_.chunk_counts.back());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ScaleResult> Measure() {
    ScaleResult result{.chunks = chunks_};
    const std::vector<uint32_t> prompt = TokensOf(1, kPromptTokens);
    std::vector<double> open, hit, miss, empty;
    for (uint32_t i = 0; i < options_.samples; ++i) {
      options_.progress("measuring", i, options_.samples);
      TK_RETURN_IF_ERROR(
          Open({.session = fmt::format("session-{}", i * 7919 % sessions_), .layout = layout_},
               kSessionTokens, &open));
      const std::vector<uint32_t> unknown = TokensOf(1'000'000'000 + chunks_ + i, kMissTokens);
      TK_RETURN_IF_ERROR(Open({.prompt = {.tokens = unknown}, .layout = layout_}, 0, &miss));
      if (i % 8 == 0) {
        TK_RETURN_IF_ERROR(
            Open({.prompt = {.tokens = prompt}, .layout = layout_}, kPromptTokens, &hit));
      }
      TK_RETURN_IF_ERROR(Open({.session = "nobody", .layout = layout_}, 0, &empty));
    }
    result.session_open_us_p50 = Median(open);
    result.session_open_us_p99 = Quantile(open, 0.99);
    result.lookup_hit_us_p50 = Median(hit);
    result.lookup_hit_us_p99 = Quantile(hit, 0.99);
    result.lookup_miss_us_p50 = Median(miss);
    result.lookup_miss_us_p99 = Quantile(miss, 0.99);
    result.round_trip_us_p50 = Median(empty);
    result.hash_prompt_us = HashPrompt(prompt);
    return result;
  }

 private:
  absl::Status Save(const std::string& session, uint64_t seed, uint64_t tokens) {
    TK_ASSIGN_OR_RETURN(
        const CommitResult saved,
        SaveContext(client_, {session, 0, layout_, 1, TokensOf(seed, tokens)}, source_));
    if (saved.token_count == tokens && saved.durable) return absl::OkStatus();
    return Internal("save '{}': {} of {} tokens, {}", session, saved.token_count, tokens,
                    saved.note);
  }

  absl::Status Open(const RestoreRequest& request, uint64_t expected,
                    std::vector<double>* samples) {
    const Stopwatch watch;
    TK_ASSIGN_OR_RETURN(auto ticket, client_.BeginRestore(request));
    samples->push_back(watch.Micros());
    if (ticket->token_count() != expected) {
      return Internal("restore of '{}': {} tokens, {} expected: {}", request.session,
                      ticket->token_count(), expected, ticket->miss_reason());
    }
    // The ticket's release has been worked off when the next answer comes, so that no sample
    // pays for the one before it.
    ticket.reset();
    (void)client_.StatSession("nobody");
    return absl::OkStatus();
  }

  double HashPrompt(const std::vector<uint32_t>& prompt) const {
    std::vector<double> samples;
    const ChunkHasher hasher(TenantKey{1});
    for (int round = 0; round < 9; ++round) {
      const Stopwatch watch;
      ChunkId id = hasher.Root(layout_);
      for (uint64_t at = 0; at < prompt.size(); at += kDefaultChunkTokens) {
        id = hasher.Tokens(id, layout_, std::span(prompt).subspan(at, kDefaultChunkTokens));
      }
      samples.push_back(watch.Micros());
    }
    return Median(samples);
  }

  const StoreBenchOptions& options_;
  const Fingerprint layout_;
  Client& client_;
  const std::vector<std::byte> source_;
  uint64_t sessions_ = 0;
  uint64_t chunks_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<ScaleResult>> MeasureScales(const StoreBenchOptions& options) {
  std::vector<ScaleResult> results;
  const KvLayout model = TinyModel();
  const uint64_t slot_bytes = GeometryOf(model, model.chunk_tokens).slot_bytes;
  const uint64_t capacity =
      RoundUp((options.chunk_counts.back() + 10'000) * slot_bytes * 5 / 4, kMiB) + kGiB;
  std::filesystem::create_directories(options.directory);
  for (const uint64_t chunks : options.chunk_counts) {
    // A store of its own for each size, so that the memory of one is not counted with another's.
    const uint64_t before = AnonymousBytes();
    TK_ASSIGN_OR_RETURN(Daemon daemon, Start(options, capacity, capacity));
    TK_ASSIGN_OR_RETURN(const Fingerprint layout, daemon.client->RegisterLayout(model));
    Scale scale(options, layout, *daemon.client);
    TK_RETURN_IF_ERROR(scale.Fill(chunks));
    TK_ASSIGN_OR_RETURN(ScaleResult result, scale.Measure());
    result.metadata_bytes_per_chunk =
        static_cast<double>(AnonymousBytes() - std::min(before, AnonymousBytes())) /
        static_cast<double>(result.chunks);
    daemon.client.reset();
    daemon.server.reset();
    daemon.store.reset();  // as a kill leaves it: nothing is written or marked clean
    const Stopwatch reopen;
    TK_ASSIGN_OR_RETURN(Daemon again, Start(options, capacity, capacity));
    TK_ASSIGN_OR_RETURN(const SessionInfo info, again.client->StatSession("session-0"));
    result.reopen_s = reopen.Seconds();
    if (info.restorable_tokens != kSessionTokens) {
      return Internal("after reopening, session-0 has {} of {} tokens", info.restorable_tokens,
                      kSessionTokens);
    }
    TK_RETURN_IF_ERROR(again.Stop());
    again.store.reset();
    std::error_code ignored;
    std::filesystem::remove_all(options.directory + "/scale", ignored);
    results.push_back(result);
  }
  return results;
}

absl::StatusOr<AmplificationResult> MeasureAmplification(const StoreBenchOptions& options) {
  constexpr uint64_t kBefore = 99'000;
  constexpr uint64_t kNew = 704;
  // 8 KiB a token: pages of 128 KiB, so that the session is 774 MiB.
  const KvLayout model = LayoutOf("bench-append", 4, 4, 128, DType::kBFloat16);
  AmplificationResult result;
  TK_ASSIGN_OR_RETURN(auto store, Store::Open({.data_dir = options.directory + "/append",
                                               .host_bytes = 3 * kGiB,
                                               .disk_bytes = 3 * kGiB}));
  {
    TK_ASSIGN_OR_RETURN(auto kv, store->ForTenant("bench"));
    TK_ASSIGN_OR_RETURN(const Fingerprint layout, kv->RegisterLayout(model));
    const std::vector<std::byte> source(LayerPageBytes(model.layers[0], model.chunk_tokens),
                                        std::byte{9});
    const auto written = [&]() -> absl::StatusOr<std::pair<uint64_t, uint64_t>> {
      TK_ASSIGN_OR_RETURN(const StoreStatus status, kv->Status());
      std::pair<uint64_t, uint64_t> bytes;
      for (const NamedCount& count : status.counts) {
        if (count.name == "device_written_bytes_total")
          bytes.first = static_cast<uint64_t>(count.value);
        if (count.name == "index_written_bytes_total")
          bytes.second = static_cast<uint64_t>(count.value);
      }
      return bytes;
    };
    options.progress("append", 0, 2);
    TK_ASSIGN_OR_RETURN(const CommitResult first,
                        SaveContext(*kv, {"s", 0, layout, 4, TokensOf(1, kBefore)}, source));
    TK_ASSIGN_OR_RETURN(const auto before, written());
    options.progress("append", 1, 2);
    TK_RETURN_IF_ERROR(
        SaveContext(*kv, {"s", first.generation, layout, 4, TokensOf(1, kBefore + kNew)}, source)
            .status());
    TK_ASSIGN_OR_RETURN(const auto after, written());
    result.new_kv_bytes = kNew * BytesPerToken(model);
    result.device_bytes = after.first - before.first;
    result.index_bytes = after.second - before.second;
    result.append_write_amplification =
        static_cast<double>(result.device_bytes + result.index_bytes) /
        static_cast<double>(result.new_kv_bytes);
    result.bound =
        static_cast<double>(kNew + kBefore % kDefaultChunkTokens) / static_cast<double>(kNew);
  }
  TK_RETURN_IF_ERROR(store->Close(absl::Minutes(1)));
  store.reset();
  std::error_code ignored;
  std::filesystem::remove_all(options.directory + "/append", ignored);
  return result;
}

}  // namespace turnkeep::bench
