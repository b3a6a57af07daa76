// What engines say of their page pools: shown with sessions and explanations, forgotten with the
// engine, and of no effect on anything else.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "core/status.h"
#include "core/units.h"
#include "store/store.h"
#include "testing/layouts.h"
#include "testing/memory_kv_store.h"

namespace turnkeep::testing {
namespace {

std::vector<uint32_t> Tokens(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  std::vector<uint32_t> tokens(count);
  for (uint32_t& token : tokens) token = static_cast<uint32_t>(random() % 32'000);
  return tokens;
}

class GpuResidencyTest : public ::testing::Test {
 protected:
  GpuResidencyTest()
      : store_(Store::Open({.host_bytes = 64 * kMiB, .host_segment_bytes = 4 * kMiB}).value()),
        kv_(store_->ForTenant("one").value()),
        layout_(kv_->RegisterLayout(SmallLayout(2, 16)).value()) {}

  std::vector<GpuChunk> Save(const std::string& session, const std::vector<uint32_t>& tokens) {
    EXPECT_TRUE(SaveTokens(*kv_, session, layout_, tokens, 0).ok());
    std::vector<GpuChunk> chunks;
    const SessionDetail detail = kv_->ShowSession(session).value();
    for (const SessionSpan& span : detail.spans) chunks.push_back({span.chunk, 100});
    return chunks;
  }

  std::unique_ptr<Store> store_;
  std::unique_ptr<KvStore> kv_;
  Fingerprint layout_;
};

TEST_F(GpuResidencyTest, IsShownByListShowAndExplainUntilTheEngineGoes) {
  auto chunks = Save("s", Tokens(1, 70));  // 4 chunks and a tail
  Save("other", Tokens(2, 40));
  ASSERT_EQ(chunks.size(), 5u);
  chunks.resize(3);
  const TenantNumber tenant = store_->OpenTenant("one").value();
  auto engine = store_->OpenGpuEngine(tenant, "engine-a", 4711);
  ASSERT_TRUE(engine->Report(chunks).ok());

  const auto list = kv_->ListSessions({}).value();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].gpu_bytes, 0u);
  EXPECT_EQ(list[1].gpu_bytes, 300u);
  const SessionDetail detail = kv_->ShowSession("s").value();
  EXPECT_EQ(detail.spans[2].gpu_engines, 1u);
  EXPECT_EQ(detail.spans[3].gpu_engines, 0u);
  const Explanation explanation = kv_->Explain({.session = "s"}).value();
  ASSERT_EQ(explanation.gpu.size(), 1u);
  EXPECT_EQ(explanation.gpu[0].engine, "engine-a");
  EXPECT_EQ(explanation.gpu[0].pid, 4711);
  EXPECT_EQ(explanation.gpu[0].token_count, 48u);
  EXPECT_EQ(explanation.gpu[0].chunk_count, 3u);
  EXPECT_EQ(explanation.gpu[0].bytes, 300u);

  // The next report takes the place of the one before.
  ASSERT_TRUE(engine->Report(std::span(chunks).first(1)).ok());
  EXPECT_EQ(kv_->StatSession("s")->gpu_bytes, 100u);
  engine.reset();
  EXPECT_EQ(kv_->StatSession("s")->gpu_bytes, 0u);
  EXPECT_TRUE(kv_->Explain({.session = "s"})->gpu.empty());
}

TEST_F(GpuResidencyTest, EnginesAreToldApartAndBytesCountOnce) {
  const auto chunks = Save("s", Tokens(3, 64));
  const TenantNumber tenant = store_->OpenTenant("one").value();
  const auto a = store_->OpenGpuEngine(tenant, "a", 1);
  const auto b = store_->OpenGpuEngine(tenant, "b", 2);
  ASSERT_TRUE(a->Report(chunks).ok());
  ASSERT_TRUE(b->Report(std::span(chunks).first(2)).ok());
  EXPECT_EQ(kv_->StatSession("s")->gpu_bytes, 400u);
  const Explanation explanation = kv_->Explain({.session = "s"}).value();
  ASSERT_EQ(explanation.gpu.size(), 2u);
  EXPECT_EQ(explanation.gpu[1].token_count, 32u);
  EXPECT_EQ(kv_->ShowSession("s")->spans[0].gpu_engines, 2u);
}

// Chunks that two parts of a truncated session share are counted once.
TEST_F(GpuResidencyTest, ATruncatedSessionCountsAChunkOnce) {
  const auto chunks = Save("s", Tokens(4, 64));
  ASSERT_TRUE(kv_->ReportGpuResidency(chunks).ok());
  ASSERT_TRUE(kv_->TruncateSession({.session = "s", .drop_begin = 4, .drop_end = 8}).ok());
  EXPECT_EQ(kv_->StatSession("s")->gpu_bytes, 400u);
  const Explanation explanation = kv_->Explain({.session = "s"}).value();
  ASSERT_EQ(explanation.gpu.size(), 1u);
  EXPECT_EQ(explanation.gpu[0].chunk_count, 4u);
  EXPECT_EQ(explanation.gpu[0].bytes, 400u);
  EXPECT_EQ(explanation.gpu[0].token_count, 60u);
  EXPECT_EQ(explanation.gpu[0].engine, "embedded");
}

TEST_F(GpuResidencyTest, AnotherTenantsReportShowsNothing) {
  const auto chunks = Save("s", Tokens(5, 64));
  const auto stranger = store_->ForTenant("two").value();
  ASSERT_TRUE(stranger->ReportGpuResidency(chunks).ok());
  EXPECT_EQ(kv_->StatSession("s")->gpu_bytes, 0u);
  EXPECT_TRUE(kv_->Explain({.session = "s"})->gpu.empty());
}

// Neither a restore nor a save relies on what an engine says it has.
TEST_F(GpuResidencyTest, IsNeverASourceOfBytes) {
  const auto tokens = Tokens(6, 64);
  const auto chunks = Save("s", tokens);
  ASSERT_TRUE(kv_->ReportGpuResidency(chunks).ok());
  ASSERT_TRUE(kv_->DropSession("s").ok());
  const auto restore = kv_->BeginRestore({.prompt = {.tokens = tokens}, .layout = layout_}).value();
  EXPECT_EQ(restore->token_count(), 0u);
  const Explanation explanation =
      kv_->Explain({.prompt = {.tokens = tokens}, .layout = layout_}).value();
  EXPECT_EQ(explanation.restorable_tokens, 0u);
  const auto save =
      kv_->BeginSave({.session = "s", .layout = layout_, .prompt = {.tokens = tokens}}).value();
  EXPECT_EQ(save->known_tokens(), 0u);
  EXPECT_EQ(save->chunks().size(), 4u);
  EXPECT_EQ(save->chunks()[0].chunk, chunks[0].chunk);
}

TEST_F(GpuResidencyTest, AReportHasABound) {
  const std::vector<GpuChunk> many(kMaxGpuChunks + 1);
  EXPECT_EQ(kv_->ReportGpuResidency(many).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace turnkeep::testing
