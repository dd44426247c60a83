#!/usr/bin/env bash
# Pretraining as the tutorial starts it: `bash scripts/train-pt.sh [--key value …]`. Flags go on to `unmask pretrain`.
#
#   CONFIG=my.yaml bash scripts/train-pt.sh               another recipe     [configs/llada-100M-pt.yaml]
#   NUM_PROCESSES=4 bash scripts/train-pt.sh              one process a GPU  [1]
#   CUDA_VISIBLE_DEVICES=5 bash scripts/train-pt.sh       a certain GPU
#   bash scripts/train-pt.sh --max_steps 20 --warmup_steps 2    a first look
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CONFIG="${CONFIG:-configs/llada-100M-pt.yaml}"
NUM_PROCESSES="${NUM_PROCESSES:-1}"
case "$NUM_PROCESSES" in
  '' | 0* | *[!0-9]*) echo "train-pt.sh: NUM_PROCESSES is '$NUM_PROCESSES'; it must be a whole number above 0." >&2; exit 2 ;;
esac
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  for candidate in .venv/bin/python .venv/Scripts/python.exe; do
    if [ -x "$candidate" ]; then PYTHON="$candidate"; fi
  done
fi

# cuda, mps, … or cpu, and how many threads a process gets
if ! found=$("$PYTHON" -c '
import sys, torch
device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
print(device.type if device else "cpu", max(1, torch.get_num_threads() // int(sys.argv[1])))
' "$NUM_PROCESSES"); then
  echo "train-pt.sh: $PYTHON cannot import torch; set the environment up first: python3 scripts/setup.py" >&2
  exit 2
fi
read -r device threads <<< "$found"

echo "train-pt.sh: $CONFIG on $device, processes: $NUM_PROCESSES" >&2
pretrain=(examples/llada/pt.py --configs "$CONFIG" "$@")
if [ "$device" = mps ]; then # one GPU, which neither of accelerate's files below means
  exec "$PYTHON" "${pretrain[@]}"
fi
# Under cpu.yaml accelerate 1.15 runs one process, however many are asked for; several go by the distributed file.
accelerate=configs/ddp.yaml
if [ "$device" = cpu ] && [ "$NUM_PROCESSES" = 1 ]; then accelerate=configs/cpu.yaml; fi
# The launcher alone lets Ctrl-C pass: accelerate's (1.15) would be gone before training has saved its checkpoint.
# --quiet: when training stops with a clear line, no traceback of the launcher below it.
exec "$PYTHON" -c '
import signal
signal.signal(signal.SIGINT, lambda *_: None)  # a function is not inherited by what is launched
from accelerate.commands.launch import main
main()
' --quiet --config_file "$accelerate" --num_processes "$NUM_PROCESSES" --num_cpu_threads_per_process "$threads" \
  "${pretrain[@]}"
