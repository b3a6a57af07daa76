#!/usr/bin/env bash
# Installs a build and uses it as a stranger would: find_package(turnkeep), link, run.
# Usage: consumer_test.sh BUILD SCRATCH
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
build="$1"
source "$here/daemon.sh"
mkdir -p "$2"
scratch="$(mktemp -d "$2/XXXXXX")"
trap 'kill_daemon; rm -rf "$scratch"' EXIT

cmake --install "$build" --prefix "$scratch/prefix" >"$scratch/install.log"
prefix="$scratch/prefix"
for file in bin/turnkeepd bin/turnkeep include/turnkeep/api/client.h \
            include/turnkeep/store/store.h share/doc/turnkeep/README.md \
            share/doc/turnkeep/examples/turnkeepd.service \
            share/bash-completion/completions/turnkeep; do
  [[ -e "$prefix/$file" ]] || { echo "not installed: $file"; exit 1; }
done

consume() {  # NAME OPTIONS...
  local name="$1"
  shift
  cmake -S "$here/consumer" -B "$scratch/$name" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_BUILD_TYPE=Debug "$@" >"$scratch/$name.log" 2>&1 &&
    ninja -C "$scratch/$name" -j2 >>"$scratch/$name.log" 2>&1 || { cat "$scratch/$name.log"; exit 1; }
}

consume client -DTEN_LINES="$here/../../examples/ten_lines.cc"
if readelf -d "$scratch/client/ten_lines" | grep -E 'NEEDED.*(rocksdb|uring)'; then
  echo "a client needs the disk tier's libraries"
  exit 1
fi
start_daemon "$scratch/turnkeepd.log" "$prefix/bin/turnkeepd" --dir "$scratch/d"
wait_for_daemon "$prefix/bin/turnkeep" --dir "$scratch/d" status
"$scratch/client/ten_lines" "$scratch/d/turnkeep.sock"
stop_daemon

consume store -DWITH_STORE=ON
"$scratch/store/embedded" "$scratch/data"
