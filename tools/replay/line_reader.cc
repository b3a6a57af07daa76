#include "line_reader.h"

#include <cerrno>

#include <zlib.h>

#include "core/status.h"
#include "core/units.h"

namespace turnkeep::replay {
namespace {

constexpr size_t kReadBytes = 256 * kKiB;
constexpr size_t kMaxLineBytes = kGiB;

gzFile FileOf(void* file) { return static_cast<gzFile>(file); }

}  // namespace

absl::StatusOr<std::unique_ptr<LineReader>> LineReader::Open(const std::string& path) {
  errno = 0;
  const gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) return ErrnoStatus(errno == 0 ? ENOMEM : errno, "open \"" + path + "\"");
  gzbuffer(file, kReadBytes);
  return std::unique_ptr<LineReader>(new LineReader(path, file));
}

LineReader::~LineReader() { gzclose(FileOf(file_)); }

absl::Status LineReader::Fill() {
  buffer_.erase(0, begin_);
  begin_ = 0;
  if (buffer_.size() > kMaxLineBytes) {
    return ResourceExhausted("{}:{}: the line is longer than 1 GiB", path_, line_number_ + 1);
  }
  const size_t size = buffer_.size();
  buffer_.resize(size + kReadBytes);
  const int got = gzread(FileOf(file_), buffer_.data() + size, kReadBytes);
  buffer_.resize(size + (got > 0 ? static_cast<size_t>(got) : 0));
  if (got < static_cast<int>(kReadBytes)) {
    int code = Z_OK;
    const char* message = gzerror(FileOf(file_), &code);
    if (got < 0 || (code != Z_OK && code != Z_STREAM_END)) {
      return DataLoss("{}:{}: read: {}", path_, line_number_ + 1,
                      code == Z_BUF_ERROR ? "the gzip stream ends early" : message);
    }
    at_end_ = got == 0;
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> LineReader::Next(std::string* line) {
  size_t searched = begin_;
  while (true) {
    const size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos || (at_end_ && begin_ < buffer_.size())) {
      const size_t stop = end == std::string::npos ? buffer_.size() : end;
      line->assign(buffer_, begin_, stop - begin_);
      if (!line->empty() && line->back() == '\r') line->pop_back();
      begin_ = end == std::string::npos ? stop : stop + 1;
      ++line_number_;
      return true;
    }
    if (at_end_) return false;
    const size_t pending = buffer_.size() - begin_;
    TK_RETURN_IF_ERROR(Fill());
    searched = begin_ + pending;
  }
}

absl::Status LineReader::Error(const std::string& what) const {
  return InvalidArgument("{}:{}: {}", path_, line_number_, what);
}

}  // namespace turnkeep::replay
