// Restores that do not pay are declined: whole, or from the token on where they stop paying.
#include "store/admission.h"

#include <vector>

#include <gtest/gtest.h>

namespace turnkeep {
namespace {

using Piece = Admission::Piece;

constexpr int64_t kSecond = 1'000'000'000;
constexpr uint64_t kMegabyte = 1'000'000;

// Chunks of 100 tokens and 100 MB: at 1,000 tokens a second to prefill, 100 ms each.
std::vector<Piece> Pieces(int host, int disk) {
  std::vector<Piece> pieces(static_cast<size_t>(host), {100, 100 * kMegabyte, Tier::kHost});
  pieces.resize(static_cast<size_t>(host + disk), {100, 100 * kMegabyte, Tier::kDisk});
  return pieces;
}

class AdmissionTest : public testing::Test {
 protected:
  void DiskDoes(double megabytes_per_s) {
    const auto ns = static_cast<int64_t>(4000 / megabytes_per_s * 1e9);
    admission_.NoteRead(0, 4000 * kMegabyte, ns, now_ns_);
  }
  Admission::Verdict Judge(const std::vector<Piece>& pieces) {
    return admission_.Judge(0, 0, pieces, now_ns_);
  }
  Admission admission_;
  int64_t now_ns_ = kSecond;
};

TEST_F(AdmissionTest, NothingIsDeclinedUnlessTheEngineHasSaidItsSpeed) {
  DiskDoes(1);
  const auto verdict = Judge(Pieces(1, 3));
  EXPECT_EQ(verdict.tokens, 400u);
  EXPECT_EQ(verdict.declined, 0u);
  EXPECT_EQ(verdict.prefill_s, 0);
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000});
  EXPECT_GT(Judge(Pieces(1, 3)).declined, 0u);
  admission_.SetEngine(0, 0, {});
  EXPECT_EQ(Judge(Pieces(1, 3)).declined, 0u) << "taken back";
}

TEST_F(AdmissionTest, NothingIsDeclinedBeforeTheDiskIsMeasured) {
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1e9});
  EXPECT_EQ(Judge(Pieces(0, 5)).declined, 0u);
}

TEST_F(AdmissionTest, AFastEnoughDiskIsRead) {
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000});
  DiskDoes(1001);
  EXPECT_EQ(Judge(Pieces(0, 5)).declined, 0u);
  EXPECT_NEAR(Judge(Pieces(0, 5)).load_s, 0.4995, 0.0001);
  EXPECT_DOUBLE_EQ(Judge(Pieces(0, 5)).prefill_s, 0.5);
}

TEST_F(AdmissionTest, ASlowDiskIsDeclinedWhole) {
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000});
  DiskDoes(500);
  const auto verdict = Judge(Pieces(0, 5));
  EXPECT_EQ(verdict.tokens, 0u);
  EXPECT_EQ(verdict.declined, 500u);
  EXPECT_NEAR(verdict.declined_load_s, 1.0, 1e-6);
  EXPECT_NEAR(verdict.declined_prefill_s, 0.5, 1e-6);
}

TEST_F(AdmissionTest, WhatIsInHostMemoryStaysAndTheRestIsDeclined) {
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000});
  DiskDoes(500);
  const auto verdict = Judge(Pieces(3, 2));
  EXPECT_EQ(verdict.tokens, 300u);
  EXPECT_EQ(verdict.declined, 200u);
  EXPECT_NEAR(verdict.declined_load_s, 0.4, 1e-6);
  EXPECT_NEAR(verdict.declined_prefill_s, 0.2, 1e-6);
}

// The disk needs twice as long as prefilling from the start of a context. With attention a token at
// 2,000 takes three times as long as the first, so that 2,000 tokens take as long as they load.
TEST_F(AdmissionTest, ALongContextIsDearerToPrefillThanItsLength) {
  DiskDoes(500);
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000});
  EXPECT_EQ(Judge(Pieces(0, 30)).tokens, 0u);
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000, .prefill_half_speed_tokens = 1000});
  EXPECT_EQ(Judge(Pieces(0, 19)).tokens, 0u);
  EXPECT_EQ(Judge(Pieces(0, 21)).tokens, 2100u);
  EXPECT_EQ(Judge(Pieces(0, 30)).tokens, 3000u);
  EXPECT_DOUBLE_EQ(Judge(Pieces(0, 30)).prefill_s, 3 + 4.5);
}

