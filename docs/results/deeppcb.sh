#!/usr/bin/env bash
# The trainings behind docs/results/deeppcb*.json, from the top folder, with data and weights in datasets/ as the config
# says:
#     docs/results/deeppcb.sh rates      two rates for each variant, 600 iterations on a part of the training boards
#     docs/results/deeppcb.sh short      all variants, 1,200 iterations
#     docs/results/deeppcb.sh long       five of them and the best of the candidates, 3,000 iterations
#     docs/results/deeppcb.sh candidates changes of CLQ, 3,000 iterations on a part of the training boards
#     docs/results/deeppcb.sh resnet18   CLQ, GFL and ATSS with a ResNet-18 from scratch, 1,200 iterations
# Words after the first one are options of tools/study.py, such as --seeds or --jobs. What is stored is not trained
# again; what is not stored yet of these seeds (GFLv2's seed 7, for one) is trained by a plain call.
set -euo pipefail
ablations=configs/ablations
# The rate of each is the better one of docs/results/deeppcb_rates.json. TOOD has 6 convolutions where the others have
# 2 x 4, and VFNet 3 and one more in its refinement: here 3, and 1 and one more.
long=(
    "CLQ=configs/CLQ/clq_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.0005"
    "GFL=$ablations/clq_wo_lqe_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.0005"
    "ATSS=configs/ATSS/atss_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.0005"
    "CLQ w/o align=$ablations/clq_wo_align_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.0005"
    "GFLv2=configs/GFLV2/gflv2_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.0005"
)
others=(
    "ATSS + CLQ's head=$ablations/atss_clq_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.001"
    "ATSS + QFL=$ablations/atss_qfl_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.001"
    "VFNet=configs/VFNET/vfnet_R_50_FPN_1x.yaml MODEL.CLQ.NUM_CONVS 1 MODEL.CLQ.RELU_BEFORE_P7 False SOLVER.BASE_LR 0.001"
    "TOOD=configs/TOOD/tood_R_50_FPN_1x.yaml MODEL.CLQ.NUM_CONVS 3 SOLVER.BASE_LR 0.0005"
    "CLQ, geometric align=$ablations/clq_geometric_align_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.0005"
    "CLQ, LQE on regression tower=configs/CLQ/clq_R_50_FPN_1x.yaml MODEL.CLQ.QUALITY.TOWER reg SOLVER.BASE_LR 0.0005"
)
# First the two variants for comparison, then four changes of CLQ's parts, whose rates were not searched. ASSIGN.NAME
# task is a third of the training with ATSS's assigner and losses, then TOOD's assigner and class target.
without=$ablations/clq_wo_align_R_50_FPN_1x.yaml
candidates=(
    "${long[3]}"
    "${long[4]}"
    "CLQ w/o align, task-aligned assignment=$without MODEL.CLQ.ASSIGN.NAME task MODEL.CLQ.ASSIGN.WARMUP 0.33333 SOLVER.BASE_LR 0.0005"
    "CLQ w/o align, box losses x 2=$without MODEL.CLQ.BOX.LOSS_WEIGHT 4.0 MODEL.CLQ.BOX.DFL_WEIGHT 0.5 SOLVER.BASE_LR 0.0005"
    "CLQ w/o align, alpha 0.6=$without MODEL.CLQ.QUALITY.ALPHA 0.6 SOLVER.BASE_LR 0.0005"
    "CLQ, distribution-guided branch=configs/CLQ/clq_R_50_FPN_1x.yaml MODEL.CLQ.QUALITY.NAME dgqp SOLVER.BASE_LR 0.0005"
)
# 868 boards for training and 132 for the test.
held_out=(
    DATASETS.SETS '[{"name": "pcb", "coco": "datasets/deeppcb/instances_train.json", "images": "datasets/deeppcb/images", "split": {"train": 0.85, "val": 0.15, "seed": 1}}]'
    DATASETS.TRAIN '("pcb_train",)' DATASETS.TEST '("pcb_val",)' TEST.REPORT False
)

study() { # CONFIG STORE [OPTION ...]
    python tools/study.py --config-file "docs/results/$1.yaml" --jobs 2 --store "docs/results/$2" \
        --output "output/$2" "${@:3}"
}

same=(MODEL.CLQ.BOX.REG_MAX 7) # NanoDet's; the variants' configs have 16
name=${1:-}
shift || true
case $name in
    rates)
        variants=()
        for variant in "${long[@]}" "${others[@]}"; do
            for rate in 0.0005 0.001; do
                variants+=("${variant%%=*}, $rate=$(sed "s/^[^=]*=//; s/[^ ]*$/$rate/" <<< "$variant")")
            done
        done
        study deeppcb_study deeppcb_rates --seeds 1 "$@" --variants "${variants[@]}" \
            --opts "${held_out[@]}" SOLVER.MAX_ITER 600 "${same[@]}"
        ;;
    short) study deeppcb_study deeppcb --seeds 1 2 3 "$@" --variants "${long[@]}" "${others[@]}" --opts "${same[@]}" ;;
    long)
        study deeppcb_study deeppcb_long --seeds 1 2 3 4 5 6 7 "$@" --variants "${long[@]}" "${candidates[2]}" \
            --opts "${same[@]}" SOLVER.MAX_ITER 3000
        ;;
    candidates)
        study deeppcb_study deeppcb_candidates --seeds 1 "$@" --variants "${candidates[@]}" \
            --opts "${held_out[@]}" "${same[@]}" SOLVER.MAX_ITER 3000
        ;;
    resnet18)
        study deeppcb_r18_study deeppcb_r18 --seeds 1 2 3 "$@" --variants "${long[@]:0:3}" --opts "${same[@]}"
        ;;
    *) echo "$0: give one of rates, short, long, candidates, resnet18 instead of '$name'" >&2; exit 2 ;;
esac
