#include "table.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "human.h"

namespace turnkeep {
namespace {

void TrimRight(std::string* line) { line->erase(line->find_last_not_of(' ') + 1); }

std::string Padded(const std::string& cell, size_t width, Align align) {
  const size_t have = DisplayWidth(cell);
  const std::string space(width > have ? width - have : 0, ' ');
  return align == Align::kRight ? space + cell : cell + space;
}

}  // namespace

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Table::AddRow(std::vector<std::string> cells) {
  TK_CHECK(cells.size() == columns_.size());
  for (std::string& cell : cells) cell = Printable(cell);
  rows_.push_back(std::move(cells));
}

std::string Table::Render(const Style& style) const {
  std::vector<size_t> widths(columns_.size());  // 0: the column is left out
  for (size_t c = 0; c < columns_.size(); ++c) {
    for (const auto& row : rows_) widths[c] = std::max(widths[c], DisplayWidth(row[c]));
    if (widths[c] > 0) widths[c] = std::max(widths[c], DisplayWidth(columns_[c].title));
  }
  const auto render_line = [&](auto cell_of) {
    std::string line;
    for (size_t c = 0; c < columns_.size(); ++c) {
      if (widths[c] == 0) continue;
      if (!line.empty()) line += "  ";
      line += Padded(cell_of(c), widths[c], columns_[c].align);
    }
    TrimRight(&line);
    return line;
  };
  if (rows_.empty()) return "";
  std::string out;
  out += style.bold;
  out += render_line([&](size_t c) { return columns_[c].title; });
  out += style.reset;
  out += '\n';
  for (const auto& row : rows_) out += render_line([&](size_t c) { return row[c]; }) + "\n";
  return out;
}

void Fields::Add(std::string name, std::string value) {
  fields_.emplace_back(std::move(name), Printable(value));
}

std::string Fields::Render(const Style& style) const {
  size_t width = 0;
  for (const auto& [name, value] : fields_) width = std::max(width, DisplayWidth(name) + 1);
  std::string out;
  for (const auto& [name, value] : fields_) {
    std::string line = Padded(name + ":", width, Align::kLeft) + "  " + value;
    TrimRight(&line);
    out += style.bold;
    out += line.substr(0, name.size() + 1);
    out += style.reset;
    out += line.substr(name.size() + 1) + "\n";
  }
  return out;
}

}  // namespace turnkeep
