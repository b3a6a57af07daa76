#!/usr/bin/python3
"""Feeds scripts/count_tests.py the results of programs that pass, fail, skip, crash or run nothing.
Usage: count_tests_selftest.py SCRATCH_FOLDER"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

COUNT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "count_tests.py"
SCRATCH = None
STARTED = "[==========] Running 3 tests from 1 test suite."


def program(*cases):
    return "<testsuites><testsuite>" + "".join(cases) + "</testsuite></testsuites>"


def case(name, body="", status="run"):
    return f'<testcase name="{name}" status="{status}" classname="Pool">{body}</testcase>'


def ctest(*tests):
    return "<testsuite>" + "".join(
        f'<testcase name="{name}" status="{status}">{body}<system-out>{output}</system-out></testcase>'
        for name, status, output, body in tests) + "</testsuite>"


class CountTest(unittest.TestCase):
    def count(self, junit, programs=None, checks=""):
        results = pathlib.Path(tempfile.mkdtemp(dir=SCRATCH))
        self.addCleanup(shutil.rmtree, results)
        (results / "gtest").mkdir()
        for name, text in (programs or {}).items():
            (results / "gtest" / name).write_text(text)
        if junit:
            (results / "ctest.xml").write_text(junit)
        if checks:
            (results / "checks").write_text(checks)
        run = subprocess.run([COUNT, results], capture_output=True, text=True, check=False)
        self.assertEqual(run.stderr, "")
        return run.returncode, run.stdout.splitlines()

    def test_cases_and_checks_are_added(self):
        status, lines = self.count(ctest(("pool_test", "run", STARTED, "")),
                                   {"pool_test.xml": program(case("A"), case("B"))},
                                   "passed tidy\n")
        self.assertEqual((status, lines), (0, ["3 passed, 0 failed, 0 skipped"]))

    def test_failed_case_fails(self):
        status, lines = self.count(ctest(("pool_test", "fail", STARTED, "<failure/>")),
                                   {"pool_test.xml": program(case("A"), case("B", "<failure/>"))})
        self.assertEqual((status, lines[-1]), (1, "1 passed, 1 failed, 0 skipped"))

    def test_failed_check_fails(self):
        status, lines = self.count(ctest(("s", "run", "", "")), checks="failed build release\n")
        self.assertEqual((status, lines[0]), (1, "failed: build release"))

    def test_skips_are_named_with_their_reason(self):
        status, lines = self.count(
            ctest(("pool_test", "run", STARTED, ""),
                  ("script", "notrun", "SKIP: no root", '<skipped message="77"/>')),
            {"pool_test.xml": program(case("A"), case("Gpu", '<skipped message="no GPU"/>'),
                                      case("Off", status="notrun"))})
        self.assertEqual(status, 0)
        self.assertEqual(lines, ["skipped: pool_test: Pool.Gpu (no GPU)",
                                 "skipped: pool_test: Pool.Off (disabled)",
                                 "skipped: script (no root)", "1 passed, 0 failed, 3 skipped"])

    def test_crash_before_the_results_are_written_is_one_failure(self):
        status, lines = self.count(ctest(("pool_test", "fail", STARTED, "<failure/>")))
        self.assertEqual((status, lines[-1]), (1, "0 passed, 1 failed, 0 skipped"))

    def test_error_after_the_last_case_is_a_failure(self):
        status, lines = self.count(ctest(("pool_test", "fail", STARTED, "<failure/>")),
                                   {"pool_test.xml": program(case("A"))})
        self.assertEqual((status, lines[-1]), (1, "1 passed, 1 failed, 0 skipped"))

    def test_program_that_left_early_with_exit_code_0_is_a_failure(self):
        status, _ = self.count(ctest(("pool_test", "run", STARTED, ""), ("s", "run", "", "")))
        self.assertEqual(status, 1)

    def test_nothing_run_is_a_failure(self):
        self.assertEqual(self.count("")[0], 1)
        self.assertEqual(self.count(ctest(), checks="passed build\n")[0], 1)


if __name__ == "__main__":
    SCRATCH = sys.argv.pop(1)
    pathlib.Path(SCRATCH).mkdir(parents=True, exist_ok=True)
    unittest.main()
