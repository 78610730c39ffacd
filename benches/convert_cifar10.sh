#!/usr/bin/env bash
# Converts the MLPs of a dense ViT trained on CIFAR-10 into each family at each share of their weights, evaluates it, fine-tunes it
# for five epochs and evaluates again. One JSON line a row in OUT/results.jsonl.
#
#   lacewing train cifar10-vit-monarch model.mlp=dense twin=false --data CIFAR --out runs/dense
#   benches/convert_cifar10.sh CIFAR runs/dense OUT [FAMILY:SHARE ...]
#
# LACEWING names the program (default: target/release/lacewing), JOBS how many rows run at once, LIMIT the seconds for a conversion,
# SEEDS the seeds of the fine-tuning runs ("0 1 2"): `after` is their mean, `runs` lists them.
set -u
data=$1 dense=$2 out=$3
shift 3
lacewing=${LACEWING:-target/release/lacewing}
mkdir -p "$out"
families="unstructured nm block_sparse low_rank block_diagonal monarch monarch_einsum pixelfly flat_butterfly butterfly block_butterfly
debut bf_gadget ssl ssl_hashed circulant stripe_butterfly ninja_turtle random_tiles top_k_tiles transform fastfood toeplitz"
if [ $# -eq 0 ]; then
    for share in 0.5 0.25 0.125; do
        for family in auto $families; do set -- "$@" "$family:$share"; done
    done
fi

row() {
    local family=${1%:*} share=${1#*:}
    local at=$out/$family-$share to="--to $family --uniform" started=$SECONDS
    # The families whose projections take seconds; longer chains may be added where time allows.
    [ "$family" = auto ] && to="--to unstructured nm block_sparse low_rank monarch monarch_einsum block_diagonal ssl_hashed"
    # shellcheck disable=SC2086
    if ! timeout "${LIMIT:-600}" "$lacewing" convert "$dense" $to --layers 'blocks.*.mlp.*' --budget "params=$share" \
        --calibrate "$data" --samples 512 --out "$at" --json >"$at.json" 2>"$at.err"; then
        printf '{"family": "%s", "share": %s, "error": "see %s"}\n' "$family" "$share" "$at.err" >>"$out/results.jsonl"
        return
    fi
    local seconds=$((SECONDS - started))
    "$lacewing" eval "$at" --data "$data" --device cuda:0 --json >"$at.before" 2>>"$at.err"
    for seed in ${SEEDS:-0}; do
        "$lacewing" train cifar10-vit-monarch --init "$at" --data "$data" --out "$at-tuned-$seed" --seed "$seed" train.epochs=5 \
            train.lr=2e-4 train.min_lr=1e-6 train.warmup_epochs=0.5 train.ema.decay=0.99 train.eval_every=0 train.checkpoint_every=0 \
            >"$at.log" 2>&1
    done
    python3 - "$family" "$share" "$at" "$seconds" >>"$out/results.jsonl" <<'P'
import glob, json, os, sys

family, share, at, seconds = sys.argv[1:]
converted = json.load(open(at + ".json"))
layers = converted["layers"]
rms = lambda key: (sum(layer[key] ** 2 for layer in layers) / len(layers)) ** 0.5
row = {"family": family, "share": float(share), "seconds": int(seconds), "logit_error": converted["logit_error"]}
row["stored"] = sum(l["parameters"] for l in layers) / sum(l["dense_parameters"] for l in layers)
row["error"], row["output_error"] = rms("error"), rms("output_error")
row["before"] = json.load(open(at + ".before"))["accuracy"] if os.path.getsize(at + ".before") else None
row["runs"] = [json.load(open(run))[0]["accuracy"] for run in sorted(glob.glob(at + "-tuned-*/summary.json"))]
row["after"] = sum(row["runs"]) / len(row["runs"]) if row["runs"] else None
if family == "auto":
    names = [layer["to"]["structure"] for layer in layers]
    row["mixture"] = {name: names.count(name) for name in sorted(set(names))}
print(json.dumps(row))
P
    rm -rf "$at" "$at"-tuned-*
}
export -f row
export data dense out lacewing
printf '%s\n' "$@" | xargs -P "${JOBS:-3}" -I{} bash -c 'row {}'
