#include "human.h"

#include <locale.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <cwchar>

#include <fmt/format.h>

namespace turnkeep {
namespace {

// Reads one code point of `text` at `*at` and moves on; U+FFFD for a byte that starts none.
char32_t NextCodePoint(std::string_view text, size_t* at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte((*at)++);
  if (lead < 0x80) return lead;
  const int extra = lead >= 0xF0 && lead < 0xF5 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC2 ? 1 : 0;
  if (extra == 0 || lead >= 0xF5 || *at + extra > text.size()) return 0xFFFD;
  char32_t point = lead & (0x3F >> extra);
  for (int i = 0; i < extra; ++i) {
    if ((byte(*at + i) & 0xC0) != 0x80) return 0xFFFD;
    point = (point << 6) | (byte(*at + i) & 0x3F);
  }
  constexpr std::array<char32_t, 4> kSmallest = {0, 0x80, 0x800, 0x10000};
  if (point < kSmallest[extra] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) {
    return 0xFFFD;
  }
  *at += extra;
  return point;
}

int WidthOf(char32_t point) {
  // Tables of widths are the C library's; the program's own locale may not be UTF-8.
  static const locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", locale_t{});
  if (utf8 == locale_t{}) return 1;
  const locale_t old = uselocale(utf8);
  const int width = wcwidth(static_cast<wchar_t>(point));
  uselocale(old);
  return width < 0 ? 1 : width;
}

}  // namespace

std::string HumanCount(uint64_t count) {
  std::string text = std::to_string(count);
  for (size_t at = text.size(); at > 3; at -= 3) text.insert(at - 3, ",");
  return text;
}

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  constexpr std::array<const char*, 6> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  // 1023.95 would print as 1024.0 of the smaller unit.
  while (value >= 1023.95 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string HumanSeconds(double seconds) {
  if (!(seconds > 0)) return "0 s";
  if (seconds < 0.9995e-3) return fmt::format("{:.0f} us", std::ceil(seconds * 1e6));
  if (seconds < 0.9995) return fmt::format("{:.{}f} ms", seconds * 1e3, seconds < 0.00995 ? 1 : 0);
  if (seconds < 59.95) {
    const bool whole = seconds == std::floor(seconds);
    return fmt::format("{:.{}f} s", seconds, seconds < 9.95 && !whole ? 1 : 0);
  }
  if (seconds > 1e15) return "forever";
  const auto minutes = static_cast<uint64_t>(std::llround(seconds / 60));
  if (minutes < 60) return fmt::format("{} min", minutes);
  const uint64_t hours = minutes / 60;
  if (hours < 48) {
    return minutes % 60 == 0 ? fmt::format("{} h", hours)
                             : fmt::format("{} h {} min", hours, minutes % 60);
  }
  const uint64_t rest_hours = hours % 24;
  return rest_hours == 0 || hours > 240 ? fmt::format("{} d", (hours + 12) / 24)
                                        : fmt::format("{} d {} h", hours / 24, rest_hours);
}

std::string HumanAgo(int64_t then_unix_s, int64_t now_unix_s) {
  if (then_unix_s == 0) return "never";
  if (then_unix_s >= now_unix_s) return "now";
  return HumanSeconds(static_cast<double>(now_unix_s - then_unix_s)) + " ago";
}

std::string HumanIn(int64_t then_unix_s, int64_t now_unix_s) {
  if (then_unix_s == 0) return "never";
  if (then_unix_s <= now_unix_s) return "due";
  return "in " + HumanSeconds(static_cast<double>(then_unix_s - now_unix_s));
}

std::string HumanShare(uint64_t part, uint64_t whole) {
  if (whole == 0) return "-";
  // Rounded down, so that 100% is all of it; what is there is never 0%.
  const auto percent =
      static_cast<uint64_t>(100.0 * static_cast<double>(part) / static_cast<double>(whole));
  if (part >= whole) return "100%";
  return percent == 0 && part > 0 ? "<1%" : fmt::format("{}%", std::min<uint64_t>(percent, 99));
}

size_t DisplayWidth(std::string_view text) {
  size_t width = 0;
  for (size_t at = 0; at < text.size();) width += WidthOf(NextCodePoint(text, &at));
  return width;
}

std::string Printable(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t point = NextCodePoint(text, &at);
    const bool replaced = point == 0xFFFD && at == begin + 1;
    const bool control = point < 0x20 || (point >= 0x7F && point < 0xA0);
    const bool reorders =
        (point >= 0x202A && point <= 0x202E) || (point >= 0x2066 && point <= 0x2069);
    if (replaced || control || reorders) {
      out += "\uFFFD";
    } else {
      out += text.substr(begin, at - begin);
    }
  }
  return out;
}

}  // namespace turnkeep
