#!/usr/bin/env bash
# Everything that needs a GPU, on a machine without a network, by steps; each command ends within 9 minutes:
#
#   benchmarks/gpu.sh                build tests report times: the first thing to run
#   benchmarks/gpu.sh tests          the operators of every GPU backend, graphs, streams, devices
#   benchmarks/gpu.sh sanitizer      compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#   benchmarks/gpu.sh report times   the kernels' machine code; our backends at the sizes of the record
#   benchmarks/gpu.sh peers          what else a user could pick, at the same sizes
#
# "build" makes the native libraries, which the other steps find later, and a summary comes last. A step that fails is
# reported and the next one runs; the exit status is 1 if any failed. Needed: Python with torch and triton, a C++
# compiler, nvcc (without it the CUDA kernels are left out, which counts as a failure), cmake, ninja. Wheels of what else
# is missing (pytest and what it needs, scipy and scikit-learn for some tests) may lie in build/wheels. Results go to
# $OUT, by default benchmarks/results. docs/gpu.md says what to do with them.
#
# PYTHON             the interpreter, python3 by default
# FASTMMD_GPU_DEVICE cuda by default; cpu runs the same steps on the interpreter of Triton, to check this script (with
#                    nvcc the CUDA kernels are built for 90a and reported; nothing runs them)
# FASTMMD_GPU_TESTS  what is tested, pytest's arguments
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
device=${FASTMMD_GPU_DEVICE:-cuda}
out=${OUT:-$root/benchmarks/results}
work=$root/build/gpu
for name in "$@"; do
  case $name in
    build | tests | sanitizer | report | times | peers) ;;
    *)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$root/benchmarks/gpu.sh" >&2
      exit 2
      ;;
  esac
done
steps=" wheels ${*:-build tests report times} "
tests=${FASTMMD_GPU_TESTS:-tests/test_mmd.py tests/test_fourier.py tests/test_discrepancy.py tests/test_labels.py tests/test_parzen.py tests/test_extremes.py tests/test_operators.py tests/test_dispatch.py tests/test_properties.py tests/test_cuda.py tests/test_triton.py tests/test_gpu.py}
LIMIT=520 # seconds in all
mkdir -p "$out" "$work"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 FASTMMD_BENCH_DEVICE=$device
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$work/triton}
if [ "$device" = cpu ]; then export TRITON_INTERPRET=1; fi
summary=()
failed=0

asked() { case $steps in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# step NAME SECONDS FUNCTION: run it in the time that is left, note how it ended
step() {
  local name=$1 seconds=$2 function=$3 left=$((LIMIT - SECONDS)) start=$SECONDS status
  asked "$name" || return
  rm -f "$out/gpu-$name.log"
  if [ "$seconds" -gt "$left" ]; then seconds=$left; fi
  if [ "$seconds" -lt 5 ]; then
    summary+=("$name: not run, no time left")
    failed=1
    return
  fi
  printf '\n== %s (at most %s s)\n' "$name" "$seconds"
  export step_seconds=$seconds
  timeout --kill-after=5 "$seconds" bash -uo pipefail "$work/steps.sh" "$function" 2>&1 | tee "$out/gpu-$name.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) summary+=("$name: done in $((SECONDS - start)) s") ;;
    77) summary+=("$name: skipped, $(tail -n 1 "$out/gpu-$name.log")") ;;
    124 | 137) summary+=("$name: FAILED, over $seconds s") && failed=1 ;;
    *) summary+=("$name: FAILED, exit status $status: $(tail -n 1 "$out/gpu-$name.log" | cut -c 1-160)") && failed=1 ;;
  esac
}

