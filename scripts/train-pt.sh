#!/usr/bin/env bash
# Pretraining as the tutorial starts it: `bash scripts/train-pt.sh [--key value …]`.
# CONFIG, NUM_PROCESSES and CUDA_VISIBLE_DEVICES: see launch.sh. A first look: --max_steps 20 --warmup_steps 2
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train-pt.sh examples/llada/pt.py configs/llada-100M-pt.yaml "$@"
