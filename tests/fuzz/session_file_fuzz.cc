// Session files: any file checks with an error or is whole; head and manifest decode to what
// encodes to the same bytes.
#include <cstring>

#include "core/byte_codec.h"
#include "core/digest.h"
#include "core/session_file.h"
#include "core/session_file_manifest.h"
#include "fuzz/fuzz_target.h"
#include "testing/memory_kv_store.h"

namespace turnkeep::testing {
namespace {

class MemorySource : public ByteSource {
 public:
  explicit MemorySource(std::span<const std::byte> bytes) : bytes_(bytes), rest_(bytes) {}
  uint64_t size_bytes() const override { return bytes_.size(); }
  absl::Status Read(std::span<std::byte> out) override {
    if (out.size() > rest_.size()) return absl::OutOfRangeError("past the end");
    std::memcpy(out.data(), rest_.data(), out.size());
    rest_ = rest_.subspan(out.size());
    return absl::OkStatus();
  }

 private:
  std::span<const std::byte> bytes_;
  std::span<const std::byte> rest_;
};

class MemorySink : public ByteSink {
 public:
  absl::Status Append(std::span<const std::byte> bytes) override {
    text += TextOf(bytes);
    return absl::OkStatus();
  }
  std::string text;
};

void Seal(std::string& bytes, size_t begin, size_t end, uint64_t epoch) {
  const Digest digest = ComputeDigest({.layer = kHeaderLayer, .epoch = epoch},
                                      BytesOf(bytes).subspan(begin, end - begin - sizeof(Digest)));
  std::memcpy(bytes.data() + end - sizeof(Digest), &digest, sizeof(digest));
}

void CheckManifest(std::span<const std::byte> bytes) {
  const auto manifest = DecodeSessionManifest(bytes);
  if (!manifest.ok()) return;
  TK_CHECK(ValidateSessionManifest(*manifest).ok());
  TK_CHECK(EncodeSessionManifest(*manifest) == TextOf(bytes));
}

void CheckFile(std::span<const std::byte> bytes) {
  MemorySource source(bytes);
  const auto info = CheckSessionFile(source, {});
  if (info.ok()) TK_CHECK(info->file_bytes == bytes.size());
}

void Run(std::span<const std::byte> input) {
  CheckFile(input);
  if (input.size() < kSessionFileHeadBytes + sizeof(Digest)) return;
  // With the digests of head and manifest made right, so that mutations get past them. The head's
  // own lengths are believed only as far as the input goes.
  std::string sealed(TextOf(input));
  Seal(sealed, 0, kSessionFileHeadBytes, 0);
  const auto head =
      DecodeSessionFileHead(BytesOf(sealed).first(kSessionFileHeadBytes), sealed.size());
  if (head.ok()) {
    TK_CHECK(EncodeSessionFileHead(*head) == sealed.substr(0, kSessionFileHeadBytes));
    const uint64_t end = kSessionFileHeadBytes + head->manifest_bytes;
    if (end <= sealed.size() && head->manifest_bytes >= sizeof(Digest)) {
      Seal(sealed, kSessionFileHeadBytes, end, 1);
      CheckManifest(BytesOf(sealed).subspan(kSessionFileHeadBytes, head->manifest_bytes));
    }
  }
  CheckFile(BytesOf(sealed));
}

std::vector<std::string> Seeds() {
  MemoryKvStore store;
  const auto layout = store.RegisterLayout(SmallLayout());
  TK_CHECK(layout.ok());
  std::vector<uint32_t> tokens(40);
  for (uint32_t i = 0; i < 40; ++i) tokens[i] = i * 7;
  TK_CHECK(SaveTokens(store, "whole", *layout, tokens).ok());
  TK_CHECK(store.ForkSession({.source = "whole", .target = "cut"}).ok());
  TK_CHECK(store.TruncateSession({.session = "cut", .drop_begin = 3, .drop_end = 20}).ok());
  std::vector<std::string> seeds;
  for (const char* session : {"whole", "cut"}) {
    MemorySink sink;
    TK_CHECK(ExportSession(store, session, sink, {}).ok());
    seeds.push_back(sink.text);
  }
  return seeds;
}

}  // namespace

const FuzzTarget kFuzzTarget = {"session_file", Run, Seeds, 6000};

}  // namespace turnkeep::testing
