#include <algorithm>
#include <cmath>
#include <memory>

#include "attention_bench_case.h"
#include "bench_support.h"
#include "core/units.h"
#include "cuda_bench.h"
#include "cuda_timing.h"
#include "kernels/attention_cuda.h"
#include "kernels/cuda_ceilings.h"
#include "kernels/cuda_status.h"

namespace turnkeep::bench {
namespace {

using turnkeep::testing::AttentionCase;

// Of the copies of a case's KV that calls take in turn: the L2 cache (50 MB on an H200) holds none.
constexpr uint64_t kRotatedBytes = 512 * kMiB;
constexpr uint64_t kCopyBytes = kGiB;
constexpr CudaMatrixWork kMatrixWork = {.blocks = 2048, .rounds = 20'000};
constexpr int kCallsAtOnce = 10;  // between two events
// Units are split until there are so many tasks: some on each of the 132 processors of an H200.
constexpr uint32_t kTasks = 1024;

struct Ceilings {
  double bytes_per_s = 0;
  double operations_per_s = 0;
};

absl::StatusOr<Ceilings> MeasureCeilings(CudaTiming& cuda) {
  TK_ASSIGN_OR_RETURN(const DeviceMemory from, cuda.device().Allocate(kCopyBytes));
  TK_ASSIGN_OR_RETURN(const DeviceMemory to, cuda.device().Allocate(kCopyBytes));
  TK_ASSIGN_OR_RETURN(const DeviceMemory out, cuda.device().Allocate(kMatrixWork.blocks * 4));
  Ceilings best;
  for (int round = 0; round < 6; ++round) {
    TK_ASSIGN_OR_RETURN(const double copy_s, cuda.Seconds([&] {
      return cuda.stream().Copy(CopyKind::kOnDevice, to.data(), from.data(), kCopyBytes);
    }));
    TK_ASSIGN_OR_RETURN(const double matrix_s, cuda.Seconds([&] {
      return CudaStatus(
          LaunchMatrixProducts(kMatrixWork, reinterpret_cast<float*>(out.data()), cuda.on()),
          "matrix products");
    }));
    if (round == 0) continue;
    best.bytes_per_s = std::max(best.bytes_per_s, 2.0 * kCopyBytes / copy_s);
    best.operations_per_s = std::max(best.operations_per_s, kMatrixWork.Operations() / matrix_s);
  }
  return best;
}

// By the floors: a whole device's nanoseconds for a token of one KV head, read once for up to 64
// rows, and for partial results written and read again. Starting a block is a microsecond on one
// of a thousand places.
AttentionCosts CostsOf(const AttentionShape& shape, const Ceilings& ceilings) {
  const double ns_byte = 1e9 / ceilings.bytes_per_s;
  const double ns_operation = 1e9 / ceilings.operations_per_s;
  const double token = 2.0 * shape.head_dim * DTypeBytes(shape.dtype) * ns_byte;
  const double row = 4.0 * shape.head_dim * ns_operation;
  AttentionCosts costs;
  costs.many_rows = 5;
  costs.row_step = 16;
  costs.entries.clear();
  for (const uint32_t rows : {1u, 2u, 3u, 4u, 16u, 64u, 128u, 256u}) {
    // Up to four rows run without tensor cores; of many, 64 share a read.
    const double reads = (rows + 63) / 64;
    const double each = reads * token + rows * (rows < costs.many_rows ? 10 * row : row);
    const double start = 1 + 0.01 * rows;
    costs.entries.push_back({rows, start + each, start + AttentionCosts::kTileTokens * each, each});
  }
  costs.partial = 2.0 * 4 * (shape.head_dim + 1) * ns_byte;
  costs.masked = 0;
  return costs;
}

struct Contender {
  std::unique_ptr<AttentionPlanner> planner;
  std::vector<double> us;
  std::vector<double> planning_us;
  double error = 0;
};

// A shape's tensors on the device, its KV several times.
class Shape {
 public:
  Shape(CudaTiming& cuda, AttentionCase& c) : cuda_(cuda), c_(c), tensors_(c.Tensors()) {}

  absl::Status Prepare() {
    const AttentionShape& shape = c_.shape();
    const uint64_t element_bytes = DTypeBytes(shape.dtype);
    pool_bytes_ = uint64_t{c_.page_count()} * c_.kv().page_stride * element_bytes;
    count_ = std::max<uint64_t>(2, kRotatedBytes / std::max<uint64_t>(2 * pool_bytes_, 1));
    TK_ASSIGN_OR_RETURN(kv_, cuda_.device().Allocate(2 * pool_bytes_ * count_));
    for (uint64_t i = 0; i < 2 * count_; ++i) {
      const std::byte* const from = i % 2 == 0 ? c_.kv().keys : c_.kv().values;
      TK_RETURN_IF_ERROR(cuda_.stream().Copy(CopyKind::kToDevice, kv_.data() + i * pool_bytes_,
                                             from, pool_bytes_));
    }
    const uint64_t elements = c_.output().size();
    TK_ASSIGN_OR_RETURN(queries_, cuda_.Upload(tensors_.queries, elements * element_bytes));
    TK_ASSIGN_OR_RETURN(output_, cuda_.Upload(tensors_.output, elements * 4));  // NaN
    TK_ASSIGN_OR_RETURN(lse_, cuda_.Upload(tensors_.lse, c_.lse().size() * 4));
    return cuda_.stream().Synchronize();
  }

  absl::Status Check(Contender& contender, uint32_t rows) {
    const AttentionPlan& plan = contender.planner->Plan(c_.forest());
    TK_RETURN_IF_ERROR(ValidateAttentionPlan(plan, c_.shape(), c_.page_count()));
    TK_RETURN_IF_ERROR(attention_.Upload(c_.shape(), plan, cuda_.on()));
    TK_RETURN_IF_ERROR(Run());
    DeviceStream& stream = cuda_.stream();
    TK_RETURN_IF_ERROR(
        stream.Copy(CopyKind::kToHost, tensors_.output, output_.data(), c_.output().size() * 4));
    TK_RETURN_IF_ERROR(
        stream.Copy(CopyKind::kToHost, tensors_.lse, lse_.data(), c_.lse().size() * 4));
    TK_RETURN_IF_ERROR(stream.Synchronize());
    std::string where;
    contender.error = c_.WorstError(&where, rows);
    return absl::OkStatus();
  }
  absl::Status Time(Contender& contender) {
    contender.planner->Forget();
    const Stopwatch planning;
    const AttentionPlan& plan = contender.planner->Plan(c_.forest());
    TK_RETURN_IF_ERROR(attention_.Upload(c_.shape(), plan, cuda_.on()));
    TK_RETURN_IF_ERROR(cuda_.stream().Synchronize());
    contender.planning_us.push_back(planning.Micros());
    TK_ASSIGN_OR_RETURN(const double seconds, cuda_.Seconds([this]() -> absl::Status {
      for (int i = 0; i < kCallsAtOnce; ++i) TK_RETURN_IF_ERROR(Run());
      return absl::OkStatus();
    }));
    contender.us.push_back(seconds * 1e6 / kCallsAtOnce);
    return absl::OkStatus();
  }

 private:
  absl::Status Run() {
    next_ = (next_ + 1) % count_;
    const std::byte* const keys = kv_.data() + 2 * next_ * pool_bytes_;
    return attention_.Run(PagedKv::Dense(c_.shape(), keys, keys + pool_bytes_),
                          {.queries = queries_.data(),
                           .output = reinterpret_cast<float*>(output_.data()),
                           .lse = reinterpret_cast<float*>(lse_.data())},
                          cuda_.on());
  }

  CudaTiming& cuda_;
  AttentionCase& c_;
  const AttentionTensors tensors_;
  uint64_t pool_bytes_ = 0;
  uint64_t count_ = 0;
  uint64_t next_ = 0;
  DeviceMemory kv_, queries_, output_, lse_;
  CudaAttention attention_;
};

absl::StatusOr<std::vector<AttentionRow>> MeasureShape(CudaTiming& cuda, const Ceilings& ceilings,
                                                       const AttentionBenchOptions& options,
                                                       const AttentionCaseSpec& spec) {
  const AttentionShape shape{.query_heads = spec.query_heads,
                             .kv_heads = spec.kv_heads,
                             .head_dim = spec.head_dim,
                             .page_tokens = options.page_tokens,
                             .dtype = spec.dtype,
                             .scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim))};
  AttentionCase c = MakeAttentionCase(shape, spec, options.seed);
  Shape there(cuda, c);
  TK_RETURN_IF_ERROR(there.Prepare());
  const AttentionPlannerOptions planner_options{
      .shape = shape, .target_tasks = kTasks, .costs = CostsOf(shape, ceilings)};
  std::vector<std::string> names = options.planners;
  std::erase(names, "per_sequence");
  names.insert(names.begin(), "per_sequence");
  std::vector<Contender> contenders(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    TK_ASSIGN_OR_RETURN(contenders[i].planner, MakeAttentionPlanner(names[i], planner_options));
    TK_RETURN_IF_ERROR(there.Check(contenders[i], options.checked_rows));
  }
  for (uint32_t r = 0; r < options.rounds; ++r)
    for (size_t i = 0; i < contenders.size(); ++i)
      TK_RETURN_IF_ERROR(there.Time(contenders[(r + i) % contenders.size()]));
  const uint64_t bytes =
      c.forest().UniqueTokens() * shape.kv_heads * shape.head_dim * DTypeBytes(shape.dtype) * 2;
  const double floor_us =
      1e6 * std::max(static_cast<double>(bytes) / ceilings.bytes_per_s,
                     AttentionOperations(c.forest(), shape) / ceilings.operations_per_s);
  const auto total = [](const Contender& contender) {
    return Median(contender.us) + Median(contender.planning_us);
  };
  std::vector<AttentionRow> rows;
  for (size_t i = 0; i < names.size(); ++i) {
    if (std::find(options.planners.begin(), options.planners.end(), names[i]) ==
        options.planners.end())
      continue;
    const double us = Median(contenders[i].us);
    const double share = floor_us / us;
    rows.push_back({.shape = spec.shape,
                    .planner = names[i],
                    .us = us,
                    .planning_us = Median(contenders[i].planning_us),
                    .speedup = total(contenders[0]) / total(contenders[i]),
                    .speedup_low = total(contenders[0]) / total(contenders[i]),
                    .speedup_high = total(contenders[0]) / total(contenders[i]),
                    .rounds = options.rounds,
                    .bytes_unique = bytes,
                    .floor_us = floor_us,
                    .share = share,
                    .share_low = share,
                    .share_high = share,
                    .error = contenders[i].error,
                    .traffic_bound = spec.traffic_bound,
                    .machine_bound = total(contenders[0]) / floor_us});
  }
  return rows;
}

}  // namespace

