"""What a tokenizer must be for a model: ids that agree with the config's, files that others read.

In:  a tokenizer and a config.  Out: the mask's id, or one line that says what does not agree.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.config import UserError, nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def mask_id(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, mask_token: str | None = None) -> int:
    """The id that means 'not yet known'.

    Told by `mask_token` if given, else by the config's `mask_token_id` or the tokenizer's mask token. (LLaDA's
    tokenizers have `<|mdm_mask|>` only as one special token among others; their configs have its id.)

    Raises:
        UserError: no mask token, two different ones, or one that ordinary text can produce.
    """
    ours = getattr(config, "mask_token_id", None)
    if mask_token is not None:
        vocab = tokenizer.get_vocab()
        if mask_token not in vocab:
            names = [token.content for token in tokenizer.added_tokens_decoder.values()]
            raise UserError(f"--mask_token {mask_token!r} is not in the tokenizer.{nearest(mask_token, names)}")
        theirs, said = int(vocab[mask_token]), f"--mask_token {mask_token!r}"
    else:
        theirs, said = tokenizer.mask_token_id, f"the tokenizer's mask token {tokenizer.mask_token!r}"
    if ours is not None and theirs is not None and ours != theirs:
        raise UserError(f"the config's mask_token_id is {ours}, but {said} has id {theirs}; they must agree.")
    found = ours if ours is not None else theirs
    if found is None:
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        hint = next((f" Is it --mask_token {token!r}?" for token in special if "mask" in token.lower()), "")
        raise UserError(
            "neither the config (mask_token_id) nor the tokenizer (mask_token) names a mask token; say which special "
            f"token it is: --mask_token NAME.{hint}"
        )
    reason = why_ordinary(tokenizer, int(found))
    if reason:
        raise UserError(
            f"the mask token, id {found} ({tokenizer.convert_ids_to_tokens(int(found))!r}), {reason}, so that a text "
            "could contain it; name a special token: --mask_token NAME."
        )
    return int(found)


def why_ordinary(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str | None:
    """Why text could produce an id; None when it cannot. An id beyond the tokenizer's entries is safe."""
    if token_id < 0:
        return "is no id"
    added = tokenizer.added_tokens_decoder.get(token_id)
    if added is None:
        known = token_id < len(tokenizer) and tokenizer.convert_ids_to_tokens(token_id) is not None
        return "is an ordinary entry of the tokenizer" if known else None
    if not added.special:
        return "is not marked as special in the tokenizer"
    spelt = tokenizer.encode(added.content, add_special_tokens=False, split_special_tokens=True)
    return "is also what its letters are encoded to" if token_id in spelt else None


def check(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, mask: bool = True) -> None:
    """Refuse a tokenizer and a model's config whose ids disagree.

    A tokenizer may be smaller than the model's vocabulary (LLaDA: 126,349 of 126,464), never larger. `mask` false: of
    a causal model, which needs none, and whose tokenizers often end a turn otherwise than the config ends a text.

    Raises:
        UserError: a larger tokenizer; different ids for the mask, the end of text or padding; a mask token that is
            missing, can occur in text, or is also the end of text, padding or the beginning.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rows = text.vocab_size
    entries = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
    if entries > rows:
        raise UserError(
            f"the tokenizer has {entries:,} entries, the model's vocabulary {rows:,} (vocab_size); take the tokenizer "
            "that belongs to the model, or make a model for this one: `unmask init PRESET --tokenizer FOLDER`."
        )
    if not mask:
        return
    masked = mask_id(tokenizer, config)
    if masked >= rows:
        raise UserError(f"the mask token's id is {masked}, but the model's vocabulary ends at {rows - 1} (vocab_size).")
    taken: dict[int, str] = {}
    for kind, name in (("eos", "end of text"), ("pad", "padding"), ("bos", "beginning of text")):
        ours = several(getattr(config, f"{kind}_token_id", None))
        theirs = getattr(tokenizer, f"{kind}_token_id", None)
        # A model can be told to begin with anything; only a wrong end or padding spoils what is learnt.
        if kind != "bos" and ours and theirs is not None and theirs not in ours:
            raise UserError(
                f"the config's {kind}_token_id is {' or '.join(map(str, ours))}, but the tokenizer's {name} "
                f"({getattr(tokenizer, f'{kind}_token')!r}) has id {theirs}; they must agree."
            )
        taken.update(dict.fromkeys([*ours, *several(theirs)], name))
    if masked in taken:
        raise UserError(f"the mask token (id {masked}) is also the token for {taken[masked]}; it needs one of its own.")


def several(value: Any) -> list[int]:
    """One id, several or none. Some configs write -1 for none."""
    found = value if isinstance(value, (list, tuple)) else [value]
    return [int(one) for one in found if one is not None and one >= 0]


def portable(folder: Path) -> None:
    """Make a tokenizer that transformers 5 saved readable for transformers 4, and for programs built on that.

    5.23 names the class TokenizersBackend, which 4.57 does not know; both know the name that LLaDA's files give.
    """
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
        values.pop("backend", None)
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
