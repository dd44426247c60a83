#!/usr/bin/env bash
# A training run as a job of Slurm, on one machine or several, sent from the repository's folder:
#
#   sbatch scripts/train.slurm.sh                                   train-sft.sh's run on a machine with 8 GPUs
#   sbatch --nodes=2 --gres=gpu:4 scripts/train.slurm.sh --accelerate_config fsdp --script_path examples/llada/pt.py \
#       --max_steps 20000
#
# --accelerate_config and --script_path are ours; other flags go on to training. Your cluster's partition, account, time and
# so on are sbatch's options, before the script's name. CONFIG, PYTHON: as in launch.sh.
#
# Ten minutes before the time is up training saves a checkpoint and stops, and the job goes back into the queue. Whenever
# the run's folder holds checkpoints, the newest is gone on from. Signals, and the file systems of the machines, are the
# cluster's: the run's folder, the model and the data have to be where all machines see them.
#
#SBATCH --job-name=unmask
#SBATCH --nodes=1
# One launcher a machine, which starts a process a GPU.
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
# To this script, 600 seconds before the end.
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
name=train.slurm.sh
stop() {
  echo "$name: $1" >&2
  exit 2
}
if [ -z "${SLURM_JOB_ID:-}" ]; then stop "this is a job of Slurm; send it with: sbatch scripts/$name"; fi
cd "${SLURM_SUBMIT_DIR:?}" # Slurm runs a copy of this file that lies elsewhere
if [ ! -f scripts/launch.sh ]; then stop "there is no scripts/launch.sh in $PWD; send the job from the repository's folder."; fi

script=examples/llada/sft.py
flags=()
folder=
anew=no
while [ $# -gt 0 ]; do
  flag="${1%%=*}" value="${1#*=}" words=1
  if [ "$flag" = "$1" ]; then value="${2:-}" words=2; fi
  case "$flag" in
    --accelerate_config | --script_path | --config | --configs | --config_file)
      if [ $# -lt "$words" ] || [ -z "$value" ]; then stop "$flag has no value."; fi
      case "$flag" in
        --accelerate_config) export ACCELERATE_CONFIG="$value" ;;
        --script_path) script="$value" ;;
        *) CONFIG="$value" ;;
      esac
      shift "$words"
      continue
      ;;
    --output_dir | --output-dir) folder="$value" ;;
    --overwrite_output_dir | --overwrite-output-dir) anew=yes ;;
  esac
  flags+=("$1")
  shift
done
if [ ! -f "$script" ]; then stop "no --script_path $script."; fi
case "$script" in
  *llada/pt.py) recipe=configs/llada-100M-pt.yaml ;;
  *llada/sft.py) recipe=configs/llada-8b-sft.yaml ;;
  *qwen/sft.py) recipe=configs/qwen2.5-7b-alpaca.yaml ;;
  *) recipe= ;;
esac
export CONFIG="${CONFIG:-$recipe}"
said() { # said KEY: what the recipe says of it
  if [ -n "$CONFIG" ]; then sed -n "s/^$1: *['\"]\{0,1\}\([^'\"# ]*\).*/\1/p" "$CONFIG"; fi
}
folder="${folder:-$(said output_dir)}"
if [ "$(said overwrite_output_dir)" = true ]; then anew=yes; fi

# Go on with what is there. A run that was to begin anew does so once, and not each time its job comes back.
again="${SLURM_RESTART_COUNT:-0}"
if [ -n "$folder" ] && { [ "$anew" = no ] || [ "$again" -gt 0 ]; }; then
  if compgen -G "$folder/checkpoint-[0-9]*" > /dev/null; then
    flags+=(--overwrite_output_dir false --resume_from_checkpoint auto)
  elif [ "$again" -gt 0 ] && [ ! -e "$folder/checkpoint-final" ]; then # stopped before the first checkpoint
    flags+=(--overwrite_output_dir true)
  fi
fi

gpus="${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}"
case "$gpus" in
  '' | 0* | *[!0-9]*) stop "how many GPUs a machine has is not known ('$gpus'); send with --gres=gpu:N, or set GPUS_PER_NODE." ;;
esac
mapfile -t machines < <(scontrol show hostnames "${SLURM_JOB_NODELIST:?}")
export NUM_MACHINES="${#machines[@]}" NUM_PROCESSES=$((gpus * ${#machines[@]}))
export MAIN_PROCESS_IP="${machines[0]}" MAIN_PROCESS_PORT="${MAIN_PROCESS_PORT:-$((20000 + SLURM_JOB_ID % 12000))}"
echo "$name: $NUM_PROCESSES processes on ${machines[*]}${folder:+, into $folder}; start $((again + 1))" >&2

# --wait: once a machine is done, the others have ten minutes, for a checkpoint; --kill-on-bad-exit would cut it off.
# shellcheck disable=SC2016  # SLURM_NODEID is each machine's own
srun --nodes="$NUM_MACHINES" --ntasks="$NUM_MACHINES" --ntasks-per-node=1 \
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --wait=600 \
  bash -c 'MACHINE_RANK=$SLURM_NODEID exec bash scripts/launch.sh "$@"' bash "$name" "$script" "$CONFIG" \
  ${flags[@]+"${flags[@]}"} &
step=$!
stopped=no
# To the launchers, which tell their processes: finish the step, save, end. (A SIGTERM to srun itself would kill them.)
trap 'trap "" USR1; stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
code=0
wait "$step" || code=$?
if [ "$stopped" = yes ]; then # the signal ended the waiting, not the step
  code=0
  wait "$step" || code=$?
fi
if [ "$stopped" = yes ] && [ "$code" != 0 ]; then
  echo "$name: the time is up; back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
