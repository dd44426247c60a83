"""Any causal model of `transformers` (Qwen, Llama, SmolLM, …) as a mask predictor: `is_causal = False`, a mask token.

In:  its config and tokenizer.  Out: both changed in place; a mask token added where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unmask.models import Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FAMILY = Family(name="bidirectional")


def adapt(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, mask_token: str | None) -> None:
    """Turn off the causal mask; reserve a mask token if neither config nor tokenizer nor the user names one."""
    config.is_causal = False
    config.use_cache = False
    named = mask_token or tokenizer.mask_token
    if named is None and getattr(config, "mask_token_id", None) is None:
        named = FAMILY.mask
    if named is not None and named not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"mask_token": named})
        config.mask_token_id = tokenizer.convert_tokens_to_ids(named)
        config.added_mask_token = True


@torch.no_grad()
def finish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fresh: bool) -> None:
    """Give a newly added mask token a row in the embedding: the mean of the others, so that it means nothing yet."""
    if not getattr(model.config, "added_mask_token", False):
        return
    del model.config.added_mask_token
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if fresh:
        return
    row = model.config.mask_token_id
    for matrix in (model.get_input_embeddings(), model.get_output_embeddings()):
        # rows beyond the tokenizer are padding that was never trained: they would pull the mean to zero
        matrix.weight[row] = matrix.weight[: min(row, len(tokenizer) - 1)].float().mean(0).to(matrix.weight.dtype)
