#!/usr/bin/env bash
# Everything that wants a GPU, in one go, in under 9 minutes: tests of the kernels, then time and peak
# memory of every contender (columns ms_median and peak_extra_mb), then the loop in 4 bits.
#
#   bash benchmarks/gpu.sh FOLDER
#
# Needs torch, triton, transformers, peft and pytest (bitsandbytes, datasets and scikit-learn for the
# loop), no network. Leaves its rows and logs in FOLDER.
# To make route="auto" use them: append the rows to benchmarks/results/linear_entropy.csv, then
# python benchmarks/bench_linear_entropy.py --write-table
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:?usage: bash benchmarks/gpu.sh FOLDER}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH="kernels${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
status=0

# run NAME SECONDS COMMAND...: a step that fails or takes too long does not stop the next one.
run() {
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    local code=$?
    tail -n 3 "$out/$name.log"
    echo "$name $code" >>"$out/steps.txt"
    [ "$code" -eq 0 ] || status=1
}

: >"$out/steps.txt"
nvidia-smi >"$out/nvidia-smi.txt" 2>&1
"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
    echo "no CUDA device, or no torch for $python (set PYTHON)" | tee -a "$out/steps.txt"
    exit 2
}
# The kernels on the device first: timings of wrong results are worth nothing.
run kernels 170 "$python" -m pytest -q -p no:cacheprovider -c /dev/null tests/kernels/interpreted.py
bench=("$python" benchmarks/bench_linear_entropy.py --device cuda --out "$out/linear_entropy.csv")
run bfloat16 170 "${bench[@]}" --shapes gpu --dtype bfloat16 --repeats 5
run bfloat16-600mb 70 "${bench[@]}" --shapes gpu --dtype bfloat16 --repeats 5 --workspace-mb 600 \
    --only product torch triton-chunk triton-fused
run float32 40 "${bench[@]}" --shapes tiny --dtype float32 --repeats 5
# The loop itself, where all that it needs is installed.
if "$python" -c 'import bitsandbytes, datasets, sklearn' 2>/dev/null; then
    run loop 90 env PYTHONPATH=".:$PYTHONPATH" "$python" -m pytest -q -p no:cacheprovider -c /dev/null \
        --noconftest -m gpu tests/test_gpu.py
fi
cat "$out/steps.txt"
exit $status
