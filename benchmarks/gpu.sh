#!/usr/bin/env bash
# Everything that wants a GPU, in one go, in 10 to 20 minutes on an H100: tests of the kernels and of
# the loop, time and peak memory of every contender (columns ms_median and peak_extra_mb), and, on a
# model of 1B parameters with random weights, queries against other code and memory against docs/memory.md.
#
#   bash benchmarks/gpu.sh FOLDER
#
# Needs torch, triton, transformers, peft and pytest (bitsandbytes, datasets and scikit-learn for the
# loop), no network. Leaves its rows and logs in FOLDER; exit status 1 if a step failed.
# To make route="auto" use them: append the rows to benchmarks/results/linear_entropy.csv, then
# python benchmarks/bench_linear_entropy.py --write-table
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:?usage: bash benchmarks/gpu.sh FOLDER}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=".:kernels${PYTHONPATH:+:$PYTHONPATH}"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
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
    echo "$name $code ${SECONDS} s" >>"$out/steps.txt"
    [ "$code" -eq 0 ] || status=1
}

: >"$out/steps.txt"
nvidia-smi >"$out/nvidia-smi.txt" 2>&1
"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
    echo "no CUDA device, or no torch for $python (set PYTHON)" | tee -a "$out/steps.txt"
    exit 2
}
loop=$("$python" -c 'import bitsandbytes, datasets, sklearn; print("yes")' 2>/dev/null)
test=("$python" -m pytest -q -p no:cacheprovider -c /dev/null)
# Several processes compile the kernels at once, where pytest-xdist is there.
workers=()
"$python" -c 'import xdist' 2>/dev/null && workers=(-n 8)
# The tests on the device first: timings of wrong results are worth nothing.
run kernels 170 "${test[@]}" "${workers[@]}" tests/kernels/interpreted.py
[ -n "$loop" ] && run loop 150 "${test[@]}" --noconftest -m gpu tests/test_gpu.py
bench=("$python" benchmarks/bench_linear_entropy.py --device cuda --out "$out/linear_entropy.csv")
run bfloat16 200 "${bench[@]}" --shapes gpu --dtype bfloat16 --repeats 5
run bfloat16-600mb 60 "${bench[@]}" --shapes gpu --dtype bfloat16 --repeats 5 --workspace-mb 600 \
    --only product torch triton-chunk triton-fused
for shape in 1,8192,4096,32000 3,2048,2048,32000; do
    run "float32-$shape" 40 "${bench[@]}" --shape "$shape" --dtype float32 --repeats 5 \
        --only product eager torch triton-chunk triton-fused
done
if [ -n "$loop" ]; then
    export PYTHONPATH="benchmarks:$PYTHONPATH"
    # A careful user gives other code the cores that it takes; the clock is the wall's.
    query=("$python" benchmarks/bench_query.py --shape-of Llama-3.2-1B --threads 8 --out "$out/query.csv"
        --steps 10 --learning-rate 1e-5 --tolerance 0.1 --differing-answers 0.5 --given-answers
        --checked-items 4 --naive-items 3 --repeats 3)
    run memory 120 "$python" benchmarks/bench_gpu_memory.py --out "$out/gpu_memory.csv"
    run query-choices 200 "${query[@]}" --tasks skewed --items 2000 --strong-items 1024 --strong-batch 512 \
        --settings default one-pass
    run query-free-form 300 "${query[@]}" --tasks steps --items 200 --strong-items 200 --strong-batch 100 \
        --settings default --rounds first
fi
cat "$out/steps.txt"
exit $status
