"""Words of other projects for what a model is and how it is read: `--model_args` and lm-eval's kinds of model.

In:  `pretrained=…,mc_num=1,cfg=0.0,gen_length=256,…`, as lm-eval, LLaDA's harness, dllm, Dream and Fast-dLLM spell it.
Out: settings under Unmask's own names; UserError for what means nothing here.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from typing import TYPE_CHECKING, Any, Literal

from unmask.config import UserError, build, cast, nearest, option
from unmask.options import Options
from unmask.reader import PLUG_INS, ReaderArguments, RuleArguments

if TYPE_CHECKING:
    from unmask.estimators import Settings as Likelihood

OURS = ("unmask", "llada", "llada_dist", "mdlm", "dream", "dllm")
"""Kinds of model (`--model`) that Unmask reads; what they are is told from their config. All others are lm-eval's."""


@dataclasses.dataclass
class ScoringArguments:
    """Scoring"""

    objective: Literal["masked", "autoregressive"] | None = option(
        None, "What the model is: a mask predictor or a causal model. Told from its config if left out."
    )
    likelihood: Literal["exact_count", "bernoulli", "exact", "left_to_right", "any_order", "confidence"] = option(
        "exact_count",
        "How a mask predictor's likelihood is estimated: exact_count (LLaDA's), bernoulli, exact (targets of up to 12 "
        "tokens), left_to_right, any_order, confidence (iLLaDA's, for choices).",
    )
    mc_num: int = option(128, "Draws of masks for a target. One token takes one pass and is exact.")
    is_check_greedy: bool | None = option(
        None,
        "Whether to see if greedy decoding would write the target. If left out: where the task scores one target, not "
        "choices.",
    )
    max_new_tokens: int | None = option(None, "Tokens of a generated answer; the task's own if left out.")
    max_length: int | None = option(None, "Tokens of prompt and target or answer; what the model holds if left out.")


@dataclasses.dataclass
class Asked:
    """What is asked of a model.

    Attributes:
        model: which and how it is loaded. scoring: how it is scored. decoding: what was given of `decoding.prepare`'s
            settings. batch_size: rows of a pass; None: as many as fit.
    """

    model: ReaderArguments
    scoring: ScoringArguments
    decoding: dict[str, Any]
    batch_size: int | None = None

    def likelihood(self) -> Likelihood:
        """The settings of `unmask.likelihood.Scorer`."""
        from unmask.estimators import Settings as Likelihood

        scoring = self.scoring
        seed, scale = self.decoding.get("seed"), self.decoding.get("cfg_scale")
        return Likelihood(scoring.likelihood, scoring.mc_num, scale or 0.0, Likelihood.seed if seed is None else seed)

    def record(self) -> dict[str, Any]:
        """All of it for a file."""
        return {
            "model": dataclasses.asdict(self.model),
            "scoring": dataclasses.asdict(self.scoring),
            "decoding": self.decoding,
            "batch_size": self.batch_size,
        }


SPELLINGS = {
    # lm-eval, LLaDA (`eval_llada.py`), tutorial
    **dict.fromkeys(("pretrained", "model_path", "model_name_or_path", "model_name"), "model"),
    **dict.fromkeys(("gen_length", "max_gen_toks"), "max_new_tokens"),
    "block_length": "block_size",
    "cfg": "cfg_scale",
    "torch_dtype": "dtype",
    # Dream
    "diffusion_steps": "steps",
}
SWITCHES = {"use_cache": "prefix", "dual_cache": "dual"}  # Fast-dLLM's, which needs the first for the second
RULES = ("threshold", "factor")  # Fast-dLLM's, which names no rule
ALGORITHMS = {  # Dream's `alg`
    "maskgit_plus": {"rule": "reference"},
    "topk_margin": {"rule": "margin"},
    "entropy": {"rule": "entropy"},
    "origin": {"rule": "random"},
    "confidence_threshold": {"rule": "threshold"},
}
REFUSED = {
    "trust_remote_code": "would run code from the hub; Unmask has the networks of `transformers` and its own.",
    "parallelize": "is not needed: `accelerate launch` shares the questions among processes.",
    "save_dir": "is Fast-dLLM's; answers so far are kept in --output_path.",
    "escape_until": "is Fast-dLLM's; an answer ends where the task says.",
    **dict.fromkeys(
        ("is_feature_cache", "is_cfg_cache"), "is dLLM-Cache's; the caches here are chosen with cache=NAME."
    ),
}
IDLE = {"show_speed"}  # speed is always in the results


def parse_model_args(words: str | dict[str, Any] | None) -> dict[str, Any]:
    """`a=1,b=[2;3]`, the same apart by spaces, or a JSON object → {"a": "1", "b": "[2;3]"}.

    Values stay text: what they are is said by the setting they are for.
    """
    if not words:
        return {}
    if isinstance(words, dict):
        return dict(words)
    if words.strip().startswith("{"):
        try:
            return dict(json.loads(words))
        except (json.JSONDecodeError, TypeError):
            raise UserError(f"--model_args {words!r} is not valid JSON.") from None
    found: dict[str, Any] = {}
    for part in _split(words):
        name, sign, value = part.partition("=")
        name = name.strip()
        if not sign or not name:
            raise UserError(f"--model_args has {part!r}; expected key=value,key=value.")
        if name in found and found[name] != value:
            raise UserError(f"--model_args gives {name} twice: {found[name]} and {value}.")
        found[name] = value.strip()
    return found


