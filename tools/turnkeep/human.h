// Numbers for people. Everything here is for display; JSON output carries plain numbers.
//
// Thread-safe: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace turnkeep {

std::string HumanCount(uint64_t count);  // "1,048,576"
std::string HumanBytes(uint64_t bytes);  // "0 B", "512 B", "1.5 KiB", "63.0 GiB"
std::string HumanSeconds(
    double seconds);  // "850 us", "12 ms", "3.2 s", "5 min", "2 h 5 min", "3 d"
std::string HumanAgo(int64_t then_unix_s, int64_t now_unix_s);  // "now", "3 min ago"; 0: "never"
std::string HumanIn(int64_t then_unix_s, int64_t now_unix_s);   // "in 3 min", "due"; 0: "never"
std::string HumanShare(uint64_t part, uint64_t whole);          // "37%", "-" of nothing

// Columns that `text` takes in a terminal. Bytes that are not UTF-8 take one each.
size_t DisplayWidth(std::string_view text);
// `text` with control characters and broken UTF-8 replaced, so that nothing stored can
// steer the terminal it is shown in.
std::string Printable(std::string_view text);

}  // namespace turnkeep
