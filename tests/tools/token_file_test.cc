// Token files: three notations, and errors that say where.
#include "token_file.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"

namespace turnkeep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(TokenFile, ReadsEveryNotation) {
  const std::string binary("\x01\x00\x00\x00\xff\xff\xff\xff", 8);
  struct Case {
    std::string text;
    bool binary;
  };
  const Case cases[] = {{"[1, 4294967295]", false},      {" [1,4294967295] \n", false},
                        {"1 4294967295", false},         {"\n1\t\r\n4294967295\n", false},
                        {"[\n1\n,\n4294967295]", false}, {binary, true}};
  for (const Case& one : cases) {
    const auto tokens = ParseTokens("f", one.text, one.binary);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_THAT(*tokens, ElementsAre(1u, 4294967295u)) << one.text;
  }
}

TEST(TokenFile, ErrorsNameFilePositionAndValue) {
  struct Case {
    std::string text;
    bool binary;
    const char* message;
  };
  const Case cases[] = {
      {"", false, "f: no tokens"},
      {" \n", false, "f: no tokens"},
      {"[]", false, "f: no tokens"},
      {"", true, "f: no tokens"},
      {"1 2\n3 x4", false,
       "f: line 2, column 3: a token id from 0 to 4294967295 is expected, "
       "found \"x4\""},
      {"1 -2", false,
       "line 1, column 3: a token id from 0 to 4294967295 is expected, found \"-2\""},
      {"1 2.5", false, "found \"2.5\""},
      {"4294967296", false, "found \"4294967296\""},
      {"1, 2", false, "line 1, column 2: a token id from 0 to 4294967295 is expected, found \",\""},
      {"[1 2]", false, "line 1, column 4: \",\" or \"]\" is expected, found \"2\""},
      {"[1,", false, "found the end of the file"},
      {"[1", false, "\",\" or \"]\" is expected, found the end of the file"},
      {"[1,]", false, "found \"]\""},
      {"[[1]]", false, "found \"[\""},
      {"[1] 2", false, "nothing after the array is expected, found \"2\""},
      {"[1]]", false, "line 1, column 4: nothing after the array is expected, found \"]\""},
      {"abcde", true, "f: byte 4: 1 bytes are left, a token id has 4"},
  };
  for (const Case& one : cases) {
    const auto tokens = ParseTokens("f", one.text, one.binary);
    EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument) << one.text;
    EXPECT_THAT(MessageOf(tokens.status()), HasSubstr(one.message)) << one.text;
  }
}

TEST(TokenFile, MissingFileIsNamed) {
  const auto tokens = ReadTokenFile("/nowhere/prompt.json");
  EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(tokens.status()), HasSubstr("/nowhere/prompt.json: No such file"));
}

}  // namespace
}  // namespace turnkeep
