// A fresh directory that is removed, with what is in it, when the object goes.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include <gtest/gtest.h>

namespace turnkeep::testing {

class TempDirectory {
 public:
  // Below $TMPDIR, or the current directory (the build's), or `parent`.
  explicit TempDirectory(std::string parent = "") {
    const char* from_environment = std::getenv("TMPDIR");
    if (parent.empty() && from_environment != nullptr) parent = from_environment;
    if (parent.empty()) parent = std::filesystem::current_path().string();
    path_ = parent + "/turnkeep-test-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) {
      ADD_FAILURE() << "mkdtemp " << path_;
      path_.clear();
    }
  }
  ~TempDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace turnkeep::testing
