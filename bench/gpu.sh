#!/usr/bin/env bash
# Everything that needs a GPU, in the order of its worth, without a network:
#     bench/gpu.sh OUTDIR            about 10 minutes; what is left over, a second call with the same OUTDIR does
#     DRY=1 bench/gpu.sh OUTDIR      the same stages at tiny sizes without a GPU, to find what is wrong with this script
# OUTDIR gets the rows (*.jsonl) as they are made, a log for each stage, and done/, which tells a second call what has passed. Each
# stage has a process and a time limit of its own: a sticky CUDA error or a kernel that spins costs one stage. What failed comes
# again when all else is done. PYTHON chooses the interpreter (default python3), TOTAL the seconds of a call (default 570).
set -u
[ $# -eq 1 ] || { echo "usage: bench/gpu.sh OUTDIR" >&2; exit 2; }
mkdir -p "$1/done" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
total=${TOTAL:-570}
dry=${DRY:-}
export PYTHONUNBUFFERED=1 BENCH_COMMIT=${BENCH_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null)}

"$python" bench/gpu_info.py | tee "$out/machine.txt"
gpu=$(sed -n 's/^capability //p' "$out/machine.txt")
if [ -n "$dry" ]; then
  [ -z "$gpu" ] || { echo "DRY=1 is for machines without a GPU; here is one" >&2; exit 2; }
  export TRITON_INTERPRET=1
elif [ -n "$gpu" ]; then
  export TORCH_CUDA_ARCH_LIST=$gpu SN_CUDA=1
else
  echo "there is no GPU here; DRY=1 tries this script without one" >&2
  exit 2
fi

left() { echo $((total - SECONDS)); }
has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }
on_gpu() { if [ -n "$dry" ]; then echo "$2"; else echo "$1"; fi; } # on_gpu WORDS WORDS_OF_A_DRY_RUN

names=()
declare -A limit command
# stage NAME LIMIT COMMAND: seconds, and a line for bash
stage() { names+=("$1") && limit[$1]=$2 && command[$1]=$3; }

# run NAME: under its limit, never past the total; the log's last lines are printed
run() {
  local name=$1 seconds=${limit[$1]} status
  [ "$seconds" -le "$(left)" ] || seconds=$(left)
  [ "$seconds" -ge 5 ] || return 1
  timeout -s INT -k 5 "$seconds" bash -c "${command[$name]}" >"$out/$name.log" 2>&1
  status=$?
  [ $status -ne 124 ] || echo "past its limit of $seconds s" >>"$out/$name.log"
  echo "$status" >"$out/done/$name"
  echo "== $name: $([ $status -eq 0 ] && echo ok || echo "FAILED ($status)"), at $SECONDS s; last lines:"
  tail -n 3 "$out/$name.log" | cut -c1-200
}

# What is built goes into the checkout; a dry run builds beside it, since others may run from there.
stage build 240 "$python setup.py build_ext $(on_gpu --inplace "--build-lib '$out/lib'")"

kernels="$python -m bench.kernels $(on_gpu "" --tiny)"
cuda="--device $(on_gpu cuda emulated)"
for op in fold filter aliveness compact_ bury_; do
  stage "kernel-$op" 40 "CUDA_LAUNCH_BLOCKING=1 $kernels $cuda $op"
done
for op in triton_linear triton_conv; do
  stage "kernel-$op" 60 "CUDA_LAUNCH_BLOCKING=1 $kernels --device $(on_gpu cuda cpu) $op"
done

# torch's allocator would hide an overrun: its small tensors lie in one block. 9: an error was found; else it could not run here.
for tool in memcheck racecheck; do
  sanitizer="compute-sanitizer --tool $tool --report-api-errors no --error-exitcode 9"
  if [ -n "$dry" ] || command -v compute-sanitizer >/dev/null; then
    stage "$tool" 60 "PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(on_gpu "$sanitizer" "") $python -m bench.kernels --tiny $cuda fold filter aliveness compact_ bury_"
  else
    echo "compute-sanitizer is not here: no $tool"
  fi
done

bench="$python -m bench"
stage compaction 70 "$bench compaction --out '$out' --budget $(on_gpu "45" "1 --quick --only 60")"
stage goals 20 "$(on_gpu "" !) $python -m bench.goals --results '$out'" # without a GPU there is nothing to say

absent=()
for module in hypothesis expecttest torchvision safetensors sklearn matplotlib; do has $module || absent+=("$module"); done
[ ${#absent[@]} -eq 0 ] || echo "not installed: ${absent[*]}; the test files that import them are left out"
pytest="$python -m pytest $(on_gpu "-v -m 'gpu and not slow'" "-q -m 'not slow' --collect-only")"
! has pytest_timeout || pytest+=" --timeout 40 --timeout-method thread"
runnable() { for module in "${absent[@]}"; do ! grep -qE "^(from|import) $module" "$1" || return 1; done; }
first=(fold filter aliveness compact guard linear conv)
for name in "${first[@]}"; do
  ! runnable "tests/test_$name.py" || stage "test-$name" 60 "$(on_gpu "$pytest" "test -e") tests/test_$name.py"
done

stage layers 90 "$bench layers --out '$out' --budget $(on_gpu 60 "1 --quick --only 16x64x64")"
stage collection 70 "$bench collection --out '$out' --budget $(on_gpu 40 "1 --quick")"
stage steps 80 "$bench steps --out '$out' --budget $(on_gpu 50 "1 --quick")"
stage crossover 60 "$python -m bench.crossover $(on_gpu "--budget 45" --tiny)"
stage smoke 90 "$python -m bench.smoke"

rest=()
for file in tests/test_*.py; do
  name=${file#tests/test_}
  [[ " ${first[*]} " == *" ${name%.py} "* ]] || ! runnable "$file" || rest+=("$file")
done
stage tests 300 "$pytest $(! has xdist || echo "-n 8") ${rest[*]}"
stage layers-all 200 "$bench layers --out '$out' --budget $(on_gpu 170 "1 --quick --only 16x64x64")"

new=() again=()
for name in "${names[@]}"; do
  case $(cat "$out/done/$name" 2>/dev/null) in "") new+=("$name") ;; 0) ;; *) again+=("$name") ;; esac
done
for name in "${new[@]}" "${again[@]}"; do run "$name"; done

echo "== results, in $out"
$bench table --results "$out" | head -n 60 | cut -c1-180
wrong=0
for name in "${names[@]}"; do
  status=$(cat "$out/done/$name" 2>/dev/null)
  [ "$status" = 0 ] || { wrong=1 && echo "$name: $([ -n "$status" ] && echo "failed ($status), see $out/$name.log" || echo "no time for it; call again")"; }
done
[ $wrong -ne 0 ] || echo "gpu.sh: all ${#names[@]} stages passed"
exit $wrong
