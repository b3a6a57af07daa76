#include <algorithm>
#include <random>

#include "bench_support.h"
#include "core/units.h"
#include "cuda_bench.h"
#include "cuda_timing.h"
#include "gather_bench_case.h"
#include "kernels/gather.h"
#include "kernels/gather_cuda.h"

namespace turnkeep::bench {
namespace {

// Of the buffers that rounds take in turn, so that the L2 cache (50 MB on an H200) holds none.
constexpr uint64_t kRotatedBytes = 512 * kMiB;

// Chunks of a whole cache, keys then values of each, as a restore of one layer has them.
std::vector<CudaTokenRun> Runs(const PagedLayer& planes, bool keys, uint32_t tokens,
                               std::byte* chunks) {
  std::vector<CudaTokenRun> runs;
  const uint64_t key_bytes = DenseBytes(planes.keys, kGatherChunkTokens);
  const uint64_t chunk_bytes = key_bytes + DenseBytes(planes.values, kGatherChunkTokens);
  for (uint32_t token = 0; token < tokens; token += kGatherChunkTokens) {
    runs.push_back(
        {.dense = chunks + token / kGatherChunkTokens * chunk_bytes + (keys ? 0 : key_bytes),
         .first_token = token,
         .token_count = kGatherChunkTokens,
         .position = -4096});
  }
  return runs;
}

// Random bytes: data of one value moves quicker than what an engine has.
absl::StatusOr<DeviceMemory> RandomMemory(CudaTiming& cuda, uint64_t bytes) {
  std::vector<uint64_t> words(bytes / 8 + 1);
  std::mt19937_64 random(1);
  for (uint64_t& word : words) word = random() & 0x3FFF3FFF3FFF3FFF;  // finite as bfloat16
  return cuda.Upload(words.data(), bytes);
}

absl::StatusOr<GatherRow> Measure(CudaTiming& cuda, const GatherCase& c,
                                  const GatherBenchOptions& options) {
  const uint32_t tokens = c.TokensFor(options.bytes);
  const PagedSpec spec = c.Spec(tokens);
  TK_ASSIGN_OR_RETURN(const uint64_t bytes, PagedBytes(spec));
  const uint64_t copies = std::max<uint64_t>(2, kRotatedBytes / bytes);
  TK_ASSIGN_OR_RETURN(const DeviceMemory caches, RandomMemory(cuda, copies * bytes));
  TK_ASSIGN_OR_RETURN(const DeviceMemory chunks, RandomMemory(cuda, copies * bytes));
  const std::vector<uint32_t> pages = ShuffledPages(spec.page_count);
  const RopeSpec rope = GatherRope(c.key_dim);
  std::vector<double> rates[4];  // gather, scatter, rotated, copy
  for (uint32_t round = 0; round <= options.rounds; ++round) {
    for (int what = 0; what < 4; ++what) {
      const uint64_t at = (4 * round + static_cast<uint64_t>(what)) % copies * bytes;
      TK_ASSIGN_OR_RETURN(const PagedLayer planes, PlanesOf(spec, caches.data() + at, 0));
      const auto keys = Runs(planes, true, tokens, chunks.data() + at);
      const auto values = Runs(planes, false, tokens, chunks.data() + at);
      const auto work = [&]() -> absl::Status {
        if (what == 3)
          return cuda.stream().Copy(CopyKind::kOnDevice, caches.data() + at, chunks.data() + at,
                                    bytes);
        if (what == 0) {
          TK_RETURN_IF_ERROR(CudaGather(planes.keys, pages, keys, cuda.on()));
          return CudaGather(planes.values, pages, values, cuda.on());
        }
        TK_RETURN_IF_ERROR(
            what == 2 && c.rotates()
                ? CudaScatterRotated(planes.keys, pages, keys, DType::kBFloat16, rope, cuda.on())
                : CudaScatter(planes.keys, pages, keys, cuda.on()));
        return CudaScatter(planes.values, pages, values, cuda.on());
      };
      TK_ASSIGN_OR_RETURN(const double seconds, cuda.Seconds(work));
      if (round > 0) rates[what].push_back(static_cast<double>(bytes) / seconds);
    }
  }
  return GatherRow{.layout = c.Name(),
                   .page_tokens = c.page_tokens,
                   .chunk_page_bytes = c.chunk_page_bytes(),
                   .gather_bytes_per_s = Median(rates[0]),
                   .scatter_bytes_per_s = Median(rates[1]),
                   .rotated_bytes_per_s = c.rotates() ? Median(rates[2]) : 0,
                   .copy_bytes_per_s = Median(rates[3])};
}

}  // namespace

absl::StatusOr<std::vector<GatherRow>> MeasureGatherOnCuda(const GatherBenchOptions& options) {
  TK_ASSIGN_OR_RETURN(CudaTiming cuda, CudaTiming::Open());
  const std::vector<GatherCase> cases = GatherCases(/*combined=*/false);
  std::vector<GatherRow> rows;
  for (size_t i = 0; i < cases.size(); ++i) {
    options.progress("layouts", i, cases.size());
    TK_ASSIGN_OR_RETURN(rows.emplace_back(), Measure(cuda, cases[i], options));
  }
  options.progress("layouts", cases.size(), cases.size());
  return rows;
}

}  // namespace turnkeep::bench
