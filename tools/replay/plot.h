// Line charts as SVG files, without any library: hit rate against capacity with one line a
// policy, and the distribution of TTFT.
//
// Thread-safe: pure functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace turnkeep::replay {

struct Line {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x ascending
};

struct Chart {
  std::string title;
  std::string x_label, y_label;
  bool log_x = false;  // x above 0
  std::vector<Line> lines;
};

// All charts in one file, one below the other. Charts without points are left out.
std::string RenderSvg(const std::vector<Chart>& charts);

// Share of `values` that are not above x, at `steps` evenly spaced shares.
Line CumulativeLine(const std::string& name, std::vector<float> values, size_t steps = 200);

}  // namespace turnkeep::replay
