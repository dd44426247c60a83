#!/usr/bin/env bash
# LoRA tuning of Qwen, left to right, as the tutorial starts it: `bash scripts/train-qwen.sh [--key value …]`.
# CONFIG, NUM_PROCESSES and CUDA_VISIBLE_DEVICES: see launch.sh. A first look: --max_steps 20
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train-qwen.sh examples/qwen/sft.py configs/qwen2.5-7b-alpaca.yaml "$@"
