#include "api/admin.h"

#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "api/paths.h"
#include "api/raw_connection.h"
#include "testing/client_factory.h"
#include "testing/kv_pattern.h"
#include "testing/layouts.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class AdminHttp : public ::testing::Test {
 protected:
  // Sends `request` and returns all that comes until the daemon closes the connection.
  std::string Exchange(const std::string& request, bool tcp = false) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    auto fd = tcp ? ConnectLoopback({.host = "127.0.0.1", .port = daemon_.server().admin_port()},
                                    deadline)
                  : ConnectUnix(daemon_.admin_socket_path(), deadline);
    EXPECT_TRUE(fd.ok()) << fd.status();
    if (!fd.ok()) return "";
    EXPECT_EQ(::send(fd->get(), request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    std::string answer;
    char buffer[4096];
    for (;;) {
      const ssize_t n = ::recv(fd->get(), buffer, sizeof(buffer), 0);
      if (n > 0) {
        answer.append(buffer, static_cast<size_t>(n));
      } else if (n == 0 || errno != EAGAIN || !WaitForFd(fd->get(), POLLIN, deadline).ok()) {
        return answer;
      }
    }
  }
  std::string Get(const std::string& target, const std::string& method = "GET", bool tcp = false) {
    return Exchange(method + " " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                    tcp);
  }
  static std::string BodyOf(const std::string& answer) {
    const size_t at = answer.find("\r\n\r\n");
    return at == std::string::npos ? "" : answer.substr(at + 4);
  }

  DaemonHarness daemon_{
      HarnessOptions{.admin = true, .server = {.admin_timeout = absl::Milliseconds(300)}}};
};

