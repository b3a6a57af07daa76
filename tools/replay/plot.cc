#include "plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

namespace turnkeep::replay {
namespace {

constexpr double kWidth = 720, kHeight = 400;
constexpr double kLeft = 70, kRight = 190, kTop = 40, kBottom = 50;
// Told apart also by those who do not see red and green (Okabe and Ito).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#000000", "#999933"};
// Of lines that lie on one another each shows in the gaps of those after it.
constexpr const char* kDashes[] = {"", "12 3", "8 4", "5 5", "3 6", "10 3 2 3"};

std::string Escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else
      out += c;
  }
  return out;
}

struct Axis {
  double low = 0, high = 1;
  bool log = false;

  double Share(double value) const {
    const double at = log ? std::log10(value) : value;
    return high > low ? (at - low) / (high - low) : 0.5;
  }
};

// Steps of 1, 2 or 5 times a power of ten, about six of them.
double StepOf(double range) {
  const double raw = range / 6;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (raw <= factor * power) return factor * power;
  }
  return 10 * power;
}

Axis AxisOf(double low, double high, bool log) {
  Axis axis{.low = low, .high = high, .log = log};
  if (log) {
    axis.low = std::log10(low);
    axis.high = std::log10(high);
  }
  return axis;
}

std::vector<double> Ticks(const Axis& axis) {
  std::vector<double> ticks;
  if (axis.high <= axis.low) return {axis.log ? std::pow(10, axis.low) : axis.low};
  if (axis.log) {
    for (double power = std::floor(axis.low); power <= axis.high; ++power) {
      for (const double factor : {1.0, 2.0, 5.0}) {
        const double value = factor * std::pow(10, power);
        if (axis.Share(value) >= -1e-9 && axis.Share(value) <= 1 + 1e-9) ticks.push_back(value);
      }
    }
    return ticks;
  }
  const double step = StepOf(axis.high - axis.low);
  for (double value = std::ceil(axis.low / step) * step; value <= axis.high + step * 1e-6;
       value += step) {
    ticks.push_back(std::abs(value) < step * 1e-6 ? 0 : value);
  }
  return ticks;
}

std::string Text(double x, double y, const char* anchor, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     Escape(text));
}

// The same name has the same look in every chart.
using Names = std::vector<std::string>;
size_t PlaceOf(const std::string& name, Names* names) {
  const auto at = std::find(names->begin(), names->end(), name);
  const auto place = static_cast<size_t>(at - names->begin());
  if (at == names->end()) names->push_back(name);
  return place;
}

std::string StrokeOf(size_t place) {
  const char* dashes = kDashes[place % std::size(kDashes)];
  return fmt::format("fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}",
                     kColours[place % std::size(kColours)],
                     *dashes == 0 ? "" : fmt::format(" stroke-dasharray=\"{}\"", dashes));
}

// The points themselves, where they are few, and the line between them.
std::string DrawLine(const std::vector<std::pair<double, double>>& points, size_t place) {
  constexpr size_t kFewPoints = 24;
  std::string out, joined;
  for (const auto& [x, y] : points) {
    joined += fmt::format("{:.1f},{:.1f} ", x, y);
    if (points.size() <= kFewPoints) {
      out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", x, y,
                         kColours[place % std::size(kColours)]);
    }
  }
  return out + fmt::format("<polyline points=\"{}\" {}/>\n", joined, StrokeOf(place));
}

std::string Draw(const Chart& chart, double top, Names* names) {
  double x_low = std::numeric_limits<double>::max(), x_high = -x_low, y_high = -x_low;
  for (const Line& line : chart.lines) {
    for (const auto& [x, y] : line.points) {
      x_low = std::min(x_low, x);
      x_high = std::max(x_high, x);
      y_high = std::max(y_high, y);
    }
  }
  const Axis x_axis = AxisOf(x_low, x_high, chart.log_x && x_low > 0);
  const Axis y_axis = AxisOf(0, y_high > 0 ? y_high : 1, false);
  const double width = kWidth - kLeft - kRight, height = kHeight - kTop - kBottom;
  const auto at_x = [&](double x) { return kLeft + width * x_axis.Share(x); };
  const auto at_y = [&](double y) { return top + kTop + height * (1 - y_axis.Share(y)); };
  std::string out = fmt::format(
      "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#888\"/>\n", kLeft,
      top + kTop, width, height);
  out += Text(kLeft + width / 2, top + 24, "middle", chart.title);
  out += Text(kLeft + width / 2, top + kHeight - 10, "middle", chart.x_label);
  out += Text(8, top + 24, "start", chart.y_label);
  for (const double tick : Ticks(x_axis)) {
    out += fmt::format("<path d=\"M{:.1f} {:.1f}v{:.1f}\" stroke=\"#ddd\"/>\n", at_x(tick),
                       top + kTop, height);
    out += Text(at_x(tick), top + kHeight - 32, "middle", fmt::format("{:.6g}", tick));
  }
  for (const double tick : Ticks(y_axis)) {
    out += Text(kLeft - 6, at_y(tick) + 4, "end", fmt::format("{:.6g}", tick));
    out += fmt::format("<path d=\"M{:.1f} {:.1f}h{:.1f}\" stroke=\"#ddd\"/>\n", kLeft, at_y(tick),
                       width);
  }
  for (size_t i = 0; i < chart.lines.size(); ++i) {
    const size_t place = PlaceOf(chart.lines[i].name, names);
    std::vector<std::pair<double, double>> points;
    for (const auto& [x, y] : chart.lines[i].points) points.emplace_back(at_x(x), at_y(y));
    out += DrawLine(points, place);
    const double y = top + kTop + 14 + 18 * static_cast<double>(i);
    out += fmt::format("<path d=\"M{:.1f} {:.1f}h34\" {}/>\n", kWidth - kRight + 12, y - 4,
                       StrokeOf(place));
    out += Text(kWidth - kRight + 52, y, "start", chart.lines[i].name);
  }
  return out;
}

}  // namespace

std::string RenderSvg(const std::vector<Chart>& charts) {
  std::string body;
  Names names;
  double top = 0;
  for (const Chart& chart : charts) {
    const bool empty = std::all_of(chart.lines.begin(), chart.lines.end(),
                                   [](const Line& line) { return line.points.empty(); });
    if (empty) continue;
    body += Draw(chart, top, &names);
    top += kHeight;
  }
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
      "viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{2}</svg>\n",
      kWidth, top, body);
}

Line CumulativeLine(const std::string& name, std::vector<float> values, size_t steps) {
  Line line{.name = name, .points = {}};
  if (values.empty()) return line;
  std::sort(values.begin(), values.end());
  for (size_t i = 0; i <= steps; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(steps);
    const auto rank = static_cast<size_t>(share * static_cast<double>(values.size() - 1));
    line.points.emplace_back(values[rank], share);
  }
  return line;
}

}  // namespace turnkeep::replay
