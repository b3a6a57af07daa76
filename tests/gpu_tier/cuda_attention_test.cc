// Every planner's plans on CUDA, against the oracle in double precision. Skips where CUDA sees no
// device.
#include <cmath>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "core/status.h"
#include "gpu_tier/attention_planner.h"
#include "gpu_tier/cuda_device.h"
#include "gpu_tier/testing/attention_case.h"
#include "kernels/attention_cuda.h"

namespace turnkeep::testing {
namespace {

// Weights are rounded to the storage type before they meet the values: 2^-11 and 2^-8.
double ToleranceOf(DType dtype) {
  return dtype == DType::kFloat16 ? 2e-3 : dtype == DType::kBFloat16 ? 1.2e-2 : 1e-5;
}

AttentionShape ShapeOf(uint32_t kv_heads, uint32_t group, uint32_t dim, uint32_t page, DType type) {
  return {.query_heads = kv_heads * group,
          .kv_heads = kv_heads,
          .head_dim = dim,
          .page_tokens = page,
          .dtype = type,
          .scale = 1.0f / std::sqrt(static_cast<float>(dim))};
}

// Shapes that it does not take are refused before any call to CUDA, so this runs everywhere.
TEST(CudaAttention, RefusesWhatTheKernelsCannotDo) {
  CudaAttention attention;
  const AttentionPlan plan;
  EXPECT_EQ(attention.Upload(ShapeOf(1, 1, 96, 16, DType::kFloat16), plan, nullptr).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(attention.Upload(ShapeOf(1, 1, 64, 16, DType::kInt8), plan, nullptr).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(attention.Run({}, {}, nullptr).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(attention.ApplyWeights({}, {}, {}, nullptr).code(),
            absl::StatusCode::kFailedPrecondition);
}

class CudaAttentionTest : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override {
    if (CudaDevice::Count() == 0) GTEST_SKIP() << "CUDA sees no device";
    auto device = CudaDevice::Open(0);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    stream_ = device_->NewStream().value();
  }

  DeviceMemory ToDevice(const void* from, size_t bytes) {
    DeviceMemory memory = device_->Allocate(bytes).value();
    EXPECT_EQ(stream_->Copy(CopyKind::kToDevice, memory.data(), from, bytes), absl::OkStatus());
    return memory;
  }

  void ExpectRight(AttentionCase& c, const AttentionPlan& plan, CudaAttention& attention) {
    const AttentionShape& shape = c.shape();
    const absl::Status valid = ValidateAttentionPlan(plan, shape, c.page_count());
    ASSERT_TRUE(valid.ok()) << valid;
    const AttentionTensors tensors = c.Tensors();
    const uint64_t element_bytes = DTypeBytes(shape.dtype);
    const uint64_t kv_bytes = uint64_t{c.page_count()} * c.kv().page_stride * element_bytes;
    const uint64_t elements = c.output().size();
    DeviceMemory keys = ToDevice(c.kv().keys, kv_bytes);
    DeviceMemory values = ToDevice(c.kv().values, kv_bytes);
    DeviceMemory queries = ToDevice(tensors.queries, elements * element_bytes);
    DeviceMemory output = ToDevice(tensors.output, elements * 4);  // NaN
    DeviceMemory lse = ToDevice(tensors.lse, c.lse().size() * 4);
    void* const on = stream_->native_handle();
    const AttentionTensors there = {.queries = queries.data(),
                                    .output = reinterpret_cast<float*>(output.data()),
                                    .lse = reinterpret_cast<float*>(lse.data())};
    ASSERT_EQ(attention.Upload(shape, plan, on), absl::OkStatus());
    ASSERT_EQ(attention.Run(PagedKv::Dense(shape, keys.data(), values.data()), there, on, &scores_),
              absl::OkStatus());
    ASSERT_EQ(stream_->Copy(CopyKind::kToHost, tensors.output, output.data(), elements * 4),
              absl::OkStatus());
    ASSERT_EQ(stream_->Copy(CopyKind::kToHost, tensors.lse, lse.data(), c.lse().size() * 4),
              absl::OkStatus());
    ASSERT_EQ(stream_->Synchronize(), absl::OkStatus());
    std::string where;
    ASSERT_LE(c.WorstError(&where), ToleranceOf(shape.dtype)) << where;

    // The weights of this layer over other values, for which the keys stand in.
    ASSERT_EQ(
        attention.ApplyWeights(PagedKv::Dense(shape, keys.data(), keys.data()), scores_, there, on),
        absl::OkStatus());
    std::vector<float> applied(elements, NAN);
    ASSERT_EQ(stream_->Copy(CopyKind::kToHost, applied.data(), output.data(), elements * 4),
              absl::OkStatus());
    ASSERT_EQ(stream_->Synchronize(), absl::OkStatus());
    PagedKv next = c.kv();
    next.values = next.keys;
    std::vector<double> expected(elements);
    std::vector<double> expected_lse(c.lse().size());
    ReferenceAttention(shape, next, tensors.queries, c.Visible(), expected.data(),
                       expected_lse.data());
    for (size_t i = 0; i < elements; ++i) {
      ASSERT_NEAR(applied[i], expected[i], ToleranceOf(shape.dtype) * (1 + std::abs(expected[i])))
          << "weights applied, element " << i;
    }
  }

  CudaAttentionScores scores_;
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<DeviceStream> stream_;
};

TEST_P(CudaAttentionTest, EqualsTheOracleOnRandomTrees) {
  constexpr uint32_t kDims[] = {64, 128, 256};
  constexpr uint32_t kPages[] = {16, 32, 64};
  constexpr uint32_t kGroups[] = {1, 2, 4, 8, 3, 64};
  constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
  CudaAttention attention;
  for (uint64_t seed = 0; seed < 54; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const AttentionShape shape = ShapeOf(1 + random() % 3, kGroups[seed % 6], kDims[seed / 6 % 3],
                                         kPages[random() % 3], kDTypes[seed / 18]);
    ForestMaker maker(shape.page_tokens);
    for (size_t i = 0; i < 2; ++i)
      GrowRandomTree(random, maker, kNoForestNode,
                     {.depth = 3, .max_tokens = 199, .max_queries = 6});
    maker.Sequence(maker.Node(kNoForestNode, 33));
    AttentionCase c(shape, maker.forest(), maker.page_count(), seed);
    AttentionPlannerOptions options;
    options.shape = shape;
    const auto planner = MakeAttentionPlanner(GetParam(), options);
    ASSERT_TRUE(planner.ok()) << planner.status();
    ExpectRight(c, (*planner)->Plan(c.forest()), attention);
    if (HasFailure()) return;
  }
}

TEST_P(CudaAttentionTest, EqualsTheOracleOnALongSharedPrefix) {
  const AttentionShape shape = ShapeOf(2, 4, 128, 16, DType::kFloat16);
  ForestMaker maker(shape.page_tokens);
  const ForestNode system = maker.Node(kNoForestNode, 3001);
  for (int i = 0; i < 40; ++i) maker.Sequence(maker.Node(system, 1 + 7 * i));
  AttentionCase c(shape, maker.forest(), maker.page_count(), 11);
  AttentionPlannerOptions options;
  options.shape = shape;
  const auto planner = *MakeAttentionPlanner(GetParam(), options);
  CudaAttention attention;
  ExpectRight(c, planner->Plan(c.forest()), attention);
}

INSTANTIATE_TEST_SUITE_P(Planners, CudaAttentionTest, ::testing::ValuesIn(AttentionPlannerNames()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace turnkeep::testing
