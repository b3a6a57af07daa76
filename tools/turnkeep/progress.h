// A progress bar on standard error for work that takes longer than a second:
//   verify  [########............]  41%  1.2 GiB of 3.0 GiB  820.0 MiB/s  2 s left
// Nothing is shown when standard error is no terminal. The line is cleared at the end.
//
//   Progress progress(environment, "verify");
//   … progress.Update(done_bytes, total_bytes); …
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "environment.h"

namespace turnkeep {

class Progress {
 public:
  Progress(Environment& environment, std::string label);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Update(uint64_t done_bytes, uint64_t total_bytes);

 private:
  Environment& environment_;
  const std::string label_;
  const int64_t start_ns_;
  int64_t shown_ns_ = 0;
  bool visible_ = false;
};

// The line itself, without its control characters.
std::string ProgressLine(const std::string& label, uint64_t done_bytes, uint64_t total_bytes,
                         double elapsed_s);

}  // namespace turnkeep
