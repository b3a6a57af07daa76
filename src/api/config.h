// turnkeepd's configuration: embedded defaults, then a TOML file, then flags; the later
// wins. Every key of the file is also a flag: store.host_bytes is --store.host_bytes.
//
//   TK_ASSIGN_OR_RETURN(DaemonConfig config,
//                       LoadConfig({.file = "turnkeep.toml", .overrides = {{"dir", "/srv/tk"}}}));
//
// Thread-safety: pure functions over plain values (the environment gives the default folder).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "api/server_options.h"
#include "store/store.h"

namespace turnkeep {

struct DaemonConfig {
  std::string dir;  // everything below it unless said otherwise
  ServerOptions server;
  StoreOptions store;
  absl::Duration drain_timeout = absl::Seconds(10);
  absl::Duration flush_timeout = absl::Seconds(60);
  std::string log_level = "info";
  std::string log_format = "text";
  std::string log_file;  // empty: standard error
};

struct ConfigSources {
  std::string file;                                            // empty: none
  std::vector<std::pair<std::string, std::string>> overrides;  // key, value as text
};

// The effective, validated configuration, with every path filled in. InvalidArgument
// names the key, the value and (from a file) the line; NotFound: no such file.
absl::StatusOr<DaemonConfig> LoadConfig(const ConfigSources& sources);

// The configuration as a TOML file with a comment to every key. Tokens are left out.
std::string ConfigToToml(const DaemonConfig& config);

// For flags and documents.
struct ConfigKey {
  std::string name;  // "store.host_bytes"
  std::string help;
  std::string default_text;
};
std::vector<ConfigKey> ConfigKeys();

}  // namespace turnkeep