export root python device out work tests
cat >"$work/steps.sh" <<'STEPS'
wheels() {
  shopt -s nullglob
  local wheels=("$root"/build/wheels/*.whl)
  if [ ${#wheels[@]} = 0 ]; then
    echo "no wheels in build/wheels"
    return 77
  fi
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --upgrade \
    --target "$work/site" "${wheels[@]}"
}

build() {
  local directory
  directory=$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())' 2>/dev/null) || directory=$work/pybind11
  if [ "$directory" = "$work/pybind11" ]; then # as much of the package as csrc/CMakeLists.txt takes
    local headers
    headers=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "include"))') || return
    test -f "$headers/pybind11/pybind11.h" || { echo "no pybind11 headers in $headers"; return 1; }
    mkdir -p "$directory/include"
    ln -sfn "$headers/pybind11" "$directory/include/pybind11"
    cat >"$directory/pybind11Config.cmake" <<'CMAKE'
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
function(pybind11_add_module name)
  list(REMOVE_ITEM ARGN NO_EXTRAS)
  Python_add_library(${name} MODULE WITH_SOABI ${ARGN})
  target_include_directories(${name} SYSTEM PRIVATE "${pybind11_DIR}/include")
  set_target_properties(${name} PROPERTIES CXX_VISIBILITY_PRESET hidden)
endfunction()
CMAKE
  fi
  local nvcc=${CUDACXX:-$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc)} with_cuda=OFF architecture=90a-real
  if [ -n "$nvcc" ]; then with_cuda=ON; fi
  if [ "$device" = cuda ] && [ -n "$nvcc" ]; then # a driver runs kernels of no newer CUDA
    local release driver
    release=$("$nvcc" --version | sed -n 's/.*release \([0-9]*\).*/\1/p')
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
    echo "nvcc of CUDA $release, driver $driver"
    if [ "$release" = 13 ] && [ "${driver%%.*}" -lt 580 ]; then
      echo "kernels of CUDA 13 need driver 580 or newer, or cuda-compat: else set CUDACXX=/path/to/nvcc of CUDA 12"
    fi
  fi
  if [ "$device" = cuda ] && [ "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u)" != 9.0 ]; then
    architecture=native
  fi
  rm -rf "$work/cmake" "$root"/fastmmd/_cuda*.so # never the cache of another compiler
  cmake -S "$root/csrc" -B "$work/cmake" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$root/fastmmd" \
    -Dpybind11_DIR="$directory" -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
    -DPYBIND11_FINDPYTHON=ON -DFASTMMD_CUDA="$with_cuda" ${nvcc:+"-DCMAKE_CUDA_COMPILER=$nvcc"} \
    -DCMAKE_CUDA_ARCHITECTURES="$architecture" &&
    cmake --build "$work/cmake" --target install || return
  "$python" -c '
import fastmmd
from fastmmd.backends import cpu
print("native on the CPU:", cpu.capability()["capability"])
status = fastmmd.available_backends()["native"]["cuda"]
print("native on CUDA:", status.reason or "runs")
raise SystemExit("'"$device"'" == "cuda" and not status.available)'
}

backends() { # those of the device whose kernels are ours
  "$python" -c "
import fastmmd
table = fastmmd.available_backends()
print(','.join(name for name, devices in table.items() if name != 'reference' and devices['$device'].available))"
}

tests() { # every core runs a share of the tests; the kernels that one compiles the others find in the cache
  local names shares finished=0 folder=$work/tests
  # On a CPU native is there as well, and is not what this script is about.
  if [ "$device" = cpu ]; then names=triton; else names=$(backends); fi
  if [ -z "$names" ]; then echo "no backend with kernels for $device"; return 1; fi
  echo "backends: $names"
  rm -rf "$folder" && mkdir -p "$folder"
  # shellcheck disable=SC2086
  "$python" -m pytest -q --collect-only --continue-on-collection-errors --device "$device" --backends "$names" $tests \
    -k "not memory_is_linear" -p no:cacheprovider >"$folder/collected" 2>&1
  grep '::' "$folder/collected" | grep -E "$(echo "$names" | tr , '|')" >"$folder/all"
  grep -E '^ERROR|Error:' "$folder/collected"
  if [ ! -s "$folder/all" ]; then tail -n 5 "$folder/collected"; return 1; fi
  shares=$(nproc)
  if [ "$shares" -gt 14 ]; then shares=14; fi
  split -n "r/$shares" -d "$folder/all" "$folder/share."
  echo "$(wc -l <"$folder/all") tests in $shares processes"
  for share in "$folder"/share.*; do
    OMP_NUM_THREADS=1 timeout "$((step_seconds - SECONDS - 5))" "$python" -m pytest -q --device "$device" --backends "$names" \
      -p no:cacheprovider --tb=short "@$share" >"$share.log" 2>&1 &
  done
  wait
  grep -h '^FAILED' "$folder"/share.*.log | cut -c 1-200 | head -n 60
  for share in "$folder"/share.??; do
    if grep -Eq '^[0-9]+ passed' <(tail -n 1 "$share.log" | sed 's/=//g; s/^ *//'); then finished=$((finished + 1)); fi
  done
  cp "$folder/collected" "$out/gpu-tests-collected.txt"
  cat "$folder"/share.*.log >"$out/gpu-tests-all.txt"
  for log in "$folder"/share.??.log; do tail -n 1 "$log"; done |
    awk '{ for (i = 2; i <= NF; i++) if ($i ~ /^(passed|failed|error|errors|skipped),?$/) n[substr($i, 1, 4)] += $(i - 1) }
      END { printf "%d passed, %d failed, %d errors, %d skipped\n", n["pass"], n["fail"], n["erro"], n["skip"] }'
  [ "$finished" = "$shares" ] && ! grep -Eq '^ERROR' "$folder/collected"
}

sanitizer() {
  local tool
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  if [ "$device" = cpu ] || [ -z "$tool" ]; then echo "no compute-sanitizer"; return 77; fi
  cat >"$work/small.py" <<'PYTHON'
import torch, fastmmd
torch.manual_seed(0)
x, y = torch.randn(70, 6, device="cuda", requires_grad=True), torch.randn(45, 6, device="cuda")
wide = torch.randn(70, 100, device="cuda", requires_grad=True)
names = [n for n, d in fastmmd.available_backends().items() if n != "reference" and d["cuda"].available]
for name in names:
    with fastmmd.backend(name):
        fastmmd.mmd2(x, y).backward()
        fastmmd.mmd2(wide, wide.detach()[:33]).backward()
        fastmmd.fourier_mean(x, fastmmd.FourierFeatures(6, 100)).sum().backward()
        fastmmd.parzen_log_likelihood(wide, wide.detach()[:33], (0.5, 1.0)).sum().backward()
        if name == "triton":  # the others would have to be compiled
            continue
        bandwidths = torch.tensor([0.5, 1.0, 3.0], device="cuda", requires_grad=True)
        for points in (x, x.double(), wide):
            fastmmd.mmd2(points, points.detach()[:33], bandwidths).backward()
            fastmmd.witness(points, points.detach()[:33], points.detach()[33:]).sum().backward()
        fastmmd.fourier_mean(wide.double(), fastmmd.FourierFeatures(100, 70)).sum().backward()
        fastmmd.fourier_function(x, torch.randn(200, device="cuda"), fastmmd.FourierFeatures(6, 100)).sum().backward()
        fastmmd.parzen_log_likelihood(x.double(), y.double(), (0.5, 1.0)).sum().backward()
torch.cuda.synchronize()
print("ran", *names)
PYTHON
  "$python" "$work/small.py" || return # compiles; a kernel that fails by itself is no finding of the tool
  local status=0 check code left count=4
  for check in memcheck racecheck initcheck synccheck; do # each an equal share of the time that is left
    left=$(((step_seconds - SECONDS - 5) / count)) count=$((count - 1))
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --kill-after=5 "$left" "$tool" --tool "$check" --error-exitcode 99 \
      "$python" "$work/small.py" >"$out/gpu-$check.log" 2>&1
    code=$?
    case $code in
      0) echo "$check: $(grep -E 'SUMMARY' "$out/gpu-$check.log" | tail -n 1)" ;;
      99) status=1; grep -E '=====' "$out/gpu-$check.log" | head -n 30 ;;
      124 | 137) status=1; tail -n 15 "$out/gpu-$check.log"; echo "$check: not done after $left s" ;;
      *) # the program fails once memcheck has found something: its own exit status wins
        if grep -Eq 'ERROR SUMMARY: [1-9]|Invalid|[Rr]ace reported|Uninitialized|Barrier error' "$out/gpu-$check.log"; then
          status=1
          grep -E '=====' "$out/gpu-$check.log" | head -n 30
        else
          tail -n 3 "$out/gpu-$check.log"
          echo "$check does not work here"
          if [ "$status" = 0 ]; then status=77; fi
        fi
        ;;
    esac
  done
  return $status
}

