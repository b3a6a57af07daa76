#include "token_file.h"

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>

#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {
namespace {

constexpr uint64_t kMaxTokenFileBytes = kMaxSessionTokens * 16;

absl::StatusOr<std::string> ReadAll(const std::string& path) {
  struct Close {
    void operator()(FILE* file) const {
      if (file != stdin) std::fclose(file);
    }
  };
  const std::unique_ptr<FILE, Close> file(path == "-" ? stdin : std::fopen(path.c_str(), "rb"));
  if (file == nullptr) return InvalidArgument("{}: {}", path, std::strerror(errno));
  std::string bytes;
  char buffer[1 << 16];
  while (const size_t count = std::fread(buffer, 1, sizeof(buffer), file.get())) {
    bytes.append(buffer, count);
    if (bytes.size() > kMaxTokenFileBytes) {
      return InvalidArgument("{}: more than {} bytes", path, kMaxTokenFileBytes);
    }
  }
  if (std::ferror(file.get())) return InvalidArgument("{}: {}", path, std::strerror(errno));
  return bytes;
}

// Walks over the text and knows line and column.
class TextReader {
 public:
  TextReader(const std::string& name, std::string_view text) : name_(name), text_(text) {}

  bool at_end() const { return at_ == text_.size(); }
  char front() const { return text_[at_]; }
  void SkipSpace() {
    while (!at_end() && (front() == ' ' || front() == '\t' || front() == '\n' || front() == '\r')) {
      Step();
    }
  }
  void Step() {
    if (front() == '\n') {
      ++line_;
      line_begin_ = at_ + 1;
    }
    ++at_;
  }
  // InvalidArgument with the place and what stands there.
  absl::Status Expected(std::string_view what) const {
    std::string_view found = Word();
    if (found.empty()) found = text_.substr(at_, 1);
    return InvalidArgument(
        "{}: line {}, column {}: {} expected, found {}", name_, line_, at_ - line_begin_ + 1, what,
        found.empty() ? "the end of the file" : "\"" + std::string(found.substr(0, 40)) + "\"");
  }
  absl::Status ReadToken(std::vector<uint32_t>* tokens) {
    const std::string_view word = Word();
    uint32_t token = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), token);
    if (word.empty() || error != std::errc() || end != word.data() + word.size()) {
      return Expected("a token id from 0 to 4294967295 is");
    }
    if (tokens->size() == kMaxSessionTokens) {
      return InvalidArgument("{}: more than {} tokens", name_, kMaxSessionTokens);
    }
    tokens->push_back(token);
    at_ += word.size();
    return absl::OkStatus();
  }

 private:
  // The characters up to the next separator.
  std::string_view Word() const {
    const size_t end = text_.find_first_of(" \t\n\r,[]", at_);
    return text_.substr(at_, end == std::string_view::npos ? end : end - at_);
  }

  const std::string& name_;
  const std::string_view text_;
  size_t at_ = 0;
  size_t line_ = 1;
  size_t line_begin_ = 0;
};

absl::StatusOr<std::vector<uint32_t>> ParseText(const std::string& name, std::string_view text) {
  std::vector<uint32_t> tokens;
  TextReader reader(name, text);
  reader.SkipSpace();
  const bool array = !reader.at_end() && reader.front() == '[';
  if (array) {
    reader.Step();
    reader.SkipSpace();
    if (!reader.at_end() && reader.front() == ']') {
      return InvalidArgument("{}: no tokens", name);
    }
  }
  while (array || !reader.at_end()) {
    TK_RETURN_IF_ERROR(reader.ReadToken(&tokens));
    reader.SkipSpace();
    if (!array) continue;
    if (!reader.at_end() && reader.front() == ']') {
      reader.Step();
      reader.SkipSpace();
      if (!reader.at_end()) return reader.Expected("nothing after the array is");
      break;
    }
    if (reader.at_end() || reader.front() != ',') return reader.Expected("\",\" or \"]\" is");
    reader.Step();
    reader.SkipSpace();
  }
  if (tokens.empty()) return InvalidArgument("{}: no tokens", name);
  return tokens;
}

}  // namespace

absl::StatusOr<std::vector<uint32_t>> ParseTokens(const std::string& name, std::string_view bytes,
                                                  bool binary) {
  if (!binary) return ParseText(name, bytes);
  if (bytes.size() % sizeof(uint32_t) != 0) {
    return InvalidArgument("{}: byte {}: {} bytes are left, a token id has 4", name,
                           bytes.size() / 4 * 4, bytes.size() % 4);
  }
  if (bytes.empty()) return InvalidArgument("{}: no tokens", name);
  if (bytes.size() / 4 > kMaxSessionTokens) {
    return InvalidArgument("{}: more than {} tokens", name, kMaxSessionTokens);
  }
  std::vector<uint32_t> tokens(bytes.size() / 4);
  std::memcpy(tokens.data(), bytes.data(), bytes.size());
  return tokens;
}

absl::StatusOr<std::vector<uint32_t>> ReadTokenFile(const std::string& path) {
  TK_ASSIGN_OR_RETURN(const std::string bytes, ReadAll(path));
  return ParseTokens(path == "-" ? "standard input" : path, bytes, path.ends_with(".bin"));
}

absl::StatusOr<KvLayout> ReadLayoutFile(const std::string& path) {
  TK_ASSIGN_OR_RETURN(const std::string text, ReadAll(path));
  auto layout = LayoutFromJson(text);
  if (!layout.ok()) return InvalidArgument("{}: {}", path, MessageOf(layout.status()));
  return layout;
}

}  // namespace turnkeep
