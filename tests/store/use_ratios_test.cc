// Ratios of several factors, fitted to what was seen of their combinations.
#include "store/use_ratios.h"

#include <gtest/gtest.h>

namespace turnkeep {
namespace {

constexpr UseRatios::Levels kTwoByThree = {2, 3, 1, 1, 1, 1, 1};
uint32_t CellOf(uint32_t first, uint32_t second) { return first * 3 + second; }

void Show(UseRatios& ratios, uint32_t cell, float expected, uint32_t used) {
  ratios.Expected(cell, expected);
  for (uint32_t i = 0; i < used; ++i) ratios.Used(cell);
}

// The second factor's level 2 goes with the first's level 1, which alone makes uses likelier.
TEST(UseRatios, WhatGoesTogetherIsNotCountedTwice) {
  UseRatios ratios(kTwoByThree);
  Show(ratios, CellOf(0, 0), 9000, 9000);
  Show(ratios, CellOf(0, 2), 1000, 1000);
  Show(ratios, CellOf(1, 0), 1000, 4000);
  Show(ratios, CellOf(1, 2), 9000, 36'000);
  for (int i = 0; i < 20; ++i) ratios.Fit();
  EXPECT_NEAR(ratios.Ratio(CellOf(0, 2)) / ratios.Ratio(CellOf(0, 0)), 1, 0.05);
  EXPECT_NEAR(ratios.Ratio(CellOf(1, 0)) / ratios.Ratio(CellOf(0, 0)), 4, 0.2);
}

// Of a combination that was never seen, what its levels say.
TEST(UseRatios, ANewCombinationIsTheProductOfItsLevels) {
  UseRatios ratios(kTwoByThree);
  Show(ratios, CellOf(0, 0), 5000, 5000);
  Show(ratios, CellOf(1, 0), 5000, 10'000);
  Show(ratios, CellOf(0, 1), 5000, 15'000);
  for (int i = 0; i < 20; ++i) ratios.Fit();
  EXPECT_NEAR(ratios.Ratio(CellOf(1, 1)) / ratios.Ratio(CellOf(0, 0)), 6, 0.5);
}

TEST(UseRatios, LittleExperienceMovesLittleAndOldIsForgotten) {
  UseRatios ratios(kTwoByThree);
  EXPECT_EQ(ratios.Ratio(CellOf(1, 1)), 1);
  Show(ratios, CellOf(1, 1), 1, 3);
  ratios.Fit();
  EXPECT_LT(ratios.Ratio(CellOf(1, 1)), 2);
  Show(ratios, CellOf(1, 1), 1000, 4000);
  for (int i = 0; i < 20; ++i) ratios.Fit();
  EXPECT_NEAR(ratios.Ratio(CellOf(1, 1)), 4, 0.4);
  for (int i = 0; i < 20; ++i) ratios.Fade();
  for (int i = 0; i < 20; ++i) ratios.Fit();
  EXPECT_NEAR(ratios.Ratio(CellOf(1, 1)), 1, 0.05);
}

}  // namespace
}  // namespace turnkeep
