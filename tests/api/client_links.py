#!/usr/bin/env python3
"""The client library needs neither RocksDB nor liburing nor Boost: looks at a program that uses it.

    client_links.py PROGRAM
"""
import subprocess
import sys

FORBIDDEN = ("rocksdb", "uring", "boost", "prometheus")


def main():
    output = subprocess.run(["ldd", sys.argv[1]], check=True, capture_output=True, text=True).stdout
    bad = [line.strip() for line in output.splitlines() if any(name in line for name in FORBIDDEN)]
    if not any("protobuf" in line for line in output.splitlines()):
        bad.append("ldd shows no protobuf: is this a client?")
    for line in bad:
        print(f"{sys.argv[1]}: {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
