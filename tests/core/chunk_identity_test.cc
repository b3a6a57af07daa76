#include "core/chunk_identity.h"

#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

namespace turnkeep {
namespace {

TenantKey KeyOf(uint8_t first) {
  TenantKey key;
  std::iota(key.begin(), key.end(), first);
  return key;
}

Fingerprint FingerprintOf(uint8_t value) {
  Fingerprint fingerprint;
  fingerprint.bytes.fill(value);
  return fingerprint;
}

template <typename T>
void Append(const T& value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// OpenSSL's own HMAC of a message written out by hand.
ChunkId Hmac(const TenantKey& key, const std::string& message) {
  ChunkId id;
  unsigned size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(message.data()), message.size(), id.bytes.data(),
       &size);
  EXPECT_EQ(size, id.bytes.size());
  return id;
}

TEST(ChunkIdentity, IsHmacSha256OfTheDocumentedMessage) {
  const TenantKey key = KeyOf(3);
  const ChunkHasher hasher(key);
  const Fingerprint fingerprint = FingerprintOf(9);
  ChunkId parent;
  parent.bytes.fill(0x5A);

  std::string root = "\x01";
  Append(fingerprint.bytes, &root);
  EXPECT_EQ(hasher.Root(fingerprint), Hmac(key, root));

  for (const uint64_t count : {0, 1, 15, 64, 512}) {
    std::vector<uint32_t> tokens(count);
    std::iota(tokens.begin(), tokens.end(), 1000u);
    std::string message = "\x02";
    Append(parent.bytes, &message);
    Append(fingerprint.bytes, &message);
    Append(count, &message);
    for (const uint32_t token : tokens) Append(token, &message);
    EXPECT_EQ(hasher.Tokens(parent, fingerprint, tokens), Hmac(key, message)) << count;
  }

  std::string block = "\x03";
  Append(parent.bytes, &block);
  Append(fingerprint.bytes, &block);
  Append(uint32_t{17}, &block);
  Append(uint64_t{3}, &block);
  block += "abc";
  EXPECT_EQ(hasher.Block(parent, fingerprint, "abc", 17), Hmac(key, block));

  std::string view = "\x04";
  Append(fingerprint.bytes, &view);
  Append(uint64_t{1}, &view);
  Append(parent.bytes, &view);
  Append(uint32_t{5}, &view);
  Append(uint32_t{6}, &view);
  const ChunkSlice slice{.chunk = parent, .first = 5, .count = 6};
  EXPECT_EQ(hasher.View(fingerprint, {&slice, 1}), Hmac(key, view));

  std::string foreign = "\x05";
  Append(parent.bytes, &foreign);
  EXPECT_EQ(hasher.Foreign(parent), Hmac(key, foreign));
}

TEST(ChunkIdentity, EveryInputChangesTheId) {
  const ChunkHasher hasher(KeyOf(0));
  const ChunkHasher other(KeyOf(1));
  const Fingerprint f1 = FingerprintOf(1);
  const Fingerprint f2 = FingerprintOf(2);
  const ChunkId root = hasher.Root(f1);
  const std::vector<uint32_t> tokens = {1, 2, 3};
  const std::vector<uint32_t> swapped = {2, 1, 3};
  const std::vector<uint32_t> longer = {1, 2, 3, 0};
  std::set<ChunkId> ids;
  size_t count = 0;
  const auto add = [&](const ChunkId& id) {
    ids.insert(id);
    EXPECT_EQ(ids.size(), ++count);
  };
  add(root);
  add(hasher.Root(f2));
  add(other.Root(f1));
  add(hasher.Tokens(root, f1, tokens));
  add(hasher.Tokens(root, f1, swapped));
  add(hasher.Tokens(root, f1, longer));
  add(hasher.Tokens(root, f1, {}));
  add(hasher.Tokens(root, f2, tokens));
  add(hasher.Tokens(hasher.Tokens(root, f1, tokens), f1, tokens));
  add(other.Tokens(root, f1, tokens));
  add(hasher.Block(root, f1, "h", 3));
  add(hasher.Block(root, f1, "h", 4));
  add(hasher.Block(root, f1, "i", 3));
  add(hasher.Foreign(root));
}

// A view of the whole of a chain, of a part, or of nothing: none may equal a chain id,
// or what is appended to it would alias the untruncated context.
TEST(ChunkIdentity, ViewNeverEqualsAChainId) {
  const ChunkHasher hasher(KeyOf(7));
  const Fingerprint fingerprint = FingerprintOf(1);
  std::vector<uint32_t> tokens(64);
  std::iota(tokens.begin(), tokens.end(), 0u);
  std::set<ChunkId> chain = {hasher.Root(fingerprint)};
  std::set<ChunkId> views = {hasher.View(fingerprint, {})};
  std::vector<ChunkSlice> slices;
  ChunkId id = hasher.Root(fingerprint);
  for (int i = 0; i < 200; ++i) {
    id = hasher.Tokens(id, fingerprint, tokens);
    chain.insert(id);
    slices.push_back({.chunk = id, .first = 0, .count = 64});
    views.insert(hasher.View(fingerprint, slices));
    views.insert(hasher.View(fingerprint, std::span(slices).last(1)));
  }
  // The first chunk's view is both the whole chain and its last chunk.
  EXPECT_EQ(views.size(), 1u + 200u + 199u);
  for (const ChunkId& view : views) EXPECT_FALSE(chain.contains(view));
}

TEST(ChunkIdentity, MovedHasherKeepsItsKey) {
  ChunkHasher first(KeyOf(1));
  const ChunkId root = first.Root(FingerprintOf(1));
  ChunkHasher second(std::move(first));
  EXPECT_EQ(second.Root(FingerprintOf(1)), root);
  ChunkHasher third(KeyOf(2));
  third = std::move(second);
  EXPECT_EQ(third.Root(FingerprintOf(1)), root);
}

}  // namespace
}  // namespace turnkeep
