#!/usr/bin/env bash
# scripts/gpu-bench without a GPU: it skips; and with programs and a driver that only pretend, what
# it runs, what it calls a failure, and what it leaves behind. Usage: gpu_bench_test.sh SCRATCH
set -euo pipefail
script="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/scripts/gpu-bench"
mkdir -p "$1"
scratch="$(mktemp -d "$1/XXXXXX")"
trap 'rm -rf "$scratch"' EXIT
fail() { echo "gpu_bench_test: $*"; exit 1; }

mkdir -p "$scratch/tools" "$scratch/unpacked/bin"
printf '#!/bin/sh\nexit 1\n' >"$scratch/tools/nvidia-smi"
chmod +x "$scratch/tools/nvidia-smi"
export PATH="$scratch/tools:$PATH"
status=0
"$script" --out "$scratch/none" >"$scratch/log" || status=$?
[[ $status -eq 77 ]] || fail "exit code $status without a GPU"
grep -q '^SKIP: ' "$scratch/log" || fail "no SKIP line"
[[ ! -e "$scratch/none" ]] || fail "results without a GPU"

# A driver, a sanitizer that runs its command, and programs that pass.
printf '#!/bin/sh\necho "pretended GPU"\n' >"$scratch/tools/nvidia-smi"
cat >"$scratch/tools/compute-sanitizer" <<'END'
#!/bin/sh
echo "tool $2"
shift 4
exec "$@"
END
chmod +x "$scratch/tools/compute-sanitizer"
cp "$script" "$scratch/unpacked/"
while read -r name; do
  # shellcheck disable=SC2016
  printf '#!/bin/sh\necho "%s $*"\n' "$name" >"$scratch/unpacked/bin/$name"
done < <("$script" --list)
chmod +x "$scratch"/unpacked/bin/*
"$scratch/unpacked/gpu-bench" --out "$scratch/all" >"$scratch/log" || fail "what passes fails: $(cat "$scratch/log")"
while read -r name; do
  [[ "$name" == turnkeep ]] || grep -q "^passed  $name" "$scratch/all/summary.txt" || fail "$name is not in the summary"
done < <("$script" --list)
[[ $(grep -c 'turnkeep-llama --device cuda .*--embedded' "$scratch/all/conversations.log") -ge 3 ]] ||
  fail "conversations"
for tool in memcheck racecheck; do
  for name in gpu_cuda_gather_test gpu_cuda_attention_test; do
    grep -q "^passed  $tool of $name" "$scratch/all/summary.txt" || fail "$tool of $name"
  done
  grep -q "^tool $tool" "$scratch/all/sanitizer.log" || fail "$tool was not run"
done
for file in gather overlap attention_chunkattention; do
  grep -q 'turnkeep bench .*--device cuda.*--json' "$scratch/all/bench_$file.json" || fail "$file"
done
[[ $(find "$scratch/all" -type f | wc -l) -le 9 ]] || fail "more than 9 files"

# Skipped where there is a GPU, failed, and a bench that fails: each is a failure and is named.
printf '#!/bin/sh\necho "CUDA sees no device"\n' >"$scratch/unpacked/bin/gpu_cuda_device_test"
printf '#!/bin/sh\nexit 3\n' >"$scratch/unpacked/bin/gpu_cuda_gather_test"
printf '#!/bin/sh\necho "no such bench" >&2\nexit 5\n' >"$scratch/unpacked/bin/turnkeep"
printf '#!/bin/sh\nexit 1\n' >"$scratch/unpacked/bin/turnkeep-llama"
status=0
"$scratch/unpacked/gpu-bench" --out "$scratch/bad" >"$scratch/log" || status=$?
[[ $status -eq 1 ]] || fail "exit code $status after failures"
grep -q 'FAILED  gpu_cuda_device_test skipped' "$scratch/bad/summary.txt" || fail "a skip passes"
grep -q 'FAILED  gpu_cuda_gather_test (exit code 3' "$scratch/bad/summary.txt" || fail "exit code 3"
grep -q 'FAILED  turnkeep-llama --turns 4 --gpu-mib 0 (exit code 1' "$scratch/bad/summary.txt" || fail "other answers pass"
grep -q 'FAILED  bench gather.*no such bench' "$scratch/bad/summary.txt" || fail "a failed bench"
grep -q 'passed  gpu_cuda_attention_test' "$scratch/bad/summary.txt" || fail "stopped at a failure"
