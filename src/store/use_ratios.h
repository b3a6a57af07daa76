// How much likelier than others chunks are to be used, by what is known of their last use: a
// product of one ratio for each factor (how many turns, how long a prompt, ...), after Cox's
// proportional hazards (1972).
//
// For every combination of levels, a cell, uses are counted, and those that were expected if all
// chunks were alike. The ratios are fitted to them by iterative proportional fitting (Deming and
// Stephan 1940), so that factors that go together are not counted twice.
//
// Thread-compatible; deterministic.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace turnkeep {

class UseRatios {
 public:
  static constexpr uint32_t kFactors = 7;
  using Levels = std::array<uint8_t, kFactors>;
  // How many levels each factor has, above 0.
  explicit UseRatios(const Levels& level_counts);

  void Expected(uint32_t cell, float uses) { Touch(cell).expected += uses; }
  void Used(uint32_t cell) { ++Touch(cell).used; }
  void Fade();  // halves all experience

  void Fit();
  // Of the hazards of `cell` to those of all, as of Fit. Cells are counted with the last factor's
  // levels first.
  float Ratio(uint32_t cell) const { return Product(LevelsOf(cell)); }

 private:
  struct Cell {
    float used = 0;
    float expected = 0;
  };
  struct Seen {
    uint32_t cell;
    Levels levels;
    float product;
  };
  Cell& Touch(uint32_t cell) {
    touched_[cell / 64] |= uint64_t{1} << (cell % 64);
    return cells_[cell];
  }
  Levels LevelsOf(uint32_t cell) const;
  float Product(const Levels& levels) const;
  void FitFactor(uint32_t factor);

  const Levels level_counts_;
  std::vector<Cell> cells_;
  std::vector<uint64_t> touched_;  // a bit for each cell; few of them ever are
  std::array<std::vector<float>, kFactors> ratios_;
  std::vector<Seen> seen_;  // in Fit: the cells of which anything was seen
};

}  // namespace turnkeep
