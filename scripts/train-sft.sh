#!/usr/bin/env bash
# LoRA tuning of LLaDA as the tutorial starts it: `bash scripts/train-sft.sh [--key value …]`.
# CONFIG, NUM_PROCESSES and CUDA_VISIBLE_DEVICES: see launch.sh. A first look: --max_steps 20
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train-sft.sh examples/llada/sft.py configs/llada-8b-sft.yaml "$@"