absl::StatusOr<AttentionBenchResult> MeasureAttentionOnCuda(
    const AttentionBenchOptions& options, const std::vector<AttentionCaseSpec>& cases) {
  TK_ASSIGN_OR_RETURN(CudaTiming cuda, CudaTiming::Open());
  TK_ASSIGN_OR_RETURN(const Ceilings ceilings, MeasureCeilings(cuda));
  AttentionBenchResult result;
  result.device = "cuda";
  result.target = cuda.device().Description();
  result.read_bytes_per_s = ceilings.bytes_per_s;
  result.operations_per_s = ceilings.operations_per_s;
  uint64_t left_out = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    options.progress("shapes", i, cases.size());
    const uint32_t dim = cases[i].head_dim;
    if (dim != 64 && dim != 128 && dim != 256) {
      ++left_out;
      continue;
    }
    TK_ASSIGN_OR_RETURN(const std::vector<AttentionRow> rows,
                        MeasureShape(cuda, ceilings, options, cases[i]));
    result.rows.insert(result.rows.end(), rows.begin(), rows.end());
  }
  if (left_out > 0)
    result.left_out = fmt::format("{} shapes whose head_dim is not 64, 128 or 256", left_out);
  options.progress("shapes", cases.size(), cases.size());
  return result;
}

}  // namespace turnkeep::bench
