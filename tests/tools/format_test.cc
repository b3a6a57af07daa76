// What people see: numbers, tables, progress, and nothing that steers their terminal.
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/clock.h"
#include "human.h"
#include "progress.h"
#include "table.h"

namespace turnkeep {
namespace {

TEST(Human, Bytes) {
  const std::pair<uint64_t, const char*> cases[] = {{0, "0 B"},
                                                    {1023, "1023 B"},
                                                    {1024, "1.0 KiB"},
                                                    {1536, "1.5 KiB"},
                                                    {1024 * 1024 - 1, "1.0 MiB"},
                                                    {uint64_t{63} << 30, "63.0 GiB"},
                                                    {UINT64_MAX, "16.0 EiB"}};
  for (const auto& [bytes, text] : cases) EXPECT_EQ(HumanBytes(bytes), text) << bytes;
}

TEST(Human, Counts) {
  EXPECT_EQ(HumanCount(0), "0");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(HumanCount(1000), "1,000");
  EXPECT_EQ(HumanCount(1048576), "1,048,576");
}

TEST(Human, Seconds) {
  const std::pair<double, const char*> cases[] = {
      {0, "0 s"},          {-1, "0 s"},      {2e-7, "1 us"},    {850e-6, "850 us"},
      {1.25e-3, "1.2 ms"}, {12e-3, "12 ms"}, {0.9999, "1.0 s"}, {3.21, "3.2 s"},
      {5, "5 s"},          {42.4, "42 s"},   {60, "1 min"},     {3599, "1 h"},
      {7500, "2 h 5 min"}, {86400, "24 h"},  {260000, "3 d"},   {300000, "3 d 11 h"},
      {1e300, "forever"}};
  for (const auto& [seconds, text] : cases) EXPECT_EQ(HumanSeconds(seconds), text) << seconds;
}

TEST(Human, TimesAndShares) {
  EXPECT_EQ(HumanAgo(0, 1000), "never");
  EXPECT_EQ(HumanAgo(1000, 1000), "now");
  EXPECT_EQ(HumanAgo(1007, 1000), "now");  // the clock stepped
  EXPECT_EQ(HumanAgo(997, 1000), "3 s ago");
  EXPECT_EQ(HumanIn(1180, 1000), "in 3 min");
  EXPECT_EQ(HumanIn(900, 1000), "due");
  EXPECT_EQ(HumanShare(0, 0), "-");
  EXPECT_EQ(HumanShare(0, 7), "0%");
  EXPECT_EQ(HumanShare(1, 1000), "<1%");
  EXPECT_EQ(HumanShare(999, 1000), "99%");
  EXPECT_EQ(HumanShare(7, 7), "100%");
}

TEST(Human, WidthsAreThoseOfATerminal) {
  EXPECT_EQ(DisplayWidth("alice"), 5u);
  EXPECT_EQ(DisplayWidth("Zoë"), 3u);
  EXPECT_EQ(DisplayWidth("e\u0301"), 1u);  // combining
  EXPECT_EQ(DisplayWidth("会話"), 4u);
  EXPECT_EQ(DisplayWidth("\xff\xfe"), 2u);  // not UTF-8
}

TEST(Human, PrintableLeavesNothingThatSteersATerminal) {
  EXPECT_EQ(Printable("Zoë 会話"), "Zoë 会話");
  EXPECT_EQ(Printable("a\x1b[2Jb\nc"), "a\uFFFD[2Jb\uFFFDc");
  EXPECT_EQ(Printable("\u009b31m"), "\uFFFD31m");  // C1 control
  EXPECT_EQ(Printable("a\u202Eb"), "a\uFFFDb");    // reverses what follows
  EXPECT_EQ(Printable("\xc0\xaf\xe4\xbc"), "\uFFFD\uFFFD\uFFFD\uFFFD");
}

TEST(Table, AlignsColumnsAndLeavesOutEmptyOnes) {
  Table table({{"SESSION"}, {"TOKENS", Align::kRight}, {"PIN"}, {"MODEL"}});
  table.AddRow({"会話", "7", "", "llama"});
  table.AddRow({"agent-1", "1,234", "", ""});
  EXPECT_EQ(table.Render(Style::Plain()),
            "SESSION  TOKENS  MODEL\n"
            "会話          7  llama\n"
            "agent-1   1,234\n");
}

TEST(Table, WithoutRowsIsNothing) { EXPECT_EQ(Table({{"A"}}).Render(Style::Plain()), ""); }

TEST(Table, CellsCannotAddLinesOrColours) {
  Table table({{"A"}, {"B"}});
  table.AddRow({"x\ny", "\x1b[31mred"});
  EXPECT_EQ(table.Render(Style::Plain()), "A    B\nx\uFFFDy  \uFFFD[31mred\n");
}

TEST(Table, HeadingIsBoldOnATerminal) {
  Table table({{"A"}});
  table.AddRow({"x"});
  EXPECT_EQ(table.Render(Style::Terminal()), "\x1b[1mA\x1b[0m\nx\n");
}

TEST(Fields, AlignValues) {
  Fields fields;
  fields.Add("model", "m");
  fields.Add("last use", "now");
  EXPECT_EQ(fields.Render(Style::Plain()), "model:     m\nlast use:  now\n");
}

TEST(Progress, LineHasBarShareRateAndTimeLeft) {
  EXPECT_EQ(ProgressLine("verify", uint64_t{3} << 30, uint64_t{4} << 30, 3),
            "verify  [###############.....]   75%  3.0 GiB of 4.0 GiB  1.0 GiB/s  1 s left");
  EXPECT_EQ(ProgressLine("fsck", 0, 100, 2),
            "fsck  [....................]    0%  0 B of 100 B  0 B/s  ");
  EXPECT_EQ(ProgressLine("x", 7, 0, 2), "x  [####################]  100%  0 B of 0 B  0 B/s  ");
}

class ProgressTest : public ::testing::Test {
 protected:
  ProgressTest() {
    environment_.clock = &clock_;
    environment_.write_err = [this](std::string_view text) { err_ += text; };
    environment_.err_is_terminal = true;
  }
  ManualClock clock_;
  Environment environment_;
  std::string err_;
};

TEST_F(ProgressTest, ShowsNothingInTheFirstSecond) {
  Progress progress(environment_, "verify");
  clock_.AdvanceNs(999'000'000);
  progress.Update(1, 2);
  EXPECT_EQ(err_, "");
}

TEST_F(ProgressTest, RefreshesTenTimesASecondAndClearsItsLine) {
  {
    Progress progress(environment_, "verify");
    clock_.AdvanceSeconds(2);
    progress.Update(1, 2);
    EXPECT_THAT(err_, ::testing::HasSubstr("50%"));
    err_.clear();
    clock_.AdvanceNs(50'000'000);
    progress.Update(2, 2);
    EXPECT_EQ(err_, "");
    clock_.AdvanceNs(60'000'000);
    progress.Update(2, 2);
    EXPECT_THAT(err_, ::testing::HasSubstr("100%"));
    err_.clear();
  }
  EXPECT_EQ(err_, "\r\x1b[K");
}

TEST_F(ProgressTest, IsSilentWithoutATerminal) {
  environment_.err_is_terminal = false;
  {
    Progress progress(environment_, "verify");
    clock_.AdvanceSeconds(5);
    progress.Update(1, 2);
  }
  EXPECT_EQ(err_, "");
}

}  // namespace
}  // namespace turnkeep
