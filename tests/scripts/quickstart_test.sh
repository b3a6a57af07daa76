#!/usr/bin/env bash
# scripts/quickstart on a build that is there: its rows, its clean stop, and --keep.
# Usage: quickstart_test.sh BUILD SCRATCH
set -euo pipefail
quickstart="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/scripts/quickstart"
mkdir -p "$2"
scratch="$(mktemp -d "$2/XXXXXX")"
kept=""
trap '[[ -z "$kept" ]] || kill -KILL "$kept"; rm -rf "$scratch"' EXIT

"$quickstart" --build "$1" --keep --dir "$scratch/d" | tee "$scratch/out"
kept="$(sed -n 's/.* as process \([0-9]*\):$/\1/p' "$scratch/out")"
kill -TERM "$kept"
kept=""
[[ $(grep -cE '^ +[0-9]+ .* yes$' "$scratch/out") -eq 6 ]] || { echo "not six identical rows"; exit 1; }
grep -q quickstart <(sed -n '/== turnkeep ls/,$p' "$scratch/out")
