#!/usr/bin/env bash
# Score LLaDA as the tutorial does: `bash scripts/eval-llada.sh [--key value …]`; flags go on to `unmask eval`.
#
#   MODEL=models/llada-8b bash scripts/eval-llada.sh           another model folder, or an adapter's
#   OUTPUT=output/eval/mine bash scripts/eval-llada.sh         another folder for the results
#   LOCAL_DATA=data/exams bash scripts/eval-llada.sh           the questions from this disk, without network
#   TASKS=ceval-valid bash scripts/eval-llada.sh --num_fewshot 5
#
# NUM_PROCESSES and CUDA_VISIBLE_DEVICES: see launch.sh. A first look: --limit 10
# Tasks that run the code a model wrote need HF_ALLOW_CODE_EVAL=1, which only you can set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL="${MODEL:-output/llada-8b-alpaca-zh-merged}"
TASKS="${TASKS:-cmmlu}"
OUTPUT="${OUTPUT:-output/eval/llada-$TASKS}"
if [ ! -d "$MODEL" ] && [ ! -d "${BASE_MODELS_DIR:-.}/$MODEL" ]; then
  echo "eval-llada.sh: no model folder '$MODEL'; train and merge one (configs/llada-8b-sft.yaml) or set MODEL." >&2
  exit 2
fi

# Other tasks: see lm-eval's list; `--tasks` after the script's name adds to $TASKS. The tutorial's second one:
#   --tasks ceval-valid --num_fewshot 5
exec bash scripts/launch.sh eval-llada.sh dllm/pipelines/llada/eval.py "" \
  --tasks "$TASKS" \
  --model llada \
  --apply_chat_template \
  --output_path "$OUTPUT" \
  --log_samples \
  --max_batch_size 4 \
  --model_args "pretrained=$MODEL,is_check_greedy=False,mc_num=1,max_length=1024,steps=256,block_size=64,cfg=0.0" \
  ${LOCAL_DATA:+--local_data "$LOCAL_DATA"} "$@"
