// The HTTP admin: read-only, on a Unix socket or a loopback port. Internal to src/api;
// server's thread only. GET and HEAD of
//
//   /healthz       200 while the process answers
//   /readyz        200, or 503 while it drains
//   /metrics       Prometheus text
//   /v1/status     the store's status as JSON
//   /v1/sessions   sessions as JSON; ?tenant=, ?prefix=, ?after=, ?limit= (paging by "next")
//   /v1/activity   hinted queue, windows and last decisions; ?tenant=, ?after= (a number), ?limit=
//
// Whoever may open the socket sees every tenant; it is 0600 for that.
#pragma once

#include <cstdint>
#include <memory>

#include <absl/status/statusor.h>

#include "api/server_context.h"

namespace turnkeep {

class Admin {
 public:
  // Listens where the options say; nowhere is fine.
  static absl::StatusOr<std::unique_ptr<Admin>> Start(ServerContext& context);
  virtual ~Admin() = default;
  // Ends all connections. Their handlers may still run once.
  virtual void Stop() = 0;
  virtual uint16_t port() const = 0;
};

// What a request gets. Runs on a worker thread, since listing sessions may take long.
struct AdminAnswer {
  unsigned status = 200;
  std::string content_type = "application/json";
  std::string body;
};
AdminAnswer StatusAnswer(Store& store);
// `query` is what follows the question mark.
AdminAnswer SessionsAnswer(Store& store, const std::string& query);
AdminAnswer ActivityAnswer(Store& store, const std::string& query);
AdminAnswer ErrorAnswer(unsigned status, const std::string& message);

}  // namespace turnkeep
