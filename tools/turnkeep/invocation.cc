#include "invocation.h"

#include "core/status.h"
#include "human.h"

namespace turnkeep {

absl::StatusOr<KvStore*> Invocation::store() {
  if (!connection_.has_value()) {
    TK_ASSIGN_OR_RETURN(connection_, environment_.connect(global_));
  }
  return connection_->store;
}

bool Invocation::Flush() {
  const bool read = out_.empty() || environment_.write_out(out_);
  out_.clear();
  return read;
}

void Invocation::Complain(std::string_view what) {
  environment_.write_err(fmt::format("turnkeep: {}\n", Printable(what)));
}

ExitCode Invocation::Fail(const absl::Status& status) {
  Complain(MessageOf(status));
  return ExitCodeOf(status);
}

}  // namespace turnkeep
