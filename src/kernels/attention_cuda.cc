#include "kernels/attention_cuda.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include <cuda_runtime_api.h>

#include "core/status.h"
#include "kernels/attention_cuda_params.h"
#include "kernels/cuda_status.h"

namespace turnkeep {
namespace {

static_assert(sizeof(CudaSegment) == sizeof(AttentionPlan::Segment), "uploaded as it stands");
static_assert(static_cast<uint32_t>(DType::kFloat32) == kCudaAttentionFloat32 &&
              static_cast<uint32_t>(DType::kFloat16) == kCudaAttentionFloat16 &&
              static_cast<uint32_t>(DType::kBFloat16) == kCudaAttentionBFloat16);

// Device memory that grows. Move-only by its owner, freed by its destructor.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }
  // What it held is lost if it has to grow, which waits for the device.
  absl::Status Reserve(size_t bytes) {
    if (bytes <= bytes_) return absl::OkStatus();
    cudaFree(data_);
    data_ = nullptr;
    bytes_ = 0;
    const size_t wanted = bytes + bytes / 4;
    void* data = nullptr;
    TK_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&data, wanted),
                                  fmt::format("attention: cudaMalloc of {} bytes", wanted)));
    data_ = static_cast<std::byte*>(data);
    bytes_ = wanted;
    return absl::OkStatus();
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Arrays one after another, each 16-byte aligned.
class Blob {
 public:
  void Clear() { bytes_.clear(); }
  template <class T>
  size_t Add(const std::vector<T>& values) {
    const size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
    return at;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// Tells uploads of all executors apart; 0: none.
uint64_t NextUpload() {
  static std::atomic<uint64_t> last{0};  // relaxed: only has to be unique
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

uint32_t KindOf(uint32_t rows) { return rows <= 1 ? 0 : rows == 2 ? 1 : rows <= 4 ? 2 : 3; }

absl::Status Check(const AttentionShape& shape, const AttentionPlan& plan) {
  if (shape.dtype != DType::kFloat32 && shape.dtype != DType::kFloat16 &&
      shape.dtype != DType::kBFloat16)
    return InvalidArgument("attention on CUDA: dtype must be float32, float16 or bfloat16");
  if (shape.head_dim != 64 && shape.head_dim != 128 && shape.head_dim != 256)
    return InvalidArgument("attention on CUDA: head_dim {} is not 64, 128 or 256", shape.head_dim);
  const uint64_t slot_limit = uint64_t{1} << 32;
  for (const uint32_t page : plan.pages)
    if ((uint64_t{page} + 1) * shape.page_tokens > slot_limit)
      return InvalidArgument("attention on CUDA: page {} of {} tokens is past 2^32 tokens", page,
                             shape.page_tokens);
  return absl::OkStatus();
}

}  // namespace

struct CudaAttentionScores::State {
  Buffer values;
  uint64_t upload = 0;
};

CudaAttentionScores::CudaAttentionScores() : state_(std::make_unique<State>()) {}
CudaAttentionScores::~CudaAttentionScores() = default;

struct CudaAttention::State {
  CudaAttentionParams params = {};
  uint64_t upload = 0;  // 0: none
  uint64_t score_count = 0;
  Blob blob;  // kept for its memory
  Buffer plan;
  Buffer slots;
  Buffer partials;

  void AddWork(const AttentionPlan& from, uint32_t group, std::vector<CudaWork>* work);
  absl::Status Reserve(const AttentionPlan& from, uint64_t slot_count);
};

// Work lists by kind, in the plan's order. Of float32, rows past the fourth are work of their own.
void CudaAttention::State::AddWork(const AttentionPlan& from, uint32_t group,
                                   std::vector<CudaWork>* work) {
  const bool streams_all = params.dtype == kCudaAttentionFloat32;
  for (uint32_t kind = 0; kind < kCudaWorkKinds; ++kind) {
    params.work_begin[kind] = static_cast<uint32_t>(work->size());
    for (uint32_t unit = 0; unit < from.units.size(); ++unit) {
      const uint32_t rows = from.units[unit].query_count * group;
      const uint32_t unit_kind = streams_all ? std::min(KindOf(rows), 2u) : KindOf(rows);
      if (rows == 0 || unit_kind != kind) continue;
      const uint32_t step = unit_kind == 3 ? kCudaTileRows : kCudaFewRows;
      for (uint32_t row = 0; row < rows; row += step) work->push_back({unit, row});
    }
  }
  params.work_begin[kCudaWorkKinds] = static_cast<uint32_t>(work->size());
}

absl::Status CudaAttention::State::Reserve(const AttentionPlan& from, uint64_t slot_count) {
  TK_RETURN_IF_ERROR(plan.Reserve(blob.bytes().size()));
  TK_RETURN_IF_ERROR(slots.Reserve(std::max<uint64_t>(slot_count, 1) * sizeof(uint32_t)));
  const uint64_t rows = uint64_t{from.partial_count} * params.query_heads;
  TK_RETURN_IF_ERROR(
      partials.Reserve(std::max<uint64_t>(rows, 1) * (params.head_dim + 1) * sizeof(float)));
  params.slots = reinterpret_cast<uint32_t*>(slots.data());
  params.partial_output = reinterpret_cast<float*>(partials.data());
  params.partial_lse = params.partial_output + rows * params.head_dim;
  return absl::OkStatus();
}

CudaAttention::CudaAttention() : state_(std::make_unique<State>()) {}
CudaAttention::~CudaAttention() = default;

absl::Status CudaAttention::Upload(const AttentionShape& shape, const AttentionPlan& plan,
                                   void* stream) {
  State& s = *state_;
  s.upload = 0;
  TK_RETURN_IF_ERROR(Check(shape, plan));
  CudaAttentionParams& p = s.params;
  p.query_heads = shape.query_heads;
  p.kv_heads = shape.kv_heads;
  p.head_dim = shape.head_dim;
  p.page_tokens = shape.page_tokens;
  p.dtype = static_cast<uint32_t>(shape.dtype);
  p.scale_log2 = shape.scale * 1.44269504f;
  p.unit_count = static_cast<uint32_t>(plan.units.size());
  p.row_count = plan.row_count;

  std::vector<CudaUnit> units;
  uint64_t slot_count = 0;
  uint64_t score_count = 0;
  for (const AttentionPlan::Unit& unit : plan.units) {
    units.push_back({.first_mask = unit.first_mask,
                     .first_slot = slot_count,
                     .first_score = score_count,
                     .first_segment = unit.first_segment,
                     .segment_count = unit.segment_count,
                     .token_count = unit.token_count,
                     .first_query = unit.first_query,
                     .query_count = unit.query_count,
                     .unused = 0});
    slot_count += unit.token_count;
    score_count += uint64_t{unit.query_count} * shape.query_heads * ScorePitch(unit.token_count);
  }
  std::vector<CudaWork> work;
  s.AddWork(plan, shape.query_heads / shape.kv_heads, &work);
  s.blob.Clear();
  const size_t at[] = {s.blob.Add(units),           s.blob.Add(plan.segments),
                       s.blob.Add(plan.pages),      s.blob.Add(plan.queries),
                       s.blob.Add(plan.limits),     s.blob.Add(plan.partials),
                       s.blob.Add(plan.masks),      s.blob.Add(plan.merge_begin),
                       s.blob.Add(plan.merge_list), s.blob.Add(work)};
  TK_RETURN_IF_ERROR(s.Reserve(plan, slot_count));
  const std::byte* const base = s.plan.data();
  p.units = reinterpret_cast<const CudaUnit*>(base + at[0]);
  p.segments = reinterpret_cast<const CudaSegment*>(base + at[1]);
  p.pages = reinterpret_cast<const uint32_t*>(base + at[2]);
  p.queries = reinterpret_cast<const uint32_t*>(base + at[3]);
  p.limits = reinterpret_cast<const uint32_t*>(base + at[4]);
  p.partials = reinterpret_cast<const uint32_t*>(base + at[5]);
  p.masks = reinterpret_cast<const uint64_t*>(base + at[6]);
  p.merge_begin = reinterpret_cast<const uint32_t*>(base + at[7]);
  p.merge_list = reinterpret_cast<const uint32_t*>(base + at[8]);
  p.work = reinterpret_cast<const CudaWork*>(base + at[9]);
  // From pageable memory: CUDA has read the blob when the call returns.
  TK_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(s.plan.data(), s.blob.bytes().data(), s.blob.bytes().size(),
                                 cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
                 fmt::format("attention: upload of a plan of {} bytes", s.blob.bytes().size())));
  TK_RETURN_IF_ERROR(CudaStatus(LaunchExpandSlots(p, stream),
                                fmt::format("attention: {} units' slots", units.size())));
  s.upload = NextUpload();
  s.score_count = score_count;
  return absl::OkStatus();
}

absl::Status CudaAttention::Run(const PagedKv& kv, const AttentionTensors& tensors, void* stream,
                                CudaAttentionScores* scores) {
  float* kept = nullptr;
  if (scores != nullptr && state_->upload != 0) {
    CudaAttentionScores::State& s = *scores->state_;
    s.upload = 0;
    TK_RETURN_IF_ERROR(
        s.values.Reserve(std::max<uint64_t>(state_->score_count, 1) * sizeof(float)));
    s.upload = state_->upload;
    kept = reinterpret_cast<float*>(s.values.data());
  }
  return Launch(kv, tensors, kept, /*apply=*/false, stream);
}

absl::Status CudaAttention::ApplyWeights(const PagedKv& kv, const CudaAttentionScores& scores,
                                         const AttentionTensors& tensors, void* stream) {
  const CudaAttentionScores::State& s = *scores.state_;
  if (state_->upload != 0 && s.upload != state_->upload)
    return FailedPrecondition("attention on CUDA: the scores are not of the uploaded plan");
  return Launch(kv, tensors, reinterpret_cast<float*>(s.values.data()), /*apply=*/true, stream);
}

absl::Status CudaAttention::Launch(const PagedKv& kv, const AttentionTensors& tensors,
                                   float* scores, bool apply, void* stream) {
  if (state_->upload == 0) return FailedPrecondition("attention on CUDA: no plan is uploaded");
  for (const void* pointer :
       {static_cast<const void*>(kv.keys), static_cast<const void*>(kv.values),
        static_cast<const void*>(tensors.queries), static_cast<const void*>(tensors.output)})
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0)
      return InvalidArgument("attention on CUDA: a tensor is not 16-byte aligned");
  if (kv.page_stride % 8 != 0 || kv.head_stride % 8 != 0 || kv.token_stride % 8 != 0)
    return InvalidArgument("attention on CUDA: strides {}, {}, {} are not multiples of 8",
                           kv.page_stride, kv.head_stride, kv.token_stride);
  CudaAttentionParams p = state_->params;
  p.keys = kv.keys;
  p.values = kv.values;
  p.page_stride = kv.page_stride;
  p.head_stride = kv.head_stride;
  p.token_stride = kv.token_stride;
  p.query_rows = tensors.queries;
  p.output = tensors.output;
  p.lse = tensors.lse;
  p.scores = scores;
  p.apply = apply ? 1 : 0;
  TK_RETURN_IF_ERROR(CudaStatus(LaunchFewRows(p, stream), "attention: units with few rows"));
  TK_RETURN_IF_ERROR(CudaStatus(LaunchManyRows(p, stream), "attention: units with many rows"));
  return CudaStatus(LaunchMerge(p, stream), "attention: merge");
}

}  // namespace turnkeep
