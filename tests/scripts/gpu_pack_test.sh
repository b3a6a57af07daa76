#!/usr/bin/env bash
# What scripts/gpu-bench --pack makes: unpacked into an empty folder and used with an empty
# environment, it needs glibc alone and says that there is no GPU. Usage: gpu_pack_test.sh BUILD SCRATCH
set -euo pipefail
script="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/scripts/gpu-bench"
mkdir -p "$2"
scratch="$(mktemp -d "$2/XXXXXX")"
trap 'rm -rf "$scratch"' EXIT
fail() { echo "gpu_pack_test: $*"; exit 1; }
command -v patchelf >/dev/null || { echo "SKIP: patchelf is not installed"; exit 77; }

"$script" --pack "$scratch/packed" --build "$1"
tar -C "$scratch" -xzf "$scratch/packed/turnkeep-gpu.tar.gz"
top="$scratch/turnkeep-gpu"
glibc='/(ld-linux[^/]*|lib(c|m|mvec|pthread|dl|rt|resolv))\.so\.[0-9]+$'
for file in "$top"/bin/* "$top"/lib/*; do
  outside="$(env -i /usr/bin/ldd "$file" | sed -nE 's/.*=> ([^ ]+).*/\1/p' |
    while read -r path; do realpath -s "$path"; done | grep -v "^$top/lib/" | grep -vE "$glibc" || true)"
  [[ -z "$outside" ]] || fail "$file uses $outside"
done

# Neither a driver's tool nor a device that CUDA sees, whatever this machine has.
mkdir "$scratch/tools"
printf '#!/bin/sh\nexit 1\n' >"$scratch/tools/nvidia-smi"
chmod +x "$scratch/tools/nvidia-smi"
bare=(env -i "PATH=$scratch/tools:/usr/bin:/bin" CUDA_VISIBLE_DEVICES= HOME="$scratch")
status=0
"${bare[@]}" "$top/gpu-bench" --out "$scratch/out" >"$scratch/log" || status=$?
[[ $status -eq 77 ]] || fail "exit code $status without a GPU"
grep -q '^SKIP: no GPU' "$scratch/log" || fail "no SKIP line"
while read -r name; do
  [[ -x "$top/bin/$name" ]] || fail "$name is not packed"
done < <("$script" --list)
"${bare[@]}" "$top/bin/gpu_cuda_device_test" >"$scratch/log" || fail "gpu_cuda_device_test without a GPU"
grep -q 'CUDA sees no device' "$scratch/log" || fail "gpu_cuda_device_test does not say why it skips"
for program in "turnkeep bench gather" "turnkeep-llama --no-store --random 15M"; do
  status=0
  # shellcheck disable=SC2086  # its words are arguments
  "${bare[@]}" "$top/bin/"$program --device cuda >"$scratch/log" 2>&1 || status=$?
  [[ $status -ne 0 ]] || fail "$program finds a GPU"
  grep -q -- '--device cuda: CUDA sees no device' "$scratch/log" || fail "$program: $(cat "$scratch/log")"
done
