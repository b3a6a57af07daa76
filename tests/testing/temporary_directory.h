// A fresh directory, removed with all it holds when the object goes.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "core/check.h"

namespace turnkeep::testing {

class TemporaryDirectory {
 public:
  // Below $TMPDIR or, without one, the working directory (which is the build directory for
  // tests: a file system with direct I/O, where /tmp may be a tmpfs).
  TemporaryDirectory() : TemporaryDirectory(Base()) {}
  // Below `base`: sockets have paths of at most 107 bytes, which build directories may pass.
  explicit TemporaryDirectory(const std::string& base) : path_(base + "/turnkeep-test-XXXXXX") {
    TK_CHECK(::mkdtemp(path_.data()) != nullptr);
    path_ = std::filesystem::absolute(path_).string();
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  static std::string Base() {
    const char* base = std::getenv("TMPDIR");
    return base != nullptr ? base : ".";
  }

  std::string path_;
};

}  // namespace turnkeep::testing
