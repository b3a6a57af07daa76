// Chunk headers: any bytes are DataLoss or a header that encodes to the same bytes again.
#include <cstring>

#include "core/byte_codec.h"
#include "core/chunk_header.h"
#include "fuzz/fuzz_target.h"

namespace turnkeep::testing {
namespace {

constexpr size_t kEncodedBytesOffset = 12;
constexpr size_t kIdOffset = 32;
constexpr size_t kEpochOffset = 128;

void Check(std::span<const std::byte> bytes) {
  Digest root;
  const auto header = DecodeAnyChunkHeader(bytes, &root);
  if (!header.ok()) {
    TK_CHECK(absl::IsDataLoss(header.status()));
    return;
  }
  const uint64_t encoded =
      EncodedChunkHeaderBytes(static_cast<uint32_t>(header->layer_digests.size()),
                              header->token_count, header->block_hash.size());
  TK_CHECK(encoded <= bytes.size());
  std::vector<std::byte> again(encoded);
  TK_CHECK(EncodeChunkHeader(*header, again) == root);
  TK_CHECK(std::memcmp(again.data(), bytes.data(), encoded) == 0);
  TK_CHECK(DecodeChunkHeader(bytes, header->id, header->epoch, root).ok());
  // Under any other name it is damage.
  ChunkId other = header->id;
  other.bytes[5] ^= 1;
  TK_CHECK(!DecodeChunkHeader(bytes, other, header->epoch, root).ok());
  TK_CHECK(!DecodeChunkHeader(bytes, header->id, header->epoch + 1, root).ok());
}

void Run(std::span<const std::byte> input) {
  Check(input);
  // The same with the root digest made right, so that it does not stop every mutation.
  uint32_t encoded = 0;
  if (input.size() < kLayerDigestOffset) return;
  std::memcpy(&encoded, input.data() + kEncodedBytesOffset, sizeof(encoded));
  if (encoded < kLayerDigestOffset || encoded > input.size()) return;
  std::vector<std::byte> sealed(input.begin(), input.end());
  PageBinding binding{.layer = kHeaderLayer};
  std::memcpy(binding.chunk.bytes.data(), sealed.data() + kIdOffset, 32);
  std::memcpy(&binding.epoch, sealed.data() + kEpochOffset, sizeof(binding.epoch));
  const Digest root =
      ComputeDigest(binding, std::span<const std::byte>(sealed).first(encoded - sizeof(Digest)));
  StoreBytes(sealed.data() + encoded - sizeof(Digest), root);
  Check(sealed);
}

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds;
  for (const bool hashed : {false, true}) {
    for (const uint32_t tokens : {1u, 16u, 512u}) {
      ChunkHeader header;
      header.id.bytes[0] = 1;
      header.parent.bytes[1] = 2;
      header.fingerprint.bytes[2] = 3;
      header.epoch = 42;
      header.token_count = tokens;
      header.position_base = 1000;
      header.created_unix_s = 1'700'000'000;
      header.layer_digests.assign(tokens == 16 ? 300 : 3, Digest{7, 8});
      if (hashed) {
        header.block_hash = "an engine's hash";
      } else {
        for (uint32_t i = 0; i < tokens; ++i) header.tokens.push_back(i * 31);
      }
      std::string bytes(EncodedChunkHeaderBytes(static_cast<uint32_t>(header.layer_digests.size()),
                                                tokens, header.block_hash.size()),
                        '\0');
      EncodeChunkHeader(header, {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()});
      seeds.push_back(bytes);
      seeds.push_back(bytes + std::string(100, 'x'));  // a slot is longer than its header
    }
  }
  return seeds;
}

}  // namespace

const FuzzTarget kFuzzTarget = {"chunk_header", Run, Seeds, 40000};

}  // namespace turnkeep::testing
