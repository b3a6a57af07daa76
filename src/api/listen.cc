#include "api/listen.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "api/socket_connect.h"
#include "core/status.h"

namespace turnkeep {

namespace {

constexpr int kBacklog = 128;

absl::Status PrepareFolder(const std::string& what, const std::string& path) {
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  std::error_code error;
  std::filesystem::create_directories(folder.parent_path(), error);
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, fmt::format("{}: make the folder {}", what, folder.string()));
  }
  struct stat info {};
  if (::stat(folder.c_str(), &info) != 0) {
    return ErrnoStatus(errno, fmt::format("{}: stat {}", what, folder.string()));
  }
  if (!S_ISDIR(info.st_mode)) {
    return InvalidArgument("{}: {} is not a folder", what, folder.string());
  }
  // The sticky bit does not help: another user could put a socket there first.
  if ((info.st_mode & 022) != 0 || (info.st_uid != ::geteuid() && info.st_uid != 0)) {
    return InvalidArgument(
        "{}: others can write to the folder {} (mode {:04o}, owner {}); "
        "use one of your own (chmod 700)",
        what, folder.string(), info.st_mode & 07777, info.st_uid);
  }
  return absl::OkStatus();
}

// OK when the path is free or holds a socket on which nobody answers (which is removed).
absl::Status ClearPath(const std::string& what, const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(errno, what + ": stat " + path);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return AlreadyExists("{}: {} exists and is not a socket", what, path);
  }
  const auto answer = ConnectUnix(path, absl::Now() + absl::Seconds(1));
  if (answer.ok()) return AlreadyExists("{}: another daemon answers on {}", what, path);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, fmt::format("{}: remove the stale socket {}", what, path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UnixListener> UnixListener::Open(const std::string& what, const std::string& path) {
  TK_RETURN_IF_ERROR(CheckSocketPath(what, path));
  TK_RETURN_IF_ERROR(PrepareFolder(what, path));
  const std::string lock_path = path + ".lock";
  UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return ErrnoStatus(errno, fmt::format("{}: open {}", what, lock_path));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return AlreadyExists("{}: another daemon holds {}", what, lock_path);
  }
  TK_RETURN_IF_ERROR(ClearPath(what, path));
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus(errno, what + ": create a socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  // The mode must be right from the moment the file is there.
  const mode_t old_mask = ::umask(0177);
  const int bound = ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int bind_error = errno;
  ::umask(old_mask);
  if (bound != 0) return ErrnoStatus(bind_error, fmt::format("{}: bind {}", what, path));
  UnixListener listener(std::move(fd), std::move(lock), path);
  if (::listen(listener.fd_.get(), kBacklog) != 0) {
    return ErrnoStatus(errno, fmt::format("{}: listen on {}", what, path));
  }
  return listener;
}

UnixListener::~UnixListener() {
  if (lock_.valid()) ::unlink(path_.c_str());  // a moved-from one holds no lock
}

}  // namespace turnkeep
