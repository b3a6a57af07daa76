#include "llama/tokenizer.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "core/status.h"

namespace turnkeep::llama {
namespace {

constexpr uint32_t kFirstByteToken = 3;
constexpr uint32_t kByteTokens = 256;
constexpr int32_t kMaxPieceBytes = 4096;

// Length of the UTF-8 character at `at`; 1 for bytes that start none.
size_t CharacterBytes(std::string_view text, size_t at) {
  size_t length = 1;
  while (length < 4 && at + length < text.size() &&
         (static_cast<uint8_t>(text[at + length]) & 0xC0) == 0x80) {
    ++length;
  }
  return length;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path,
                                                           uint32_t vocab) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return ErrnoStatus(errno, fmt::format("open tokenizer {}", path));
  const std::string data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  size_t at = sizeof(int32_t);  // the longest piece's length, not needed
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer);
  for (uint32_t id = 0; id < vocab; ++id) {
    float score = 0;
    int32_t length = 0;
    if (at + sizeof(score) + sizeof(length) > data.size()) {
      return InvalidArgument("tokenizer {}: ends before token {} of {}", path, id, vocab);
    }
    std::memcpy(&score, data.data() + at, sizeof(score));
    std::memcpy(&length, data.data() + at + sizeof(score), sizeof(length));
    at += sizeof(score) + sizeof(length);
    if (length < 0 || length > kMaxPieceBytes || at + length > data.size()) {
      return InvalidArgument("tokenizer {}: token {} has {} bytes", path, id, length);
    }
    tokenizer->pieces_.emplace_back(data.data() + at, length);
    tokenizer->scores_.push_back(score);
    tokenizer->ids_.emplace(tokenizer->pieces_.back(), id);
    at += length;
  }
  if (at != data.size()) {
    return InvalidArgument("tokenizer {}: {} bytes left over after {} tokens", path,
                           data.size() - at, vocab);
  }
  return tokenizer;
}

std::vector<uint32_t> Tokenizer::Characters(std::string_view text) const {
  std::vector<uint32_t> tokens;
  for (size_t at = 0; at < text.size();) {
    const size_t length = CharacterBytes(text, at);
    const std::string character(text.substr(at, length));
    const auto found = ids_.find(character);
    if (found != ids_.end()) {
      tokens.push_back(found->second);
    } else {
      for (const char byte : character) {
        tokens.push_back(kFirstByteToken + static_cast<uint8_t>(byte));
      }
    }
    at += length;
  }
  return tokens;
}

std::vector<uint32_t> Tokenizer::Encode(std::string_view text) const {
  if (text.empty()) return {};
  std::vector<uint32_t> tokens = Characters(" " + std::string(text));
  while (true) {
    float best_score = -1e30f;
    size_t best = tokens.size();
    uint32_t merged = 0;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      const auto found = ids_.find(pieces_[tokens[i]] + pieces_[tokens[i + 1]]);
      if (found != ids_.end() && scores_[found->second] > best_score) {
        best_score = scores_[found->second];
        best = i;
        merged = found->second;
      }
    }
    if (best == tokens.size()) return tokens;
    tokens[best] = merged;
    tokens.erase(tokens.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

std::string Tokenizer::Decode(std::span<const uint32_t> tokens) const {
  std::string text;
  uint32_t previous = kEosToken;
  for (const uint32_t token : tokens) {
    const bool after_bos = std::exchange(previous, token) == kBosToken;
    if (token == kBosToken || token == kEosToken || token >= pieces_.size()) continue;
    if (token >= kFirstByteToken && token < kFirstByteToken + kByteTokens) {
      text += static_cast<char>(token - kFirstByteToken);
    } else {
      const std::string& piece = pieces_[token];
      text += after_bos && piece.starts_with(' ') ? piece.substr(1) : piece;
    }
  }
  return text;
}

}  // namespace turnkeep::llama
