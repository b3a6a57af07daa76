// Lines of a text file, plain or gzip (told by its content).
//
//   TK_ASSIGN_OR_RETURN(auto lines, LineReader::Open(path));
//   std::string line;
//   while (true) { TK_ASSIGN_OR_RETURN(bool more, lines->Next(&line)); if (!more) break; … }
//
// Blocks on the file. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <absl/status/statusor.h>

namespace turnkeep::replay {

class LineReader {
 public:
  static absl::StatusOr<std::unique_ptr<LineReader>> Open(const std::string& path);
  ~LineReader();

  // Without its line end; false at the end of the file. DataLoss for a damaged or cut
  // gzip file, ResourceExhausted for a line of more than 1 GiB.
  absl::StatusOr<bool> Next(std::string* line);
  uint64_t line_number() const { return line_number_; }  // of the last line, from 1
  const std::string& path() const { return path_; }

  // InvalidArgument "path:line: what".
  absl::Status Error(const std::string& what) const;

 private:
  LineReader(std::string path, void* file) : path_(std::move(path)), file_(file) {}
  absl::Status Fill();

  const std::string path_;
  void* const file_;  // gzFile
  uint64_t line_number_ = 0;
  std::string buffer_;
  size_t begin_ = 0;
  bool at_end_ = false;
};

}  // namespace turnkeep::replay
