#!/usr/bin/env bash
# Pretraining of a small Qwen, left to right, to compare with LLaDA: `bash scripts/train-qwen-pt.sh [--key value …]`.
# CONFIG, NUM_PROCESSES and CUDA_VISIBLE_DEVICES: see launch.sh. A first look: --max_steps 20 --warmup_steps 2
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" train-qwen-pt.sh examples/qwen/pt.py configs/qwen2.5-100M-pt.yaml "$@"
