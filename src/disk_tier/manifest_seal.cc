#include "disk_tier/manifest_seal.h"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "core/status.h"

namespace turnkeep {

namespace {

constexpr const char* kWayOn =
    "\"turnkeep fsck DIR --rebuild-index\" salvages what can be read of it into a new one";

std::string SealPath(const std::string& index_directory) { return index_directory + ".seal"; }

// The file that CURRENT names, "" when there is none.
std::string ManifestName(const std::string& index_directory) {
  std::string name;
  std::getline(std::ifstream(index_directory + "/CURRENT"), name);
  return name;
}

bool HasRemains(const std::string& index_directory) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(index_directory, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("MANIFEST-") || name.ends_with(".sst") || name.ends_with(".log"))
      return true;
  }
  return false;
}

}  // namespace

absl::Status CheckManifest(const std::string& index_directory) {
  if (!std::filesystem::exists(index_directory) &&
      std::filesystem::exists(index_directory + ".new")) {
    return DataLoss("open index {}: its rebuilding was cut short; run it again", index_directory);
  }
  if (!std::filesystem::exists(index_directory + "/CURRENT") && HasRemains(index_directory)) {
    return DataLoss(
        "open index {}: CURRENT is missing, other files of an index are there; put CURRENT back "
        "(one line, the newest MANIFEST's name), or {}",
        index_directory, kWayOn);
  }
  std::string name;
  uint64_t bytes = 0;
  if (!(std::ifstream(SealPath(index_directory)) >> name >> bytes)) return absl::OkStatus();
  if (name != ManifestName(index_directory)) return absl::OkStatus();
  std::error_code error;
  const uint64_t now = std::filesystem::file_size(index_directory + "/" + name, error);
  if (error || now >= bytes) return absl::OkStatus();  // one that is not there RocksDB reports
  return DataLoss(
      "open index {}: {} has {} bytes and had {}: its end is lost, and with it what the index "
      "knew; put the whole file back, or {}",
      index_directory, name, now, bytes, kWayOn);
}

absl::Status CannotOpenIndex(const std::string& index_directory, const std::string& why) {
  return DataLoss("open index {}: {}; {}", index_directory, why, kWayOn);
}

void SealManifest(const std::string& index_directory) {
  const std::string name = ManifestName(index_directory);
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(index_directory + "/" + name, error);
  if (name.empty() || error) return;
  const std::string path = SealPath(index_directory);
  {
    std::ofstream out(path + ".new");
    out << name << " " << bytes << "\n";
    if (!out.flush()) return;
  }
  std::filesystem::rename(path + ".new", path, error);
}

}  // namespace turnkeep
