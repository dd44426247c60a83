#!/usr/bin/env bash
# What scripts/train-*.sh share: `launch.sh NAME SCRIPT CONFIG [--key value …]` starts SCRIPT under accelerate with what
# this machine has. Flags go on to the command.
#
#   CONFIG=my.yaml bash scripts/train-….sh                another recipe
#   NUM_PROCESSES=4 bash scripts/train-….sh               one process a GPU  [1]
#   CUDA_VISIBLE_DEVICES=5 bash scripts/train-….sh        a certain GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$1
script=$2
CONFIG="${CONFIG:-$3}"
shift 3
NUM_PROCESSES="${NUM_PROCESSES:-1}"
case "$NUM_PROCESSES" in
  '' | 0* | *[!0-9]*) echo "$name: NUM_PROCESSES is '$NUM_PROCESSES'; it must be a whole number above 0." >&2; exit 2 ;;
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
  echo "$name: $PYTHON cannot import torch; set the environment up first: python3 scripts/setup.py" >&2
  exit 2
fi
read -r device threads <<< "$found"

echo "$name: ${CONFIG:-$script} on $device, processes: $NUM_PROCESSES" >&2
command=("$script" ${CONFIG:+--configs "$CONFIG"} "$@")
if [ "$device" = mps ]; then # one GPU, which neither of accelerate's files below means
  exec "$PYTHON" "${command[@]}"
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
  "${command[@]}"
