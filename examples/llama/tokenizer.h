// The byte-pair tokenizer of llama2.c (tok512.bin and the like).
//
// Thread-safe: constant after construction.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace turnkeep::llama {

inline constexpr uint32_t kBosToken = 1;
inline constexpr uint32_t kEosToken = 2;

class Tokenizer {
 public:
  // `vocab` entries are expected. InvalidArgument if the file is not of this form.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path, uint32_t vocab);

  // Characters first, bytes where a character has no token; then the adjacent pair whose
  // joined token has the highest score is merged, again and again. No BOS is added; a
  // space is put in front, as llama2.c does.
  std::vector<uint32_t> Encode(std::string_view text) const;
  // The space in front of the first token after BOS is left out again.
  std::string Decode(std::span<const uint32_t> tokens) const;

 private:
  Tokenizer() = default;
  std::vector<uint32_t> Characters(std::string_view text) const;

  std::vector<std::string> pieces_;
  std::vector<float> scores_;
  std::unordered_map<std::string, uint32_t> ids_;
};

}  // namespace turnkeep::llama
