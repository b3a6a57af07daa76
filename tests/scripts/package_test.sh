#!/usr/bin/env bash
# Packs a build into the relocatable tarball, unpacks it into an empty folder, and uses it with an
# empty environment. Usage: package_test.sh BUILD SCRATCH
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/daemon.sh"
mkdir -p "$2"
scratch="$(mktemp -d "$2/XXXXXX")"
trap 'kill_daemon; rm -rf "$scratch"' EXIT

"$here/../../scripts/package" --build "$1" --out "$scratch" --tarball-only
tarball="$(echo "$scratch"/turnkeep-*.tar.gz)"
[[ $(stat -c %s "$tarball") -lt $((40 << 20)) ]] || { echo "the tarball has 40 MiB or more"; exit 1; }
mkdir "$scratch/empty"
tar -C "$scratch/empty" -xzf "$tarball"
top="$(echo "$scratch"/empty/turnkeep-*)"

# Every library but glibc's comes from the bundle, whatever the host offers.
glibc='/(ld-linux[^/]*|lib(c|m|mvec|pthread|dl|rt|resolv))\.so\.[0-9]+$'
for file in "$top"/bin/* "$top"/lib/*; do
  if readelf -SW "$file" | grep -q '\.symtab'; then echo "not stripped: $file"; exit 1; fi
  if readelf -d "$file" | grep -q RUNPATH; then echo "LD_LIBRARY_PATH wins in $file"; exit 1; fi
  outside="$(env -i /usr/bin/ldd "$file" | sed -nE 's/.*=> ([^ ]+).*/\1/p' |
    while read -r path; do realpath -s "$path"; done | grep -v "^$top/lib/" | grep -vE "$glibc" || true)"
  [[ -z "$outside" ]] || { echo "$file uses $outside"; exit 1; }
done
for library in libstdc++.so.6 libgcc_s.so.1; do
  [[ -f "$top/lib/$library" ]] || { echo "$library is not in the bundle"; exit 1; }
done

# A host whose LD_LIBRARY_PATH leads to something unusable under the same names.
mkdir "$scratch/hostile"
for library in "$top"/lib/*; do echo broken >"$scratch/hostile/$(basename "$library")"; done
env -i LD_LIBRARY_PATH="$scratch/hostile" "$top/bin/turnkeep" --version

env -i "$top/bin/turnkeepd" --dir "$scratch/d" --print-config >"$scratch/config.toml"
grep -q '^\[store\]' "$scratch/config.toml"
start_daemon "$scratch/turnkeepd.log" env -i "$top/bin/turnkeepd" --dir "$scratch/d"
wait_for_daemon env -i "$top/bin/turnkeep" --dir "$scratch/d" status
env -i "$top/bin/turnkeep" --dir "$scratch/d" status
env -i "$top/bin/turnkeep-llama" --random dim=64,layers=2,heads=4,kv_heads=2,hidden=128,vocab=256,context=512 \
  --socket "$scratch/d/turnkeep.sock" --turns 2
stop_daemon

# Another Linux, as near as this machine comes to one: a root with glibc and the bundle alone.
root="$scratch/root"
mkdir -p "$root/lib64" "$root/lib/x86_64-linux-gnu" "$root/tmp"
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
for library in libc.so.6 libm.so.6 libpthread.so.0 libdl.so.2 librt.so.1 libresolv.so.2; do
  cp -L "/lib/x86_64-linux-gnu/$library" "$root/lib/x86_64-linux-gnu/"
done
cp -r "$top" "$root/turnkeep"
PATH="$PATH:/usr/sbin"
chroot=("$(command -v chroot)")
[[ $(id -u) -eq 0 ]] || chroot=("$(command -v unshare)" --map-root-user "${chroot[@]}")
if "${chroot[@]}" "$root" /lib64/ld-linux-x86-64.so.2 --version >/dev/null 2>&1; then
  # Without /proc the loader cannot find out where the program lies, so it is told.
  bare=(env -i LD_ORIGIN_PATH=/turnkeep/bin)
  "${bare[@]}" "${chroot[@]}" "$root" /turnkeep/bin/turnkeep --version
  "${bare[@]}" "${chroot[@]}" "$root" /turnkeep/bin/turnkeepd --dir /tmp/d --print-config >/dev/null
  echo "runs in a root that holds glibc and the bundle alone"
else
  echo "chroot is not allowed here; the run in a root of its own was left out"
fi
