// Canonical bytes of a layout: the magic "TKLAYOUT", u32 encoding version 1, then every
// field in the order of layout_fields.h, whatever the layer's kind. Integers are
// little-endian, floats their bit pattern, enumerations one byte, texts and lists a u32
// count and then the elements. Every field has one encoding, so a valid layout has one too.
#include <openssl/sha.h>

#include "core/byte_codec.h"
#include "core/layout.h"
#include "core/layout_fields.h"
#include "core/status.h"

namespace turnkeep {
namespace {

using internal::FieldEnum;
using internal::FieldNumber;
using internal::FieldStruct;
using internal::IsKnown;
using internal::Presence;
using internal::VisitFields;

constexpr std::string_view kMagic = "TKLAYOUT";
constexpr uint32_t kEncodingVersion = 1;

class Encoder {
 public:
  explicit Encoder(std::string* out) : out_(out) {}

  template <typename T>
  requires(FieldNumber<T> || FieldEnum<T>) void Write(const T& value) { AppendBytes(value, out_); }
  void Write(const Fingerprint& value) { AppendBytes(value.bytes, out_); }
  void Write(const std::string& value) {
    AppendBytes(static_cast<uint32_t>(value.size()), out_);
    out_->append(value);
  }
  template <typename T>
  void Write(const std::vector<T>& values) {
    AppendBytes(static_cast<uint32_t>(values.size()), out_);
    for (const T& value : values) Write(value);
  }
  template <FieldStruct T>
  void Write(const T& value) {
    VisitFields<T>([&](std::string_view, auto member, Presence) { Write(value.*member); });
  }

 private:
  std::string* out_;
};

// Total: any bytes give a value or an error. The first error is kept and stops the rest.
class Decoder {
 public:
  explicit Decoder(std::string_view bytes) : reader_(bytes) {}

  size_t remaining() const { return reader_.remaining(); }
  const absl::Status& status() const { return status_; }

  template <FieldNumber T>
  void Read(std::string_view field, T* value) {
    if (!reader_.Read(value)) Fail(field);
  }
  template <FieldEnum T>
  void Read(std::string_view field, T* value) {
    if (!reader_.Read(value)) return Fail(field);
    if (!IsKnown(*value)) {
      status_ = InvalidArgument("encoded layout: {}: {} is no known value", field,
                                static_cast<uint32_t>(*value));
    }
  }
  void Read(std::string_view field, Fingerprint* value) {
    if (!reader_.Read(&value->bytes)) Fail(field);
  }
  void Read(std::string_view field, std::string* value) {
    uint32_t size = 0;
    if (!reader_.Read(&size) || size > kMaxNameBytes || !reader_.ReadString(size, value)) {
      Fail(field);
    }
  }
  void Read(std::string_view field, std::vector<float>* values) {
    ReadList(field, kMaxHeadDim / 2, values);
  }
  void Read(std::string_view field, std::vector<LayerSpec>* values) {
    ReadList(field, kMaxLayers, values);
  }
  template <FieldStruct T>
  void Read(std::string_view, T* value) {
    VisitFields<T>([&](std::string_view field, auto member, Presence) {
      if (status_.ok()) Read(field, &(value->*member));
    });
  }

 private:
  void Fail(std::string_view field) {
    status_ = InvalidArgument("encoded layout: ends or has a count past its limit in {}", field);
  }
  template <typename T>
  void ReadList(std::string_view field, uint32_t max_count, std::vector<T>* values) {
    uint32_t count = 0;
    if (!reader_.Read(&count) || count > max_count) return Fail(field);
    values->clear();
    for (uint32_t i = 0; i < count && status_.ok(); ++i) {
      T value{};
      Read(field, &value);
      values->push_back(value);
    }
  }

  ByteReader reader_;
  absl::Status status_;
};

}  // namespace

std::string EncodeLayout(const KvLayout& layout) {
  std::string out(kMagic);
  AppendBytes(kEncodingVersion, &out);
  Encoder(&out).Write(layout);
  return out;
}

absl::StatusOr<KvLayout> DecodeLayout(std::string_view bytes) {
  if (bytes.size() > kMaxLayoutEncodingBytes) {
    return InvalidArgument("encoded layout: {} bytes, at most {} are allowed", bytes.size(),
                           kMaxLayoutEncodingBytes);
  }
  if (bytes.substr(0, kMagic.size()) != kMagic) {
    return InvalidArgument("encoded layout: no magic");
  }
  Decoder decoder(bytes.substr(kMagic.size()));
  uint32_t version = 0;
  decoder.Read("encoding version", &version);
  TK_RETURN_IF_ERROR(decoder.status());
  if (version != kEncodingVersion) {
    return InvalidArgument("encoded layout: encoding version {}, this program reads {}", version,
                           kEncodingVersion);
  }
  KvLayout layout;
  decoder.Read("layout", &layout);
  TK_RETURN_IF_ERROR(decoder.status());
  if (decoder.remaining() > 0) {
    return InvalidArgument("encoded layout: {} bytes after its end", decoder.remaining());
  }
  TK_RETURN_IF_ERROR(ValidateLayout(layout));
  return layout;
}

Fingerprint FingerprintOf(const KvLayout& layout) {
  const std::string bytes = EncodeLayout(layout);
  Fingerprint fingerprint;
  static_assert(sizeof(fingerprint.bytes) == SHA256_DIGEST_LENGTH);
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         fingerprint.bytes.data());
  return fingerprint;
}

}  // namespace turnkeep
