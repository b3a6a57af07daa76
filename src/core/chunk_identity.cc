// HMAC-SHA256 with the two padded-key blocks hashed once per tenant instead of once per
// call: a 64-token step is then 6 blocks inside and 1 outside.

// The EVP and HMAC_CTX interfaces copy their context through the heap and the provider
// dispatch on every call, which costs more than the hash itself.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "core/chunk_identity.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "core/byte_codec.h"
#include "core/check.h"
#include "core/limits.h"

namespace turnkeep {
namespace {

constexpr size_t kShaBlockBytes = 64;

// First byte of every message: messages of two kinds are never equal.
enum class Domain : uint8_t { kRoot = 1, kTokens, kBlock, kView, kForeign };

}  // namespace

struct ChunkHasher::State {
  SHA256_CTX inner;
  SHA256_CTX outer;

  ~State() { OPENSSL_cleanse(this, sizeof(*this)); }
};

namespace {

// One HMAC: construct, Add the message, Finish once.
class Message {
 public:
  Message(const SHA256_CTX& inner, Domain domain) : context_(inner) { Add(domain); }

  template <ByteCodable T>
  void Add(const T& value) {
    AddRaw(&value, sizeof(value));
  }
  void AddRaw(const void* data, size_t size) { SHA256_Update(&context_, data, size); }

  ChunkId Finish(const SHA256_CTX& outer) {
    std::array<uint8_t, SHA256_DIGEST_LENGTH> inner_hash;
    SHA256_Final(inner_hash.data(), &context_);
    context_ = outer;
    AddRaw(inner_hash.data(), inner_hash.size());
    ChunkId id;
    static_assert(sizeof(id.bytes) == SHA256_DIGEST_LENGTH);
    SHA256_Final(id.bytes.data(), &context_);
    return id;
  }

 private:
  SHA256_CTX context_;
};

void StartWithPaddedKey(const TenantKey& key, uint8_t pad, SHA256_CTX* context) {
  static_assert(sizeof(TenantKey) <= kShaBlockBytes);
  std::array<uint8_t, kShaBlockBytes> block;
  block.fill(pad);
  for (size_t i = 0; i < key.size(); ++i) block[i] ^= key[i];
  SHA256_Init(context);
  SHA256_Update(context, block.data(), block.size());
  OPENSSL_cleanse(block.data(), block.size());
}

}  // namespace

ChunkHasher::ChunkHasher(const TenantKey& key) : state_(std::make_unique<State>()) {
  StartWithPaddedKey(key, 0x36, &state_->inner);
  StartWithPaddedKey(key, 0x5c, &state_->outer);
}

ChunkHasher::~ChunkHasher() = default;
ChunkHasher::ChunkHasher(ChunkHasher&&) noexcept = default;
ChunkHasher& ChunkHasher::operator=(ChunkHasher&&) noexcept = default;

ChunkId ChunkHasher::Root(const Fingerprint& fingerprint) const {
  Message message(state_->inner, Domain::kRoot);
  message.Add(fingerprint.bytes);
  return message.Finish(state_->outer);
}

ChunkId ChunkHasher::Tokens(const ChunkId& parent, const Fingerprint& fingerprint,
                            std::span<const uint32_t> tokens) const {
  Message message(state_->inner, Domain::kTokens);
  message.Add(parent.bytes);
  message.Add(fingerprint.bytes);
  message.Add(static_cast<uint64_t>(tokens.size()));
  message.AddRaw(tokens.data(), tokens.size_bytes());
  return message.Finish(state_->outer);
}

ChunkId ChunkHasher::Block(const ChunkId& parent, const Fingerprint& fingerprint,
                           const BlockHash& hash, uint32_t token_count) const {
  Message message(state_->inner, Domain::kBlock);
  message.Add(parent.bytes);
  message.Add(fingerprint.bytes);
  message.Add(token_count);
  message.Add(static_cast<uint64_t>(hash.size()));
  message.AddRaw(hash.data(), hash.size());
  return message.Finish(state_->outer);
}

ChunkId ChunkHasher::View(const Fingerprint& fingerprint,
                          std::span<const ChunkSlice> slices) const {
  Message message(state_->inner, Domain::kView);
  message.Add(fingerprint.bytes);
  message.Add(static_cast<uint64_t>(slices.size()));
  for (const ChunkSlice& slice : slices) {
    message.Add(slice.chunk.bytes);
    message.Add(slice.first);
    message.Add(slice.count);
  }
  return message.Finish(state_->outer);
}

ChunkId ChunkHasher::Foreign(const ChunkId& foreign_parent) const {
  Message message(state_->inner, Domain::kForeign);
  message.Add(foreign_parent.bytes);
  return message.Finish(state_->outer);
}

}  // namespace turnkeep
