#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under 10 minutes, without a network:
#     bench/gpu.sh OUTDIR
# builds for the GPU at hand, runs the gpu-marked tests, a memcheck smoke and the GPU families; a short table is printed last.
# OUTDIR gets the rows (*.jsonl) and a log per stage. A stage that fails does not stop the next; the exit status tells.
# PYTHON chooses the interpreter (default python3); TOTAL the seconds for everything (default 570).
set -u
[ $# -eq 1 ] || { echo "usage: bench/gpu.sh OUTDIR" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
total=${TOTAL:-570}
failed=()
export PYTHONUNBUFFERED=1
export BENCH_COMMIT=${BENCH_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null)}

left() { echo $((total - SECONDS)); }

# stage NAME LIMIT COMMAND...: runs with its own time limit, never past the total; output to OUTDIR/NAME.log
stage() {
  local name=$1 limit=$2 status
  shift 2
  [ "$limit" -le "$(left)" ] || limit=$(left)
  if [ "$limit" -lt 5 ]; then
    echo "== $name: no time left"
    failed+=("$name")
    return 1
  fi
  timeout -s INT -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  [ $status -eq 124 ] && echo "past its limit of $limit s" >>"$out/$name.log"
  [ $status -eq 0 ] || failed+=("$name")
  echo "== $name: $([ $status -eq 0 ] && echo ok || echo "FAILED ($status)"), at $SECONDS s; last lines:"
  tail -n 3 "$out/$name.log" | cut -c1-200
  return $status
}

has() { "$python" -c "import $1" 2>/dev/null; }

"$python" bench/gpu_info.py | tee "$out/machine.txt"
gpu=$(sed -n 's/^capability //p' "$out/machine.txt")
if [ -n "$gpu" ]; then
  export TORCH_CUDA_ARCH_LIST=$gpu SN_CUDA=1
else
  echo "THERE IS NO GPU HERE: the build and the tests are tried for the CPU, nothing is timed"
fi

stage build 240 "$python" setup.py build_ext --inplace

ignored=()
for name in hypothesis expecttest torchvision safetensors sklearn matplotlib; do
  has "$name" && continue
  echo "$name is not installed: the test files that import it are left out"
  for file in $(grep -lE "^(from|import) $name" tests/*.py); do ignored+=("--ignore=$file"); done
done
parallel=()
has xdist && parallel=(-n 8) # most of the time goes to Triton's compiler, on the host
stage tests 200 "$python" -m pytest -q --maxfail=20 -m "gpu and not slow" "${parallel[@]}" "${ignored[@]}" tests

if [ -n "$gpu" ] && command -v compute-sanitizer >/dev/null; then
  # torch's allocator would hide an overrun: its small tensors lie in one block
  stage memcheck 90 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no \
    --error-exitcode 9 "$python" -m bench.smoke
elif [ -n "$gpu" ]; then
  echo "compute-sanitizer is not here: no memcheck"
else
  stage smoke 60 "$python" -m bench.smoke
fi

if [ -n "$gpu" ]; then
  # steps last: they need torchvision for the ResNet
  for share in layers:45 compaction:25 collection:35 steps:100; do
    budget=$(((total - SECONDS - 10) * ${share#*:} / 100))
    stage "${share%:*}" $((budget + 40)) "$python" -m bench "${share%:*}" --out "$out" --budget "$budget"
  done
else
  stage quick 60 "$python" -m bench layers --quick --only 16x64x64 --out "$out"
fi

echo "== results, in $out"
"$python" -m bench table --results "$out" | head -n 60 | cut -c1-180
[ -n "$gpu" ] || failed+=("no GPU")
[ ${#failed[@]} -eq 0 ] && echo "gpu.sh: all stages passed in $SECONDS s" && exit 0
echo "gpu.sh: NOT all well after $SECONDS s: ${failed[*]}"
exit 1
