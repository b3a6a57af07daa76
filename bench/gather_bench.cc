#include "gather_bench.h"

#include <cstring>
#include <memory>

#include "bench_support.h"
#include "core/status.h"
#include "gather_bench_case.h"
#include "kernels/gather.h"

namespace turnkeep::bench {

namespace {

// Aligned as arenas and an engine's caches are.
class Buffer {
 public:
  Buffer(uint64_t size, std::byte fill) : bytes_(size + kAlignment, fill), size_(size) {}
  std::byte* data() {
    const auto at = reinterpret_cast<uintptr_t>(bytes_.data());
    return bytes_.data() + (kAlignment - at % kAlignment) % kAlignment;
  }
  uint64_t size() const { return size_; }

 private:
  static constexpr uintptr_t kAlignment = 4096;
  std::vector<std::byte> bytes_;
  uint64_t size_;
};

// Chunk by chunk over the whole cache, keys then values, as a restore of one layer goes.
class Mover {
 public:
  Mover(const PagedLayer& planes, uint32_t token_count, std::span<const uint32_t> pages,
        Buffer& chunks)
      : planes_(planes), token_count_(token_count), pages_(pages), chunks_(chunks) {}

  template <typename Move>
  double Seconds(const Move& move) const {
    const Stopwatch watch;
    uint64_t at = 0;
    for (uint32_t token = 0; token < token_count_; token += kGatherChunkTokens) {
      const TokenRange range{pages_, token, std::min(kGatherChunkTokens, token_count_ - token)};
      for (const bool key : {true, false}) {
        const PagedPlane& plane = key ? planes_.keys : planes_.values;
        move(plane, range, chunks_.data() + at, key);
        at += DenseBytes(plane, range.token_count);
      }
    }
    return watch.Seconds();
  }

 private:
  const PagedLayer planes_;
  const uint32_t token_count_;
  const std::span<const uint32_t> pages_;
  Buffer& chunks_;
};

absl::StatusOr<GatherRow> Measure(const GatherCase& c, const GatherBenchOptions& options) {
  const uint32_t tokens = c.TokensFor(options.bytes);
  const PagedSpec spec = c.Spec(tokens);
  TK_ASSIGN_OR_RETURN(const uint64_t bytes, PagedBytes(spec));
  Buffer cache(bytes, std::byte{1});
  Buffer chunks(tokens * c.token_bytes(), std::byte{2});
  Buffer copy(chunks.size(), std::byte{3});
  const std::vector<uint32_t> pages = ShuffledPages(spec.page_count);
  TK_ASSIGN_OR_RETURN(const PagedLayer planes, PlanesOf(spec, cache.data(), c.layers / 2));
  const Mover mover(planes, tokens, pages, chunks);
  const Rotation rotation = Rotation::Shift(GatherRope(c.key_dim), -4096);
  std::vector<double> gather, scatter, rotated, plain;
  for (uint32_t round = 0; round <= options.rounds; ++round) {
    const double g =
        mover.Seconds([](const PagedPlane& plane, const TokenRange& range, std::byte* dense, bool) {
          GatherPlane(plane, range, dense);
        });
    const double s =
        mover.Seconds([](const PagedPlane& plane, const TokenRange& range, std::byte* dense, bool) {
          ScatterPlane(plane, range, dense);
        });
    const double r = mover.Seconds(
        [&](const PagedPlane& plane, const TokenRange& range, std::byte* dense, bool key) {
          if (!key || !c.rotates()) return ScatterPlane(plane, range, dense);
          ScatterRotated(plane, range, dense, DType::kBFloat16, rotation);
        });
    const Stopwatch watch;
    const uint64_t step = c.chunk_page_bytes();  // as large as what the others move at once
    for (uint64_t at = 0; at < copy.size(); at += step)
      std::memcpy(copy.data() + at, chunks.data() + at, std::min(step, copy.size() - at));
    const double p = watch.Seconds();
    if (round == 0) continue;
    const auto rate = [&](double seconds) { return static_cast<double>(chunks.size()) / seconds; };
    gather.push_back(rate(g));
    scatter.push_back(rate(s));
    rotated.push_back(rate(r));
    plain.push_back(rate(p));
  }
  return GatherRow{.layout = c.Name(),
                   .page_tokens = c.page_tokens,
                   .chunk_page_bytes = c.chunk_page_bytes(),
                   .gather_bytes_per_s = Median(gather),
                   .scatter_bytes_per_s = Median(scatter),
                   .rotated_bytes_per_s = c.rotates() ? Median(rotated) : 0,
                   .copy_bytes_per_s = Median(plain)};
}

}  // namespace

absl::StatusOr<std::vector<GatherRow>> MeasureGather(const GatherBenchOptions& options) {
  const std::vector<GatherCase> cases = GatherCases(/*combined=*/true);
  std::vector<GatherRow> rows;
  for (size_t i = 0; i < cases.size(); ++i) {
    options.progress("layouts", i, cases.size());
    TK_ASSIGN_OR_RETURN(GatherRow row, Measure(cases[i], options));
    rows.push_back(std::move(row));
  }
  options.progress("layouts", cases.size(), cases.size());
  return rows;
}

}  // namespace turnkeep::bench
