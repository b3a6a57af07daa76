#!/usr/bin/python3
"""Plants each fault that scripts/tidy looks for in a small tree and sees it found, and sees a tree
without faults pass. Usage: tidy_selftest.py SCRATCH_FOLDER"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
SCRATCH = None

CLEAN = {
    "CMakeLists.txt": "add_subdirectory(src)\nadd_subdirectory(tests)\n",
    "src/CMakeLists.txt": "add_subdirectory(core)\nadd_subdirectory(host_tier)\n",
    "src/core/CMakeLists.txt": "add_library(core ids.cc)\n",
    "src/host_tier/CMakeLists.txt": "add_library(host_tier pool.cc)\n",
    "tests/CMakeLists.txt": "turnkeep_test(pool_test SOURCES pool_test.cc LINK host_tier)\n",
    "src/core/ids.h": "#pragma once\n#include <string>\nstd::string Hex(int id);\n",
    "src/core/ids.cc": '#include "core/ids.h"\nstd::string Hex(int id) { return {}; }\n',
    "src/host_tier/pool.h": '#pragma once\n#include "core/ids.h"\nstruct Pool {};\n',
    "src/host_tier/pool.cc": '#include "host_tier/pool.h"\n',
    "tests/pool_test.cc": '#include "host_tier/pool.h"\n',
}


def function(lines, name="Long", head=""):
    body = "".join(f"  x += {i};\n" for i in range(lines - 2))
    return f"{head}int {name}(int x) {{\n{body}}}\n"


class TidyTest(unittest.TestCase):
    def tidy(self, changes, only):
        root = pathlib.Path(tempfile.mkdtemp(dir=SCRATCH))
        self.addCleanup(shutil.rmtree, root)
        for path, text in {**CLEAN, **changes}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        run = subprocess.run([SCRIPTS / "tidy", "--root", root, "--only", only],
                             capture_output=True, text=True, check=False)
        return run.returncode, run.stdout + run.stderr

    def finds(self, changes, only, pattern):
        status, output = self.tidy(changes, only)
        self.assertTrue(re.search(pattern, output), output)
        self.assertEqual(status, 1, output)

    def passes(self, changes, only):
        status, output = self.tidy(changes, only)
        self.assertEqual(status, 0, output)

    def test_clean_tree_passes(self):
        self.passes({}, "includes,headers,sizes,tests,words,links")

    def test_unknown_check_is_refused(self):
        self.assertEqual(self.tidy({}, "spelling")[0], 2)

    def test_upward_include_is_found(self):
        self.finds({"src/core/ids.cc": '#include "host_tier/pool.h"\n'}, "includes",
                   r"ids.cc:1: core includes host_tier/pool.h, which is above it")

    def test_include_between_tiers_is_found(self):
        self.finds({"src/host_tier/pool.cc": '#include "disk_tier/index.h"\n'}, "includes",
                   "tiers never include each other")

    def test_asio_below_api_is_found(self):
        self.finds({"src/core/ids.cc": "#include <boost/asio.hpp>\n"}, "includes",
                   r"boost/asio.hpp> belongs only in src/api, tools")

    def test_asio_in_the_store_is_found_but_for_its_thread_pool(self):
        include = "#include <boost/asio/{}.hpp>\n"
        self.finds({"src/store/a.cc": include.format("thread_pool") + include.format("io_context")},
                   "includes", r"a.cc:2: <boost/asio/io_context.hpp> belongs only in src/api, tools")
        self.finds({"src/core/a.cc": include.format("thread_pool")}, "includes",
                   r"asio/thread_pool.hpp> belongs only in src/api, src/store, tools")

    def test_rocksdb_outside_the_disk_tier_is_found(self):
        self.finds({"src/core/ids.cc": "#include <rocksdb/db.h>\n"}, "includes", "belongs only in")

    def test_folder_that_is_no_layer_is_found(self):
        self.finds({"src/util/misc.h": "#pragma once\n"}, "includes", "not in one of the layers")

    def test_header_that_needs_another_one_first_is_found(self):
        self.finds({"src/core/ids.h": "#pragma once\nstd::string Hex(int id);\n"}, "headers",
                   "src/core/ids.h: does not compile alone")

    def test_oversized_function_is_found(self):
        self.passes({"src/core/ids.cc": function(70)}, "sizes")
        self.finds({"src/core/ids.cc": function(71)}, "sizes",
                   r"ids.cc:1: Long has 71 lines, the limit is 70")

    def test_oversized_method_is_found_behind_braces_that_are_no_body(self):
        lead = "struct A {\n  A() : a_{1}, b_(2) {}\n  int a_{0}; int b_ = {1};\n"
        self.finds({"src/core/ids.h": lead + function(80, "Method") + "};\n"}, "sizes",
                   r"ids.h:4: Method has 80 lines")
        constructor = "A::A(int x)\n    : a_{x},\n      b_(2) {\n" + "  F();\n" * 80 + "}\n"
        self.finds({"src/core/ids.cc": constructor}, "sizes", r"ids.cc:1: A::A has 84 lines")

    def test_braces_in_text_and_comments_do_not_count(self):
        noise = '// {{{\n/* {\n{ */\nconst char* k = "{{";\nchar c = \'{\';\nauto r = R"({{{)";\n'
        self.finds({"src/core/ids.cc": noise + function(71)}, "sizes", r"ids.cc:\d+: Long has 71")

    def test_reason_in_the_head_excuses_the_named_function_only(self):
        head = "// Ids.\n// Size: Long is one table, and reads best in one piece.\n"
        self.passes({"src/core/ids.cc": function(71, head=head)}, "sizes")
        self.finds({"src/core/ids.cc": function(71, "Other", head)}, "sizes", "Other has 71 lines")

    def test_oversized_files_are_found(self):
        self.passes({"src/core/ids.h": "// line\n" * 300}, "sizes")
        self.finds({"src/core/ids.h": "\n" + "int x;\n" * 300}, "sizes", "301 lines, the limit is 300")
        self.finds({"src/core/ids.cc": "int x;\n" * 501}, "sizes", "501 lines, the limit is 500")

    def test_unregistered_test_is_found(self):
        self.finds({"tests/lost_test.cc": "\n"}, "tests", "lost_test.cc: this test is in no CMake")

    def test_test_registered_by_a_function_of_its_folder_passes(self):
        listing = "function(fuzz name)\n  turnkeep_test(${name} SOURCES ${name}_fuzz.cc pool_test.cc)\n"
        listing += "endfunction()\nfuzz(frame)\n"
        self.passes({"tests/CMakeLists.txt": listing, "tests/frame_fuzz.cc": "\n"}, "tests")
        self.finds({"tests/CMakeLists.txt": listing, "tests/frame_fuzz.cc": "\n",
                    "tests/header_fuzz.cc": "\n"}, "tests", "header_fuzz.cc: this source is in no")

    def test_commented_out_test_is_found(self):
        self.finds({"tests/CMakeLists.txt": "# turnkeep_test(pool_test SOURCES pool_test.cc)\n"},
                   "tests", "pool_test.cc: this test is in no CMake")

    def test_test_in_a_folder_that_the_build_does_not_reach_is_found(self):
        self.finds({"tests/deep/CMakeLists.txt": "turnkeep_test(d SOURCES d_test.cc)\n",
                    "tests/deep/d_test.cc": "\n"}, "tests", "deep/d_test.cc: this test is in no")

    def test_disabled_test_is_found(self):
        self.finds({"tests/pool_test.cc": "TEST(Pool, DISABLED_Grows) {}\n"}, "tests",
                   "disabled test")

    def test_cut_out_test_is_found(self):
        self.finds({"tests/pool_test.cc": "#if 0\n#endif\n"}, "tests", "cut out")

    def test_skip_without_a_reason_is_found(self):
        self.finds({"tests/pool_test.cc": "TEST(A, B) { GTEST_SKIP(); }\n"}, "tests",
                   "without saying why")

    def test_unlisted_source_is_found(self):
        self.finds({"src/core/lost.cc": "\n"}, "tests", "lost.cc: this source is in no CMake")

    def test_words_are_found(self):
        self.finds({"src/core/ids.cc": '// see /home/me/notes\n'}, "words", "somebody's machine")
        self.finds({"README.md": "It is fast.\n"}, "words", "nothing is called that")
        self.finds({"src/core/ids.cc": "// TODO later\n"}, "words", "TODO without a reason")
        self.passes({"src/core/ids.cc": "// TODO(issue 3): rotate keys at load on the device\n"},
                    "words")

    def test_link_to_nothing_is_found(self):
        self.finds({"docs/a.md": "[the core](../src/core/gone.h)\n"}, "links",
                   "docs/a.md:1: links to ../src/core/gone.h")
        self.passes({"docs/a.md": "[the core](../src/core/ids.h#L3) [x](https://example.org)\n"},
                    "links")


if __name__ == "__main__":
    SCRATCH = sys.argv.pop(1)
    pathlib.Path(SCRATCH).mkdir(parents=True, exist_ok=True)
    unittest.main()
