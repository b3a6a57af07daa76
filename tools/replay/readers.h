// The trace formats. Every reader takes plain or gzip files and answers a malformed line
// with InvalidArgument "file:line: what is wrong", or skips and counts it (skip_bad).
//
//   mooncake  JSON lines: timestamp (ms), input_length, output_length, hash_ids (one per
//             512 tokens of the prompt). No sessions in the file: a request continues the
//             session that last used its deepest known block below the first.
//   agent     JSON lines, one session each: block_size, requests with t (s from the
//             session's start), in, out, hash_runs, stop, api_time; nested "subagent"
//             entries are sessions of their own that share the parent's ids.
//   azure     CSV TIMESTAMP,ContextTokens,GeneratedTokens: arrivals; nothing is shared.
//   csv       Turnkeep's own, documented in docs/policies.md:
//               # block_tokens=64
//               time_s,session,input_tokens,output_tokens,stop,blocks
//               0.5,alice,640,120,tool_use,1-10
//               9,alice,832,64,end_turn,1-9 12 40-42
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "trace.h"

namespace turnkeep::replay {

// When the sessions of a trace with times of its own per session begin.
struct SessionStarts {
  enum class Rule : uint8_t { kPoisson, kEvery, kFile, kUsers };
  Rule rule = Rule::kPoisson;
  double per_second = 0.02;  // kPoisson: rate; kEvery: one each 1 / per_second
  std::string file;          // kFile: arrivals of an azure CSV, one a session, in order
  uint32_t users = 1;        // kUsers: so many, each begins a session when its last has ended
};

struct ReadOptions {
  bool skip_bad = false;
  uint64_t seed = 1;
  SessionStarts starts;
  uint32_t default_block_tokens = 512;  // azure; csv without "# block_tokens"
};

// "mooncake", "agent", "azure", "csv", or "auto" (by the first line).
absl::StatusOr<Trace> ReadTrace(const std::string& path, const std::string& format,
                                const ReadOptions& options);

absl::StatusOr<Trace> ReadMooncake(const std::string& path, const ReadOptions& options);
absl::StatusOr<Trace> ReadAgent(const std::string& path, const ReadOptions& options);
absl::StatusOr<Trace> ReadAzure(const std::string& path, const ReadOptions& options);
absl::StatusOr<Trace> ReadCsv(const std::string& path, const ReadOptions& options);

// Arrival times in seconds from the first, of an azure CSV.
absl::StatusOr<std::vector<double>> ReadArrivals(const std::string& path);

}  // namespace turnkeep::replay
