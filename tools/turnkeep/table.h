// Aligned tables for people. Cells are made printable and measured in terminal columns.
//
//   Table table({{"SESSION"}, {"TOKENS", Align::kRight}});
//   table.AddRow({"alice", "70"});
//   out += table.Render(style);
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace turnkeep {

// Terminal colours; all empty unless the output is a terminal.
struct Style {
  std::string_view bold, red, yellow, dim, reset;

  static Style Plain() { return {}; }
  static Style Terminal() {
    return {.bold = "\x1b[1m",
            .red = "\x1b[31m",
            .yellow = "\x1b[33m",
            .dim = "\x1b[2m",
            .reset = "\x1b[0m"};
  }
};

enum class Align { kLeft, kRight };

struct Column {
  std::string title;
  Align align = Align::kLeft;
};

class Table {
 public:
  explicit Table(std::vector<Column> columns);

  // As many cells as there are columns.
  void AddRow(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  // Lines that end in '\n', without trailing spaces, two spaces between columns. Columns
  // in which no row has anything are left out.
  std::string Render(const Style& style) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// "name:   value" lines, values aligned.
class Fields {
 public:
  void Add(std::string name, std::string value);
  std::string Render(const Style& style) const;

 private:
  std::vector<std::pair<std::string, std::string>> fields_;
};

}  // namespace turnkeep
