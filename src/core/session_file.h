// A session in one file: export, check, import. The format is in session_file_manifest.h
// and docs/session_file.md.
//
// Bytes go through ByteSink and ByteSource, in order and once, so that a session larger
// than memory passes; the caller opens, syncs and renames the file.
//
// Export refuses a session that is not whole. Import computes every digest while it
// fills the save ticket and commits only after the last byte has verified: a damaged file
// leaves no session behind (its layout may have been registered). Every error about the
// file is DataLoss and names the byte offset.
//
// Thread-safety: none of its own; the KvStore is.
//
//   TK_ASSIGN_OR_RETURN(SessionFileInfo info, ExportSession(store, "alice", sink, {}));
//   TK_ASSIGN_OR_RETURN(ImportedSession done, ImportSession(store, source, {.session = "bob"}));
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "core/kv_store.h"
#include "core/session_file_manifest.h"

namespace turnkeep {

class ByteSink {
 public:
  virtual ~ByteSink() = default;
  // Takes all of `bytes` or fails; the memory may be reused after the call.
  virtual absl::Status Append(std::span<const std::byte> bytes) = 0;
};

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Of the whole file, fixed while it is read.
  virtual uint64_t size_bytes() const = 0;
  // Fills all of `bytes` with what comes next, or fails.
  virtual absl::Status Read(std::span<std::byte> bytes) = 0;
};

// Called from the calling thread after every layer page.
using SessionFileProgress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

struct SessionFileInfo {
  std::string session;  // name in the file
  std::string model;
  Fingerprint layout;
  uint64_t token_count = 0;
  uint64_t chunk_count = 0;
  uint64_t file_bytes = 0;
  int64_t exported_unix_s = 0;
  std::string sha256_hex;  // of everything before the trailer
};

struct ExportOptions {
  // For the restore that feeds the file.
  absl::Duration deadline = absl::InfiniteDuration();
  int64_t now_unix_s = 0;  // recorded in the file
  SessionFileProgress progress;
};

struct ImportOptions {
  std::string session;  // empty: the name in the file
  absl::Duration commit_deadline = absl::Minutes(10);
  SessionFileProgress progress;
};

struct ImportedSession {
  SessionFileInfo file;
  std::string session;
  CommitResult commit;
};

// NotFound: no such session. FailedPrecondition: not every token of it is stored (the
// message says how many are and why), or it changed meanwhile. Blocks for the whole copy.
absl::StatusOr<SessionFileInfo> ExportSession(KvStore& store, const std::string& session,
                                              ByteSink& sink, const ExportOptions& options);

// AlreadyExists: the session does. ResourceExhausted: no room for all of its tokens.
// Chunks that the store has already are checked in the file but not written again.
absl::StatusOr<ImportedSession> ImportSession(KvStore& store, ByteSource& source,
                                              const ImportOptions& options);

// Reads and checks every byte of the file without a store.
absl::StatusOr<SessionFileInfo> CheckSessionFile(ByteSource& source,
                                                 const SessionFileProgress& progress);

}  // namespace turnkeep
