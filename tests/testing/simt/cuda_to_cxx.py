#!/usr/bin/python3
"""Turns a CUDA source into C++ for simt.h: cuda_to_cxx.py IN.cu OUT.cc

Launches become calls of simt::Launch and dynamic shared memory a pointer; nothing else is changed,
so that line numbers stay.
"""

import re
import sys

LAUNCH = re.compile(r"((?:\w|<[^<>;]*>)+)<<<([^;]*?)>>>\(([^;]*?)\);", re.DOTALL)
SHARED = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")


def launch(match):
    kernel, configuration, arguments = match.groups()
    depth, parts = 0, [""]
    for c in configuration:
        depth += (c in "(<[") - (c in ")>]")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    parts += ["0"] * (3 - len(parts))
    grid, block, shared = (part.strip() for part in parts[:3])
    return f"simt::Launch({grid}, {block}, {shared}, [&] {{ {kernel}({arguments}); }});"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        text = file.read()
    text, count = LAUNCH.subn(launch, text)
    text = SHARED.sub(
        r"auto* const \2 = static_cast<\1*>(simt::DynamicShared());", text)
    if count == 0 or "<<<" in text:
        sys.exit(f"{sys.argv[1]}: a launch that cuda_to_cxx.py does not understand")
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(f'#line 1 "{sys.argv[1]}"\n' + text)


if __name__ == "__main__":
    main()
