#!/usr/bin/env bash
# What scripts/train-*.sh share: `launch.sh NAME SCRIPT CONFIG [--key value …]` starts SCRIPT under accelerate with what
# this machine has. Flags go on to the command.
#
#   CONFIG=my.yaml bash scripts/train-….sh                another recipe
#   NUM_PROCESSES=4 bash scripts/train-….sh               one process a GPU, on all machines together  [1]
#   CUDA_VISIBLE_DEVICES=5 bash scripts/train-….sh        a certain GPU
#   ACCELERATE_CONFIG=fsdp bash scripts/train-….sh        how processes share a model: a file of configs/, by its name or
#                                                         path, or your own  [cpu or ddp]
#
# Several machines, the same command on each, with MACHINE_RANK 0, 1, …:
#   NUM_MACHINES=2 MACHINE_RANK=0 MAIN_PROCESS_IP=node-0 NUM_PROCESSES=16 bash scripts/train-….sh
#   MAIN_PROCESS_PORT  [29500]   RDZV_BACKEND, static or c10d  [static]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$1
script=$2
CONFIG="${CONFIG:-$3}"
shift 3
stop() {
  echo "$name: $1" >&2
  exit 2
}
whole() { # whole NAME VALUE LEAST
  case "$2" in
    '' | 0?* | *[!0-9]*) ;;
    *) if [ "$2" -ge "$3" ]; then return; fi ;;
  esac
  if [ "$3" = 1 ]; then stop "$1 is '$2'; it must be a whole number above 0."; fi
  stop "$1 is '$2'; it must be a whole number, 0 or more."
}
NUM_PROCESSES="${NUM_PROCESSES:-1}"
NUM_MACHINES="${NUM_MACHINES:-1}"
whole NUM_PROCESSES "$NUM_PROCESSES" 1
whole NUM_MACHINES "$NUM_MACHINES" 1
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  for candidate in .venv/bin/python .venv/Scripts/python.exe; do
    if [ -x "$candidate" ]; then PYTHON="$candidate"; fi
  done
fi

several=()
if [ "$NUM_MACHINES" -gt 1 ]; then
  if [ -z "${MACHINE_RANK:-}" ]; then stop "NUM_MACHINES is $NUM_MACHINES; set MACHINE_RANK, from 0 on, on each of them."; fi
  whole MACHINE_RANK "$MACHINE_RANK" 0
  if [ "$MACHINE_RANK" -ge "$NUM_MACHINES" ]; then
    stop "MACHINE_RANK is $MACHINE_RANK of $NUM_MACHINES machines; they are counted from 0 to $((NUM_MACHINES - 1))."
  fi
  if [ -z "${MAIN_PROCESS_IP:-}" ]; then
    stop "NUM_MACHINES is $NUM_MACHINES; set MAIN_PROCESS_IP, the address of the machine whose MACHINE_RANK is 0."
  fi
  if [ $((NUM_PROCESSES % NUM_MACHINES)) != 0 ]; then
    stop "NUM_PROCESSES is $NUM_PROCESSES, of all machines together; $NUM_MACHINES machines cannot share them evenly."
  fi
  case "${RDZV_BACKEND:-static}" in
    static | c10d) ;;
    *) stop "RDZV_BACKEND is '$RDZV_BACKEND'; it can be static or c10d." ;;
  esac
  # accelerate 1.15 passes over `rdzv_backend` in its file, so it is said here
  several=(--num_machines "$NUM_MACHINES" --machine_rank "$MACHINE_RANK" --main_process_ip "$MAIN_PROCESS_IP"
    --main_process_port "${MAIN_PROCESS_PORT:-29500}" --rdzv_backend "${RDZV_BACKEND:-static}")
fi

# cuda, mps, … or cpu, and how many threads a process gets
if ! found=$("$PYTHON" -c '
import sys, torch
device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
print(device.type if device else "cpu", max(1, torch.get_num_threads() // int(sys.argv[1])))
' "$((NUM_PROCESSES / NUM_MACHINES))"); then
  stop "$PYTHON cannot import torch; set the environment up first: python3 scripts/setup.py"
fi
read -r device threads <<< "$found"

# Under cpu.yaml accelerate 1.15 runs one process, however many are asked for; several go by the distributed file.
accelerate=configs/ddp.yaml
if [ "$device" = cpu ] && [ "$NUM_PROCESSES" = 1 ]; then accelerate=configs/cpu.yaml; fi
asked="${ACCELERATE_CONFIG:-}"
if [ -n "$asked" ]; then
  accelerate="$asked"
  if [[ "$asked" != */* && "$asked" != *.* ]]; then accelerate="configs/$asked.yaml"; fi
  if [ ! -f "$accelerate" ]; then
    names=$(grep -l '^distributed_type:' configs/*.yaml | sed -e 's/.*\///' -e 's/\.yaml$//' | paste -sd ' ' -)
    stop "no ACCELERATE_CONFIG '$asked'; it can be one of: $names; or the path of a file of your own."
  fi
  kind=$(sed -n "s/^distributed_type: *['\"]\{0,1\}\([A-Z_]*\).*/\1/p" "$accelerate")
  if [ -z "$kind" ]; then stop "$accelerate is no file of accelerate's: it has no distributed_type."; fi
  if [ "$device" = mps ] && [ "$kind" != NO ]; then stop "$accelerate shares a model between GPUs, and a Mac has one."; fi
  case "$kind" in
    NO) if [ "$NUM_PROCESSES" != 1 ]; then stop "$accelerate is for one process; NUM_PROCESSES=$NUM_PROCESSES go by ddp."; fi ;;
    FSDP) if [ "$device" = cpu ]; then stop "$accelerate needs GPUs: accelerate would start plain DDP here."; fi ;;
    DEEPSPEED)
      if ! "$PYTHON" -c 'import sys, importlib.util as u; sys.exit(u.find_spec("deepspeed") is None)'; then
        stop "$accelerate needs DeepSpeed: pip install -e '.[deepspeed]'"
      fi
      ;;
  esac
fi

echo "$name: ${CONFIG:-$script} on $device, processes: $NUM_PROCESSES${asked:+, $accelerate}" >&2
command=("$script" ${CONFIG:+--configs "$CONFIG"} "$@")
if [ "$device" = mps ] && [ -z "$asked" ]; then # one GPU, which none of accelerate's files means
  exec "$PYTHON" "${command[@]}"
fi
# On SIGTERM torch's launcher gives its processes 30 seconds, too few for the checkpoint of a large model (torch 2.13).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"
# The launcher alone lets Ctrl-C pass: accelerate's (1.15) would be gone before training has saved its checkpoint.
# --quiet: when training stops with a clear line, no traceback of the launcher below it.
exec "$PYTHON" -c '
import signal
signal.signal(signal.SIGINT, lambda *_: None)  # a function is not inherited by what is launched
from accelerate.commands.launch import main
main()
' --quiet --config_file "$accelerate" --num_processes "$NUM_PROCESSES" --num_cpu_threads_per_process "$threads" \
  ${several[@]+"${several[@]}"} "${command[@]}"
