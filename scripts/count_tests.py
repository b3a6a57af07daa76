#!/usr/bin/python3
"""Counts test cases after scripts/test and prints the one line that says how it went.

    count_tests.py RESULTS

RESULTS holds ctest.xml (CTest's JUnit file), gtest/*.xml (one file a GoogleTest program) and
checks (lines "passed NAME", "failed NAME" or "skipped NAME"). A GoogleTest program counts by its
cases; every other CTest test and every check counts as one. What could not be counted is a
failure: a program that crashed or timed out before it wrote its cases, one that ran none, one that
exited non-zero although no case failed. Exit code 0 only if something passed and nothing failed.
"""

import pathlib
import re
import sys
import xml.etree.ElementTree as ET


def gtest_cases(path):
    """Yields (name, outcome, reason) for each case in one GoogleTest XML file."""
    for case in ET.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None:
            yield name, "failed", ""
        elif skipped is not None:
            yield name, "skipped", " ".join((skipped.get("message") or "").split())
        elif case.get("status") == "notrun":
            yield name, "skipped", "disabled"
        else:
            yield name, "passed", ""


def script_case(test):
    """The (name, outcome, reason) of a CTest test that is not a GoogleTest program."""
    name = test.get("name")
    if test.find("skipped") is not None:
        output = test.findtext("system-out") or ""
        reason = re.search(r"^SKIP(?:PED)?: *(.+)$", output, re.MULTILINE)
        return name, "skipped", reason.group(1) if reason else test.find("skipped").get("message")
    return name, "passed" if test.get("status") == "run" else "failed", ""


def program_cases(test, files):
    """The cases of one GoogleTest program."""
    name = test.get("name")
    cases = [case for path in files for case in gtest_cases(path)]
    if not cases:
        return [(name, "failed", "wrote no test case")]
    if test.get("status") != "run" and not any(outcome == "failed" for _, outcome, _ in cases):
        cases.append((name, "failed", "exited with an error although no case failed"))
    return [(f"{name}: {case}", outcome, reason) for case, outcome, reason in cases]


def collect(results):
    cases = []
    checks = results / "checks"
    if checks.exists():
        for line in checks.read_text().splitlines():
            outcome, name = line.split(" ", 1)
            cases.append((name, outcome, ""))
    junit = results / "ctest.xml"
    if not junit.exists():
        return cases + [("tests", "failed", "CTest did not run")]
    tests = list(ET.parse(junit).getroot().iter("testcase"))
    if not tests:
        cases.append(("tests", "failed", "CTest found none"))
    for test in tests:
        name = re.escape(test.get("name"))
        files = [p for p in sorted((results / "gtest").glob("*.xml"))
                 if re.fullmatch(name + r"(_\d+)?\.xml", p.name)]
        output = test.findtext("system-out") or ""
        if files or "[==========] Running" in output:
            cases += program_cases(test, files)
        else:
            cases.append(script_case(test))
    return cases


def main():
    cases = collect(pathlib.Path(sys.argv[1]))
    for outcome, title in (("skipped", "skipped"), ("failed", "failed")):
        for name, _, reason in (case for case in cases if case[1] == outcome):
            print(f"{title}: {name}" + (f" ({reason})" if reason else ""))
    count = {o: sum(1 for case in cases if case[1] == o) for o in ("passed", "failed", "skipped")}
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 0 if count["passed"] and not count["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