TEST_F(AdmissionTest, DeclinedTokensAreToldWithWhatPrefillingThemBehindTheOthersTakes) {
  DiskDoes(500);
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000, .prefill_half_speed_tokens = 1000});
  const auto verdict = Judge(Pieces(3, 2));
  EXPECT_EQ(verdict.tokens, 300u);
  EXPECT_NEAR(verdict.declined_load_s, 0.4, 1e-6);
  EXPECT_NEAR(verdict.prefill_s, 0.5 + 0.125, 1e-9);
  EXPECT_NEAR(verdict.declined_prefill_s, 0.2 + 0.125 - 0.045, 1e-9);
}

// Tokens of 3 MB do not pay, those of 0.1 MB do; what is behind the dear ones would not make good
// for them, or would.
TEST_F(AdmissionTest, DearPiecesAreTakenIfWhatFollowsMakesGoodForThem) {
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000});
  DiskDoes(1000);
  const Piece cheap{100, 10 * kMegabyte, Tier::kDisk};
  const Piece dear{100, 300 * kMegabyte, Tier::kDisk};
  EXPECT_EQ(Judge({cheap, dear}).tokens, 100u);
  EXPECT_EQ(Judge({cheap, dear, cheap}).tokens, 100u);
  EXPECT_EQ(Judge({cheap, dear, cheap, cheap, cheap}).tokens, 500u);
}

TEST_F(AdmissionTest, ASlowCopyIsDeclinedToo) {
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000, .copy_bytes_per_s = 500e6});
  EXPECT_EQ(Judge(Pieces(4, 0)).tokens, 0u);
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000, .copy_bytes_per_s = 2000e6});
  EXPECT_EQ(Judge(Pieces(4, 0)).tokens, 400u);
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000});
  admission_.SetCopyRate(500e6);
  EXPECT_EQ(Judge(Pieces(4, 0)).tokens, 0u) << "the machine's own rate, as long as none is told";
}

TEST_F(AdmissionTest, AMeasurementAMinuteOldDeclinesNothing) {
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000});
  DiskDoes(10);
  now_ns_ += Admission::kMeasuredForNs;
  EXPECT_EQ(Judge(Pieces(0, 5)).tokens, 0u);
  ++now_ns_;
  EXPECT_EQ(Judge(Pieces(0, 5)).tokens, 500u) << "the next one measures";
  EXPECT_GT(Judge(Pieces(0, 5)).load_s, 1) << "and is told what it may take";
  admission_.NoteRead(0, 1000, 1, now_ns_);
  EXPECT_GT(admission_.DiskRate(0), 1e11) << "the slow past is forgotten";
}

TEST_F(AdmissionTest, SmallReadsDoNotPassForTheRateOfLargeOnes) {
  DiskDoes(2000);
  for (int i = 0; i < 20; ++i) admission_.NoteRead(0, 100'000, kSecond / 1000, now_ns_);
  EXPECT_GT(admission_.DiskRate(0), 1900e6);
  DiskDoes(100);
  EXPECT_NEAR(admission_.DiskRate(0), 100e6, 10e6) << "what is old fades";
}

TEST_F(AdmissionTest, LayoutsAndTenantsAreApart) {
  admission_.SetEngine(0, 0, {.prefill_tokens_per_s = 1000});
  DiskDoes(10);
  EXPECT_EQ(admission_.DiskRate(1), 0);
  EXPECT_EQ(admission_.Judge(1, 0, Pieces(0, 5), now_ns_).tokens, 500u);
  admission_.SetEngine(0, 1, {.prefill_tokens_per_s = 1000});
  EXPECT_EQ(admission_.Judge(0, 1, Pieces(0, 5), now_ns_).tokens, 500u);
}

}  // namespace
}  // namespace turnkeep
