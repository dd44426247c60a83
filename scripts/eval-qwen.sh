#!/usr/bin/env bash
# Score Qwen on what scripts/eval-llada.sh scores LLaDA on: `bash scripts/eval-qwen.sh [--key value …]`.
# Then: unmask compare output/eval/llada-cmmlu output/eval/qwen-cmmlu
#
# The tutorial used EvalScope on C-Eval here, lm-eval on CMMLU for LLaDA: other questions, other prompts, and a letter
# read from written text instead of the likeliest of the choices; two such numbers cannot be compared. Here both models
# get the same questions, are asked for the same choices and are scored by the same harness. `TASKS=ceval-valid` for
# both is the nearest to the tutorial's number; EvalScope's own can still be had with `evalscope eval`.
#
# MODEL, TASKS, OUTPUT and LOCAL_DATA: see eval-llada.sh. NUM_PROCESSES and CUDA_VISIBLE_DEVICES: see launch.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL="${MODEL:-output/qwen2.5-7b-alpaca/checkpoint-final}"
TASKS="${TASKS:-cmmlu}"
OUTPUT="${OUTPUT:-output/eval/qwen-$TASKS}"
if [ ! -d "$MODEL" ] && [ ! -d "${BASE_MODELS_DIR:-.}/$MODEL" ]; then
  echo "eval-qwen.sh: no model folder '$MODEL'; train it (bash scripts/train-qwen.sh), or set MODEL=FOLDER." >&2
  exit 2
fi

# The file is called after LLaDA and is nothing but `unmask eval`.
exec bash scripts/launch.sh eval-qwen.sh dllm/pipelines/llada/eval.py "" \
  --tasks "$TASKS" \
  --model unmask \
  --apply_chat_template \
  --output_path "$OUTPUT" \
  --log_samples \
  --max_batch_size 4 \
  --model_args "pretrained=$MODEL,objective=autoregressive,max_length=1024" \
  ${LOCAL_DATA:+--local_data "$LOCAL_DATA"} "$@"
