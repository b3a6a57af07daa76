// Bytes of a chunk header, version 1, integers little-endian:
//
//   offset  bytes  content
//        0      8  magic "TKCHUNK\0"
//        8      4  version, 1
//       12      4  encoded bytes, the root digest included
//       16      4  layer count L, 1..kMaxLayers
//       20      4  token count N, 1..kMaxChunkTokens
//       24      4  block hash bytes H; 0 when token ids are stored
//       28      4  zero
//       32     32  chunk id
//       64     32  parent id
//       96     32  layout fingerprint
//      128      8  epoch
//      136      8  position of the first token
//      144      8  creation time, seconds since the Unix epoch, signed
//      152     40  zero
//      192   16 L  layer digests, each low 64 bits then high 64 bits
//            4 N   token ids, when H = 0; otherwise H bytes of block hash
//             16   root digest: XXH3-128 bound to (chunk id, kHeaderLayer, epoch) of
//                  all bytes before it, low 64 bits then high 64 bits
#include "core/chunk_header.h"

#include <array>
#include <cstring>
#include <string_view>

#include "core/byte_codec.h"
#include "core/check.h"
#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {
namespace {

constexpr std::array<char, 8> kMagic = {'T', 'K', 'C', 'H', 'U', 'N', 'K', '\0'};
constexpr uint32_t kVersion = 1;

struct FixedPart {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t encoded_bytes;
  uint32_t layer_count;
  uint32_t token_count;
  uint32_t block_hash_bytes;
  uint32_t zero;
  std::array<uint8_t, 32> id;
  std::array<uint8_t, 32> parent;
  std::array<uint8_t, 32> fingerprint;
  uint64_t epoch;
  uint64_t position_base;
  int64_t created_unix_s;
  std::array<uint8_t, 40> zeros;
};
static_assert(sizeof(FixedPart) == kLayerDigestOffset);
static_assert(std::has_unique_object_representations_v<FixedPart>);

PageBinding HeaderBinding(const ChunkId& id, uint64_t epoch) {
  return {.chunk = id, .layer = kHeaderLayer, .epoch = epoch};
}

absl::Status CheckFixedPart(const FixedPart& fixed, size_t slot_bytes) {
  if (fixed.magic != kMagic) return DataLoss("chunk header: no magic");
  if (fixed.version != kVersion) {
    return DataLoss("chunk header: version {}, this program reads {}", fixed.version, kVersion);
  }
  if (fixed.layer_count == 0 || fixed.layer_count > kMaxLayers) {
    return DataLoss("chunk header: layer count {} is not in 1..{}", fixed.layer_count, kMaxLayers);
  }
  if (fixed.token_count == 0 || fixed.token_count > kMaxChunkTokens) {
    return DataLoss("chunk header: token count {} is not in 1..{}", fixed.token_count,
                    kMaxChunkTokens);
  }
  if (fixed.block_hash_bytes > kMaxBlockHashBytes) {
    return DataLoss("chunk header: block hash of {} bytes, at most {}", fixed.block_hash_bytes,
                    kMaxBlockHashBytes);
  }
  const uint64_t expected_bytes =
      EncodedChunkHeaderBytes(fixed.layer_count, fixed.token_count, fixed.block_hash_bytes);
  if (fixed.encoded_bytes != expected_bytes || expected_bytes > slot_bytes) {
    return DataLoss("chunk header: says {} bytes, its counts give {}, the slot has {}",
                    fixed.encoded_bytes, expected_bytes, slot_bytes);
  }
  if (fixed.zero != 0 || fixed.zeros != std::array<uint8_t, 40>{}) {
    return DataLoss("chunk header: reserved bytes are not zero");
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t EncodedChunkHeaderBytes(uint32_t layer_count, uint32_t token_count,
                                 size_t block_hash_bytes) {
  const uint64_t content_bytes =
      block_hash_bytes > 0 ? block_hash_bytes : uint64_t{token_count} * sizeof(uint32_t);
  return kLayerDigestOffset + uint64_t{layer_count} * sizeof(Digest) + content_bytes +
         sizeof(Digest);
}

Digest EncodeChunkHeader(const ChunkHeader& header, std::span<std::byte> slot) {
  TK_CHECK(!header.layer_digests.empty() && header.layer_digests.size() <= kMaxLayers);
  TK_CHECK(header.token_count > 0 && header.token_count <= kMaxChunkTokens);
  TK_CHECK(header.block_hash.size() <= kMaxBlockHashBytes);
  TK_CHECK(header.tokens.size() == (header.block_hash.empty() ? header.token_count : 0));
  const auto layer_count = static_cast<uint32_t>(header.layer_digests.size());
  const uint64_t encoded_bytes =
      EncodedChunkHeaderBytes(layer_count, header.token_count, header.block_hash.size());
  TK_CHECK(slot.size() >= encoded_bytes);

  const FixedPart fixed{
      .magic = kMagic,
      .version = kVersion,
      .encoded_bytes = static_cast<uint32_t>(encoded_bytes),
      .layer_count = layer_count,
      .token_count = header.token_count,
      .block_hash_bytes = static_cast<uint32_t>(header.block_hash.size()),
      .zero = 0,
      .id = header.id.bytes,
      .parent = header.parent.bytes,
      .fingerprint = header.fingerprint.bytes,
      .epoch = header.epoch,
      .position_base = header.position_base,
      .created_unix_s = header.created_unix_s,
      .zeros = {},
  };
  std::byte* to = StoreBytes(slot.data(), fixed);
  for (const Digest& digest : header.layer_digests) to = StoreBytes(to, digest);
  for (const uint32_t token : header.tokens) to = StoreBytes(to, token);
  for (const char c : header.block_hash) to = StoreBytes(to, c);
  const size_t bound_bytes = static_cast<size_t>(to - slot.data());
  const Digest root =
      ComputeDigest(HeaderBinding(header.id, header.epoch), slot.first(bound_bytes));
  StoreBytes(to, root);
  return root;
}

absl::StatusOr<ChunkHeader> DecodeAnyChunkHeader(std::span<const std::byte> slot, Digest* root) {
  FixedPart fixed;
  if (slot.size() < sizeof(fixed)) {
    return DataLoss("chunk header: {} bytes, the fixed part has {}", slot.size(), sizeof(fixed));
  }
  std::memcpy(&fixed, slot.data(), sizeof(fixed));
  TK_RETURN_IF_ERROR(CheckFixedPart(fixed, slot.size()));

  // A client may still map the slot and write to it: take a private copy, with the fixed
  // part that was checked, and look only at that.
  std::string bytes(fixed.encoded_bytes, '\0');
  std::memcpy(bytes.data(), &fixed, sizeof(fixed));
  std::memcpy(bytes.data() + sizeof(fixed), slot.data() + sizeof(fixed),
              fixed.encoded_bytes - sizeof(fixed));

  ChunkHeader header{.id = {fixed.id},
                     .parent = {fixed.parent},
                     .fingerprint = {fixed.fingerprint},
                     .epoch = fixed.epoch,
                     .token_count = fixed.token_count,
                     .position_base = fixed.position_base,
                     .created_unix_s = fixed.created_unix_s};
  header.layer_digests.resize(fixed.layer_count);
  ByteReader reader(std::string_view(bytes).substr(sizeof(fixed)));
  for (Digest& digest : header.layer_digests) TK_CHECK(reader.Read(&digest));
  if (fixed.block_hash_bytes > 0) {
    TK_CHECK(reader.ReadString(fixed.block_hash_bytes, &header.block_hash));
  } else {
    header.tokens.resize(fixed.token_count);
    for (uint32_t& token : header.tokens) TK_CHECK(reader.Read(&token));
  }
  Digest stored;
  TK_CHECK(reader.Read(&stored) && reader.remaining() == 0);

  const auto bound = std::as_bytes(std::span(bytes)).first(bytes.size() - sizeof(Digest));
  if (ComputeDigest(HeaderBinding(header.id, header.epoch), bound) != stored) {
    return DataLoss("chunk header of {}: root digest does not match", header.id.ShortHex());
  }
  *root = stored;
  return header;
}

absl::StatusOr<ChunkHeader> DecodeChunkHeader(std::span<const std::byte> slot, const ChunkId& id,
                                              uint64_t epoch, const Digest& root) {
  Digest stored;
  TK_ASSIGN_OR_RETURN(ChunkHeader header, DecodeAnyChunkHeader(slot, &stored));
  if (header.id != id || header.epoch != epoch || stored != root) {
    return DataLoss("chunk header: is {} of epoch {}, expected {} of epoch {}",
                    header.id.ShortHex(), header.epoch, id.ShortHex(), epoch);
  }
  return header;
}

}  // namespace turnkeep
