#!/bin/sh
# Speed, memory and compile time of the Llama-2-7B shape on an NVIDIA GPU: random bfloat16 weights, rank 16.
#   sh benchmarks/gpu.sh PYTHON RESULTS [OPTION...]
# Options go to every run, as `--layers 2` does for a quick look. A run whose file is there is not made again.
set -eu
python=$1
results=$2
shift 2
here=$(dirname "$0")
mkdir -p "$results"

once() {
    file=$results/$1.json
    script=$2
    shift 2
    [ -e "$file" ] || "$python" "$here/$script.py" --preset llama-2-7b --json "$file" "$@"
}

for targets in all qv; do
    for shape in 4x512 1x2048; do
        for saving in "" --checkpointing; do
            for scope in adapter layer; do
                name=$targets-$shape-$scope${saving:+-checkpointing}
                of="--targets $targets --batch ${shape%x*} --length ${shape#*x} --scope $scope $saving"
                # shellcheck disable=SC2086
                once "speed-$name" speed $of --lengths alpaca \
                    --masks nothing "lower quarter" "lower half" "lower three quarters" everything "random 60 %" \
                    --arms skiplora oracle inductor "eager detach" eager "$@"
                # shellcheck disable=SC2086
                once "memory-$name" memory $of "$@"
            done
        done
    done
    once "compile-$targets" compile_time --targets "$targets" --depths 2 8 32 --arms inductor skiplora "skiplora warm" "$@"
done
