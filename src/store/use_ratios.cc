#include "store/use_ratios.h"

#include <bit>
#include <cstddef>

namespace turnkeep {

namespace {

// What is believed before anything is seen, that all are alike, counts as much as so many uses. A
// turn has some five samples of one fate: four turns.
constexpr float kLevelPriorUses = 20;
// Each begins with what the last fit found.
constexpr uint32_t kSweeps = 2;

}  // namespace

UseRatios::UseRatios(const Levels& level_counts) : level_counts_(level_counts) {
  uint32_t cells = 1;
  for (uint32_t factor = 0; factor < kFactors; ++factor) {
    cells *= level_counts[factor];
    ratios_[factor].assign(level_counts[factor], 1);
  }
  cells_.resize(cells);
  touched_.resize(cells / 64 + 1);
}

void UseRatios::Fade() {
  for (Cell& cell : cells_) cell = {cell.used / 2, cell.expected / 2};
}

UseRatios::Levels UseRatios::LevelsOf(uint32_t cell) const {
  Levels levels;
  for (uint32_t factor = kFactors; factor-- > 0; cell /= level_counts_[factor]) {
    levels[factor] = static_cast<uint8_t>(cell % level_counts_[factor]);
  }
  return levels;
}

float UseRatios::Product(const Levels& levels) const {
  float product = 1;
  for (uint32_t factor = 0; factor < kFactors; ++factor) product *= ratios_[factor][levels[factor]];
  return product;
}

// The ratios of a factor that give each of its levels as many uses as were seen.
void UseRatios::FitFactor(uint32_t factor) {
  std::vector<float>& ratios = ratios_[factor];
  std::vector<float> used(ratios.size(), kLevelPriorUses);
  std::vector<float> expected(ratios.size(), kLevelPriorUses);
  for (const Seen& seen : seen_) {
    const uint8_t level = seen.levels[factor];
    used[level] += cells_[seen.cell].used;
    expected[level] += cells_[seen.cell].expected * seen.product / ratios[level];
  }
  for (size_t level = 0; level < ratios.size(); ++level) {
    ratios[level] = used[level] / expected[level];
  }
  for (Seen& seen : seen_) seen.product = Product(seen.levels);
}

void UseRatios::Fit() {
  seen_.clear();
  for (uint32_t word = 0; word < touched_.size(); ++word) {
    for (uint64_t bits = touched_[word]; bits != 0; bits &= bits - 1) {
      const uint32_t cell = word * 64 + static_cast<uint32_t>(std::countr_zero(bits));
      const Levels levels = LevelsOf(cell);
      seen_.push_back({cell, levels, Product(levels)});
    }
  }
  for (uint32_t sweep = 0; sweep < kSweeps; ++sweep) {
    for (uint32_t factor = 0; factor < kFactors; ++factor) FitFactor(factor);
  }
}

}  // namespace turnkeep