TEST_F(AdminHttp, HealthAndReadiness) {
  EXPECT_THAT(Get("/healthz"), StartsWith("HTTP/1.1 200"));
  EXPECT_EQ(BodyOf(Get("/healthz")), "ok\n");
  EXPECT_EQ(BodyOf(Get("/readyz", "GET", /*tcp=*/true)), "ready\n");
  ASSERT_TRUE(daemon_.server().Drain(absl::Seconds(1)).ok());
  EXPECT_THAT(Get("/readyz"), StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(Get("/healthz"), StartsWith("HTTP/1.1 200"));
}

TEST_F(AdminHttp, MethodsAndPathsThatAreNotOffered) {
  for (const char* method : {"POST", "PUT", "DELETE", "PATCH"}) {
    const std::string answer = Get("/v1/status", method);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 405")) << method;
    EXPECT_THAT(answer, HasSubstr("Allow: GET, HEAD"));
  }
  for (const char* path : {"/", "/v1", "/v2/status", "/metrics/", "/../etc/passwd"}) {
    EXPECT_THAT(Get(path), StartsWith("HTTP/1.1 404")) << path;
  }
}

TEST_F(AdminHttp, HeadHasTheLengthAndNoBody) {
  const std::string answer = Get("/v1/status", "HEAD");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(answer, HasSubstr("Content-Length: "));
  EXPECT_EQ(BodyOf(answer), "");
}

TEST_F(AdminHttp, BadAndOversizedRequestsAreRefused) {
  EXPECT_THAT(Exchange("nonsense\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  const std::string large = "GET /healthz HTTP/1.1\r\nX: " + std::string(20000, 'x') + "\r\n\r\n";
  EXPECT_THAT(Exchange(large), StartsWith("HTTP/1.1 413"));
  EXPECT_THAT(Exchange("POST /healthz HTTP/1.1\r\nContent-Length: 5000\r\n\r\n"),
              StartsWith("HTTP/1.1 413"));
  EXPECT_THAT(Get("/healthz"), StartsWith("HTTP/1.1 200"));
}

TEST_F(AdminHttp, HalfARequestIsEndedInTime) {
  const absl::Time start = absl::Now();
  EXPECT_EQ(Exchange("GET /healthz HT"), "");
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST(AdminLimits, ConnectionsAreBounded) {
  DaemonHarness daemon(HarnessOptions{.admin = true, .server = {.max_admin_connections = 2}});
  const std::string request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  std::vector<UniqueFd> open;
  for (const bool answered : {true, true, false}) {
    auto fd = ConnectUnix(daemon.admin_socket_path(), deadline);
    ASSERT_TRUE(fd.ok()) << fd.status();
    (void)::send(fd->get(), request.data(), request.size(), MSG_NOSIGNAL);
    ASSERT_TRUE(WaitForFd(fd->get(), POLLIN, deadline).ok());
    char first = 0;
    EXPECT_EQ(::recv(fd->get(), &first, 1, 0) == 1, answered);
    open.push_back(*std::move(fd));
  }
}

TEST_F(AdminHttp, StatusIsJson) {
  const auto json = nlohmann::json::parse(BodyOf(Get("/v1/status")));
  EXPECT_EQ(json["session_count"], 0);
  EXPECT_EQ(json["host"]["capacity_bytes"], 256 * kMiB);
  EXPECT_TRUE(json["warnings"].is_array());
}

TEST_F(AdminHttp, SessionsArePaged) {
  auto client = daemon_.UnixClient();
  const KvPattern pattern(SmallLayout());
  ASSERT_TRUE(client->RegisterLayout(pattern.layout()).ok());
  KvContext context;
  context.Append(MakeTokens(1, 100));
  for (const char* name : {"a b", "a c", "b%"}) {
    ASSERT_TRUE(SaveAll(*client, pattern, {.session = name, .context = &context}).ok());
  }
  auto page = nlohmann::json::parse(BodyOf(Get("/v1/sessions?limit=2")));
  ASSERT_EQ(page["sessions"].size(), 2u);
  EXPECT_EQ(page["sessions"][0]["name"], "a b");
  EXPECT_EQ(page["sessions"][0]["token_count"], 100);
  EXPECT_EQ(page["next"], "a c");
  page = nlohmann::json::parse(BodyOf(Get("/v1/sessions?limit=2&after=a%20c")));
  ASSERT_EQ(page["sessions"].size(), 1u);
  EXPECT_EQ(page["sessions"][0]["name"], "b%");
  EXPECT_FALSE(page.contains("next"));
  page = nlohmann::json::parse(BodyOf(Get("/v1/sessions?prefix=b%25&tenant=default")));
  EXPECT_EQ(page["sessions"].size(), 1u);
}

TEST_F(AdminHttp, BadQueriesAreExplained) {
  auto client = daemon_.UnixClient();  // so that the tenant is there
  EXPECT_THAT(Get("/v1/sessions?limit=0"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Get("/v1/sessions?limit=x"), HasSubstr("limit: 'x'"));
  EXPECT_THAT(Get("/v1/sessions?colour=red"), HasSubstr("unknown key 'colour'"));
  EXPECT_THAT(Get("/v1/sessions?prefix=%zz"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Get("/v1/sessions?tenant=nobody"), StartsWith("HTTP/1.1 404"));
  const auto activity = nlohmann::json::parse(BodyOf(Get("/v1/activity?limit=2&after=0")));
  EXPECT_GT(activity["eviction_window_bytes"], 0);
  EXPECT_EQ(activity["expected_count"], 0);
  EXPECT_TRUE(activity["events"].is_array());
  EXPECT_THAT(Get("/v1/activity?limit=4097"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Get("/v1/activity?after=-1"), HasSubstr("after: '-1'"));
  EXPECT_THAT(Get("/v1/activity?colour=red"), HasSubstr("unknown key 'colour'"));
  EXPECT_THAT(Get("/v1/activity?tenant=nobody"), StartsWith("HTTP/1.1 404"));
  // Asking must not have made it.
  EXPECT_THAT(daemon_.store().ListTenants(), ::testing::Not(::testing::Contains("nobody")));
}

TEST_F(AdminHttp, MetricsCountWhatHappened) {
  auto client = daemon_.UnixClient();
  const KvPattern pattern(SmallLayout());
  ASSERT_TRUE(client->RegisterLayout(pattern.layout()).ok());
  KvContext context;
  context.Append(MakeTokens(1, 100));
  ASSERT_TRUE(SaveAll(*client, pattern, {.session = "a", .context = &context}).ok());
  const std::string answer = Get("/metrics");
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4"));
  const std::string text = BodyOf(answer);
  for (const char* line :
       {"turnkeep_sessions 1", "turnkeep_tier_capacity_bytes{tier=\"host\"} 268435456",
        "turnkeep_server_connections 1", "turnkeep_server_accepted_total 1",
        "turnkeep_server_request_seconds_count{verb=\"commit\"} 1",
        "# TYPE turnkeep_server_request_seconds histogram"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

}  // namespace
}  // namespace turnkeep::testing
