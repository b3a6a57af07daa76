#include "api/config.h"

#include <sys/stat.h>

#include <cstdlib>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/quantities.h"
#include "core/status.h"
#include "testing/temporary_directory.h"

namespace turnkeep {
namespace {

using ::testing::HasSubstr;

class Config : public ::testing::Test {
 protected:
  void SetUp() override { ::setenv("TURNKEEP_DIR", "/tmp/turnkeep-config-test", 1); }

  absl::StatusOr<DaemonConfig> Load(
      const std::string& toml, std::vector<std::pair<std::string, std::string>> overrides = {}) {
    const std::string file = directory_.path() + "/turnkeep.toml";
    std::ofstream(file) << toml;
    ::chmod(file.c_str(), 0600);
    return LoadConfig({.file = file, .overrides = std::move(overrides)});
  }

  testing::TemporaryDirectory directory_;
};

TEST_F(Config, DefaultsNeedNoFile) {
  const auto config = LoadConfig({});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->server.socket_path, "/tmp/turnkeep-config-test/turnkeep.sock");
  EXPECT_EQ(config->server.admin_socket_path, "/tmp/turnkeep-config-test/admin.sock");
  EXPECT_EQ(config->store.data_dir, "/tmp/turnkeep-config-test/data");
  EXPECT_EQ(config->store.host_bytes, 4 * kGiB);
  EXPECT_TRUE(config->server.tcp_address.empty());
}

TEST_F(Config, FileThenFlags) {
  const auto config = Load(
      "dir = '/srv/tk'\n[store]\nhost_bytes = '8GiB'\ndurability = 'sync'\nio_depth = 8\n"
      "high_watermark = 0.8\nlow_watermark = 0.7\ndirect_io = false\ndefault_ttl = '7d'\n"
      "[timeouts]\ndrain = '1500ms'\n[[tenant]]\nname = 'alice'\nuids = [1000, 1001]\n"
      "token = 'sixteen bytes or more'\n",
      {{"store.host_bytes", "1GiB"}, {"listen.admin_socket", "none"}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->store.host_bytes, 1 * kGiB);
  EXPECT_EQ(config->store.durability, Durability::kSync);
  EXPECT_EQ(config->store.io_depth, 8u);
  EXPECT_EQ(config->store.high_watermark, 0.8);
  EXPECT_FALSE(config->store.direct_io);
  EXPECT_EQ(config->store.default_ttl, absl::Hours(24 * 7));
  EXPECT_EQ(config->drain_timeout, absl::Milliseconds(1500));
  EXPECT_EQ(config->server.socket_path, "/srv/tk/turnkeep.sock");
  EXPECT_EQ(config->server.admin_socket_path, "");
  ASSERT_EQ(config->server.tenants.size(), 1u);
  EXPECT_EQ(config->server.tenants[0].uids, (std::vector<uint32_t>{1000, 1001}));
}

TEST_F(Config, WhatIsPrintedIsReadBack) {
  const auto config =
      Load("[store]\nhost_bytes = '3GiB'\ndefault_ttl = '90m'\n[log]\nfile = 'a\"b'\n");
  ASSERT_TRUE(config.ok()) << config.status();
  const auto again = Load(ConfigToToml(*config));
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << ConfigToToml(*config);
  EXPECT_EQ(ConfigToToml(*again), ConfigToToml(*config));
  EXPECT_EQ(again->store.host_bytes, 3 * kGiB);
  EXPECT_EQ(again->log_file, "a\"b");
}

TEST_F(Config, PrintedConfigurationHoldsNoToken) {
  const auto config = Load("[[tenant]]\nname = 'a'\ntoken = 'sixteen bytes or more'\n");
  ASSERT_TRUE(config.ok());
  EXPECT_THAT(ConfigToToml(*config), ::testing::Not(HasSubstr("sixteen")));
}

TEST_F(Config, ErrorsNameKeyValueAndLine) {
  struct Case {
    const char* toml;
    std::vector<const char*> words;
  };
  const Case cases[] = {
      {"[store]\n\nhost_bites = 3\n", {":3:", "store.host_bites", "unknown key"}},
      {"surprise = 1\n", {":1:", "surprise", "unknown key"}},
      {"[storage]\nhost_bytes = 1\n", {":1:", "storage", "unknown key"}},
      {"[store]\nhost_bytes = '4XiB'\n", {":2:", "store.host_bytes", "'4XiB'", "size"}},
      {"[store]\nhost_bytes = '1KiB'\n", {"store.host_bytes", "'1KiB'", "1MiB"}},
      {"[store]\nhost_bytes = '99999999999GiB'\n", {"store.host_bytes", "'99999999999GiB'"}},
      {"[store]\nhost_bytes = [1]\n", {":2:", "store.host_bytes", "single value"}},
      {"[store]\nio_depth = 0\n", {"store.io_depth", "'0'", "1 to 256"}},
      {"[store]\nio_depth = 'many'\n", {"store.io_depth", "'many'", "number"}},
      {"[store]\ndirect_io = 'perhaps'\n", {"store.direct_io", "'perhaps'", "true"}},
      {"[store]\ndurability = 'eventually'\n", {"store.durability", "eventually"}},
      {"[store]\ndefault_ttl = '3 fortnights'\n", {"store.default_ttl", "'3 fortnights'"}},
      {"[store]\nhigh_watermark = 0.5\nlow_watermark = 0.6\n", {"store.low_watermark", "0.6"}},
      {"[store]\nhigh_watermark = 1.5\n", {"store.high_watermark", "'1.5'"}},
      {"[listen]\ntcp = '0.0.0.0:7411'\n", {"listen.tcp", "0.0.0.0:7411", "loopback"}},
      {"[listen]\ntcp = '[::]:7411'\n", {"listen.tcp", "[::]:7411", "loopback"}},
      {"[listen]\ntcp = '192.168.1.2:7411'\n", {"listen.tcp", "192.168.1.2", "loopback"}},
      {"[listen]\ntcp = 'example.com:7411'\n", {"listen.tcp", "example.com", "numeric"}},
      {"[listen]\ntcp = '127.0.0.1:70000'\n", {"listen.tcp", "70000", "port"}},
      {"[listen]\ntcp = '127.0.0.1'\n", {"listen.tcp", "ADDRESS:PORT"}},
      {"[listen]\ntcp = '127.0.0.1:7411'\n", {"listen.tcp", "token"}},
      {"[listen]\nadmin_tcp = '0.0.0.0:1'\n", {"listen.admin_tcp", "loopback"}},
      {"[log]\nlevel = 'loud'\n", {"log.level", "'loud'"}},
      {"[log]\nformat = 'xml'\n", {"log.format", "'xml'"}},
      {"[tenant]\nname = 'a'\n", {"tenant", "[[tenant]]"}},
      {"[[tenant]]\nuids = [1]\n", {"tenant.name", "missing"}},
      {"[[tenant]]\nname = 'a'\nuids = [-1]\n", {":3:", "tenant.uids"}},
      {"[[tenant]]\nname = 'a'\ncolour = 'b'\n", {":3:", "tenant.colour", "unknown key"}},
      {"[[tenant]]\nname = 'a'\ntoken = 'short'\n", {"tenant.token", "5 bytes"}},
      {"[[tenant]]\nname = 'a'\n[[tenant]]\nname = 'a'\n", {"tenant.name", "twice"}},
      {"[[tenant]]\nname = 'a'\nuids = [7]\n[[tenant]]\nname = 'b'\nuids = [7]\n",
       {"user 7", "two tenants"}},
      {"[[tenant]]\nname = 'a'\ntoken_file = '/nonexistent'\n", {"token_file", "/nonexistent"}},
      {"dir = \n", {":1:"}},
  };
  for (const Case& c : cases) {
    const auto config = Load(c.toml);
    ASSERT_TRUE(absl::IsInvalidArgument(config.status())) << c.toml << config.status();
    for (const char* word : c.words) {
      EXPECT_THAT(MessageOf(config.status()), HasSubstr(word)) << c.toml;
    }
  }
}

TEST_F(Config, FlagErrorsNameTheFlag) {
  const auto config = LoadConfig({.overrides = {{"store.io_depth", "1000"}}});
  EXPECT_THAT(MessageOf(config.status()), HasSubstr("--store.io_depth: '1000'"));
  EXPECT_TRUE(absl::IsInvalidArgument(LoadConfig({.overrides = {{"nothing", "1"}}}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(LoadConfig({.overrides = {{"tenant", "a:x"}}}).status()));
}

TEST_F(Config, LongSocketPathIsRefusedWithItsLength) {
  const auto config = LoadConfig({.overrides = {{"dir", "/" + std::string(120, 'd')}}});
  EXPECT_THAT(MessageOf(config.status()), HasSubstr("listen.socket"));
  EXPECT_THAT(MessageOf(config.status()), HasSubstr("107"));
}

TEST_F(Config, FileWithTokenMustBePrivate) {
  const std::string file = directory_.path() + "/open.toml";
  std::ofstream(file) << "[[tenant]]\nname = 'a'\ntoken = 'sixteen bytes or more'\n";
  ::chmod(file.c_str(), 0644);
  const auto config = LoadConfig({.file = file});
  EXPECT_THAT(MessageOf(config.status()), HasSubstr("0644"));
}

TEST_F(Config, MissingFileIsNotFound) {
  EXPECT_TRUE(absl::IsNotFound(LoadConfig({.file = "/nonexistent.toml"}).status()));
}

TEST_F(Config, TenantFlagReplacesTheFilesTenant) {
  const std::string token_file = directory_.path() + "/token";
  std::ofstream(token_file) << "a token from a file\n";
  ::chmod(token_file.c_str(), 0600);
  const auto config =
      Load("[[tenant]]\nname = 'a'\nuids = [1]\n", {{"tenant", "a:2,3:" + token_file}});
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->server.tenants.size(), 1u);
  EXPECT_EQ(config->server.tenants[0].uids, (std::vector<uint32_t>{2, 3}));
  EXPECT_EQ(config->server.tenants[0].token, "a token from a file");
}

TEST(Quantities, SizesAndDurations) {
  EXPECT_EQ(*ParseBytes("4GiB"), 4 * kGiB);
  EXPECT_EQ(*ParseBytes("64 MiB"), 64 * kMiB);
  EXPECT_EQ(*ParseBytes("100MB"), 100'000'000u);
  EXPECT_EQ(*ParseBytes("4096"), 4096u);
  EXPECT_EQ(*ParseDuration("30s"), absl::Seconds(30));
  EXPECT_EQ(*ParseDuration("250us"), absl::Microseconds(250));
  EXPECT_EQ(*ParseDuration("never"), absl::InfiniteDuration());
  for (const char* bad : {"", "GiB", "-1", "1.5GiB", "1gib", "18446744073709551616", "1 2"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
    EXPECT_FALSE(ParseDuration(bad).ok()) << bad;
  }
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, 4 * kGiB, 3 * kMiB, uint64_t{12345}}) {
    EXPECT_EQ(*ParseBytes(BytesText(bytes)), bytes);
  }
  for (const int64_t us : {0, 1, 1500, 30'000'000}) {
    EXPECT_EQ(*ParseDuration(DurationText(absl::Microseconds(us))), absl::Microseconds(us));
  }
}

}  // namespace
}  // namespace turnkeep