def _split(words: str) -> list[str]:
    """At commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in words:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def plain(value: Any) -> Any:
    """A loose value: `[1;2]` and `[1,2]` as a list, `None` and `auto` as nothing, quotes off."""
    if not isinstance(value, str):
        return value
    if value in ("None", "null", "auto", ""):
        return None
    if value[:1] == "[" and value[-1:] == "]":
        return [part.strip() for part in value[1:-1].replace(";", ",").split(",") if part.strip()]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return str(ast.literal_eval(value))
    return value


def asked(model_args: dict[str, Any], more: dict[str, Any] | None = None) -> Asked:
    """Settings from `--model_args`, and what lm-eval hands over beside them (batch_size, max_batch_size, device).

    Raises:
        UserError: an unknown name, with the nearest one; two names of one setting that differ; a value of another type.
    """
    given: dict[str, Any] = {}
    spelled: dict[str, str] = {}

    def put(name: str, value: Any, typed: str) -> None:
        if name in given and given[name] != value:
            raise UserError(f"{spelled[name]}={given[name]} and {typed}={value} mean the same setting; give one.")
        given[name], spelled[name] = value, typed

    words = {name: plain(value) for name, value in model_args.items()}
    most = words.pop("max_batch_size", None)  # the tutorial's; where no other number is given, that many rows
    if words.get("batch_size") is None and most is not None:
        words["batch_size"] = most
    for name, value in words.items():
        if name in REFUSED and cast_bool(value):
            raise UserError(f"model_args: {name} {REFUSED[name]}")
        if name in REFUSED or name in IDLE or (value is None and name != "cache"):
            continue
        if name == "peft":
            continue
        if name in SWITCHES:
            if cast_bool(value) and not (name == "use_cache" and cast_bool(words.get("dual_cache"))):
                put("cache", SWITCHES[name], name)
        elif name == "alg":
            if value not in ALGORITHMS:
                raise UserError(f"alg={value}; there are {', '.join(ALGORITHMS)}.{nearest(str(value), ALGORITHMS)}")
            for key, rule in ALGORITHMS[value].items():
                put(key, rule, name)
        else:
            put(SPELLINGS.get(name, name), value, name)
    if words.get("peft") is not None:  # lm-eval: `pretrained` is the base, `peft` the adapter on it
        given |= {"base_model_path": given.get("model"), "model": words["peft"]}
    if "rule" not in given:
        said = [name for name in RULES if name in given]
        if said:
            given["rule"] = said[-1]  # Fast-dLLM prefers the factor
            for name in said[:-1]:
                del given[name]
            given.pop("steps", None)  # which bounds no step there once a confidence decides
    for name, value in (more or {}).items():
        if value is not None and name != "max_batch_size":
            put(name, value, f"--{name}")
    return built(given)


def own_names(model_args: dict[str, Any]) -> set[str]:
    """Our names of what --model_args give."""
    found = {SPELLINGS.get(name, name) for name, value in model_args.items() if plain(value) is not None}
    if found & {*SWITCHES}:
        found.add("cache")
    return found | ({"rule"} if found & {*RULES, "alg"} else set())


def cast_bool(value: Any) -> bool:
    return value is not None and bool(cast(value, bool, "switch"))


def built(given: dict[str, Any]) -> Asked:
    """Settings by our own names → what is asked; each cast to its type."""
    groups: dict[type, dict[str, Any]] = {ReaderArguments: {}, ScoringArguments: {}, Options: {}, RuleArguments: {}}
    batch_size = batch(given.pop("batch_size", None))
    rest = dict(given)
    for group, values in groups.items():
        values |= {f.name: rest.pop(f.name) for f in dataclasses.fields(group) if f.name in rest}
    options = build(Options, groups[Options])
    options.check()
    known: dict[str, Any] = {}
    if rest:
        from unmask import decoding

        known = decoding.plug_in_settings(**{name: getattr(options, name) for name in PLUG_INS})
    names = (
        {f.name for group in groups for f in dataclasses.fields(group)} | set(known) | {*SPELLINGS, *SWITCHES, "peft"}
    )
    for name in rest:
        if name not in known:
            raise UserError(f"model_args: unknown name {name!r}.{nearest(name, names)}")
    settings = {name: getattr(options, name) for name in groups[Options]}
    rule = build(RuleArguments, groups[RuleArguments])
    settings |= {k: v for k, v in dataclasses.asdict(rule).items() if v is not None}
    settings |= {name: cast(value, known[name], name) for name, value in rest.items()}
    scoring = build(ScoringArguments, groups[ScoringArguments])
    for name in ("mc_num", "max_new_tokens", "max_length"):
        value = getattr(scoring, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1.")
    return Asked(build(ReaderArguments, groups[ReaderArguments]), scoring, settings, batch_size)


def batch(value: Any) -> int | None:
    """lm-eval's --batch_size: a number, `auto` or `auto:N`; None where as many rows as fit are to be taken."""
    if value is None or str(value).startswith("auto"):
        return None
    if not str(value).isdigit() or int(value) < 1:
        raise UserError(f"--batch_size is {value}; expected a number of at least 1, or auto.")
    return int(value)
