#!/bin/sh
# Speed, memory and compile time of the Llama-2-7B shape on an NVIDIA GPU: random bfloat16 weights, rank 16.
#   sh benchmarks/gpu.sh PYTHON RESULTS [OPTION...]
# Options go to every run, as `--layers 2` does for a quick look. A run whose file is there is not made again.
# 38 runs: 16 of speed and 16 of memory, in which an oracle is compiled for each mask, 2 of speed with decisions taken
# before the forward, 2 of the other ways to compile (merged, outlined, by layer), and 2 of compile time, of 21 starts each,
# seven of them of all 32 layers. A run that fails (out of memory, say) stops none of the others: at the end such runs are
# named, and the exit status is 1. They alone are made again the next time.
set -u
python=$1
results=$2
shift 2
here=$(dirname "$0")
mkdir -p "$results" || exit
failed=

once() {
    name=$1
    script=$2
    shift 2
    [ -e "$results/$name.json" ] && return
    echo "== $name"
    "$python" "$here/$script.py" --preset llama-2-7b --json "$results/$name.json" "$@" && return
    echo "== $name: failed with exit status $?" >&2
    failed="$failed $name"
}

once_with_every_mask() {
    name=$1
    script=$2
    shift 2
    once "$name" "$script" \
        --masks nothing "lower quarter" "lower half" "lower three quarters" everything "random 60 %" "$@"
}

for targets in all qv; do
    for shape in 4x512 1x2048; do
        for saving in "" --checkpointing; do
            for scope in adapter layer; do
                run=$targets-$shape-$scope${saving:+-checkpointing}
                of="--targets $targets --batch ${shape%x*} --length ${shape#*x} --lengths alpaca --scope $scope $saving"
                # shellcheck disable=SC2086
                once_with_every_mask "speed-$run" speed $of --arms skiplora oracle inductor "eager detach" eager "$@"
                # shellcheck disable=SC2086
                once_with_every_mask "memory-$run" memory $of "$@"
            done
        done
    done
    of="--targets $targets --batch 4 --length 512 --lengths alpaca"
    # shellcheck disable=SC2086
    once "speed-$targets-previous" speed $of --decision previous --masks nothing "lower half" "random 60 %" \
        --arms skiplora oracle inductor "$@"
    # shellcheck disable=SC2086
    once "speed-$targets-ways" speed $of --masks nothing "lower half" --arms skiplora "skiplora merged" "skiplora outlined" \
        "skiplora by layer" oracle "oracle by layer" inductor "inductor by layer" "$@"
    once "compile-$targets" compile_time --targets "$targets" --depths 2 8 32 --arms inductor skiplora "skiplora warm" \
        "skiplora outlined" "skiplora by layer" "inductor by layer" "$@"
done

if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