report() {
  local names=(mmd2-8192 mmd2-wide mmd2-value fourier fourier-backward parzen)
  local module=("$root"/fastmmd/_cuda*.so)
  env -u TRITON_INTERPRET "$python" -W ignore benchmarks/triton_report.py --arch sm_90 --case "${names[@]}" \
    --json "$out/gpu-report.json" || return
  if [ -f "${module[0]}" ]; then "$python" benchmarks/cuda_report.py --module "${module[0]}"; fi
}

times() {
  "$python" -W ignore benchmarks/gpu_times.py --of ours --seconds "$((step_seconds - 10))" --json "$out/gpu-times.json"
}

peers() {
  "$python" -W ignore benchmarks/gpu_times.py --of peers --seconds "$((step_seconds - 10))" --json "$out/gpu-peers.json"
}

export PYTHONPATH=$PYTHONPATH:$work/site
cd "$root" && "$1"
STEPS

step wheels 40 wheels
step build 150 build
if asked tests && asked times; then step tests 180 tests; else step tests 500 tests; fi
step sanitizer 500 sanitizer
step report 45 report
if asked times && asked peers; then step times 240 times; else step times 500 times; fi
step peers 500 peers

printf '\n== summary after %s s, results in %s\n' "$SECONDS" "$out"
printf '%s\n' "${summary[@]}"
for name in times peers; do
  if asked "$name" && [ -f "$out/gpu-$name.log" ]; then grep '^|' "$out/gpu-$name.log"; fi
done
exit $failed
