#!/usr/bin/python3
"""The C++ in README.md is the marked part of examples/ten_lines.cc, line for line, and the commands
that it names exist."""

import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[2]
readme = (ROOT / "README.md").read_text()
example = (ROOT / "examples/ten_lines.cc").read_text()

shown = re.search(r"```cpp\n(.*?)```", readme, re.DOTALL).group(1)
compiled = re.search(r"// README begins\n(.*?) *// README ends", example, re.DOTALL).group(1)
if shown != textwrap.dedent(compiled):
    sys.exit("README.md shows other lines than examples/ten_lines.cc compiles:\n" + compiled)

commands = set(re.findall(r"\bscripts/[\w-]+", readme))
missing = [command for command in sorted(commands) if not (ROOT / command).is_file()]
if missing or not commands:
    sys.exit(f"README.md names {', '.join(missing) or 'no command'}, which does not exist")
