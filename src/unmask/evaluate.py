"""lm-eval's socket: a model that scores and answers as the harness asks.

In:  requests of lm-eval (`loglikelihood`, `loglikelihood_rolling`, `generate_until`).
Out: log-likelihoods by `unmask.likelihood`, answers by the one decoding loop (a causal model's left to right), prompts
     by the one chat template. Importing this file registers the model with lm-eval, under each name in `OURS`:

    import lm_eval, unmask.evaluate
    lm_eval.simple_evaluate(model="unmask", model_args="pretrained=FOLDER,mc_num=128", tasks=["arc_easy"])
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from unmask import likelihood, models, reader, report
from unmask.answer import LEFT_TO_RIGHT, Writer
from unmask.config import UserError
from unmask.estimators import Request
from unmask.forward import Predictor
from unmask.harness import workers, writing
from unmask.harness.arguments import OURS, Asked, asked, parse_model_args
from unmask.harness.prompts import Pair, Prompts
from unmask.harness.store import Store, key_of
from unmask.harness.writing import Draft
from unmask.options import Options

if TYPE_CHECKING:
    from unmask.models import Loaded

DRAFTS = 8
"""Answers written at once where no --batch_size is given."""
FAR = 1 << 20
"""Windows of one text in the numbering of noise: more than any text has."""
Detail = tuple[str, int | None, int]


class Unmask(TemplateLM):
    """A model of Unmask, masked or causal, as lm-eval asks it.

    Attributes:
        store: answers so far. remarks: what there is to say of requests → of how many. details: (task, question,
            number of the request) → what its answer cost and how sure it is.
    """

    def __init__(self, loaded: Loaded, wanted: Asked, store: Store | None = None) -> None:
        super().__init__()
        self.loaded, self.tokenizer, self.wanted = loaded, loaded.tokenizer, wanted
        self.causal = loaded.causal
        self.prompts = Prompts(loaded)
        self.store = store or Store()
        self.remarks: dict[str, int] = {}
        self.details: dict[Detail, dict[str, Any]] = {}
        self.writer = Writer(loaded)
        self._device = loaded.model.device
        self._rank, self._world_size = workers.processes()
        if self.causal:
            for name in wanted.decoding:
                if name not in LEFT_TO_RIGHT:
                    raise UserError(f"{name} belongs to models that unmask, and {self.name} writes left to right.")

    # -----------------------------------------------------------------------------------------------------------------
    # How lm-eval makes one

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Unmask:
        return cls.create_from_arg_obj(parse_model_args(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Unmask:
        return cls.load(asked(arg_dict, additional_config))

    @classmethod
    def load(cls, wanted: Asked, store: Store | None = None) -> Unmask:
        """The model on its device. One that says nothing of itself is taken for what its config says it is."""
        if workers.processes()[1] > 1 and wanted.model.device in (None, "cuda") and models.device() == "cuda":
            wanted = dataclasses.replace(
                wanted, model=dataclasses.replace(wanted.model, device=f"cuda:{workers.local()}")
            )
        objective = wanted.scoring.objective
        loaded = reader.load(wanted.model, causal=None if objective is None else objective == "autoregressive")
        return cls(loaded, wanted, store)

    # -----------------------------------------------------------------------------------------------------------------
    # What lm-eval wants to know

    @property
    def name(self) -> str:
        return str(self.loaded.model.config.model_type)

    @property
    def max_length(self) -> int:
        """Tokens of a whole row."""
        most = self.writer.max_length or 2048
        return min(self.wanted.scoring.max_length or most, most)

    @property
    def eot_token_id(self) -> int:
        return int(reader.ends_of(self.loaded)[0][0])

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which nothing stands before, for a causal model; as lm-eval's `hf` has it."""
        begin = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if begin is None else begin)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.world_size == 1:
            return tensor
        from accelerate.utils import gather

        return gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        if self.world_size == 1:
            return [obj]
        found = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()

    # -----------------------------------------------------------------------------------------------------------------
    # Text to ids

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, without special tokens; the names of such in it are the letters they are."""
        return list(self.prompts.encode(string))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as `unmask chat` renders it, with the answer's header, or with the beginning of an answer."""
        return self.prompts.render(chat_history, add_generation_prompt)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
        raise NotImplementedError  # lm-eval's way from text to ids, which `loglikelihood` here does not take

    def remark(self, text: str) -> None:
        self.remarks[text] = self.remarks.get(text, 0) + 1

    # -----------------------------------------------------------------------------------------------------------------
    # Likelihood

    def scorer(self) -> likelihood.Scorer:
        settings = self.wanted.likelihood()
        if self.causal:
            predict: Any = Predictor(self.loaded.model, shift=0)
            settings = dataclasses.replace(settings, cfg_scale=0.0)
        else:
            predict = self.writer.predict
        return likelihood.Scorer(predict, settings, causal=self.causal, batch_size=self.wanted.batch_size)

    def score(self, requests: dict[str, Request], what: str) -> None:
        """Put the score of each request, by its key, into the store, where it lacks that."""
        missing = [key for key in requests if self.store.get(key) is None]
        scorer, before = self.scorer(), len(requests) - len(missing)
        bar, began = report.Bar(what, len(requests), before), time.monotonic()
        try:
            for done, (number, score) in enumerate(scorer.scores([requests[key] for key in missing]), 1):
                self.store.put(missing[number], dataclasses.asdict(score))
                speed = report.amount(done / max(time.monotonic() - began, 1e-9))
                bar.to(before + done, f"{speed} requests/s")
        finally:
            bar.close()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p of the continuation, whether greedy decoding writes it) of each request, in nats."""
        for one in requests:
            if not one.args[1]:
                raise UserError(f"{where(one)}: an empty continuation; there is nothing to score.")
        texts = [text for one in requests for text in (one.args[0].rstrip(), one.args[0] + one.args[1], one.args[1])]
        self.prompts.remember(texts)
        prefix = self.prefix_token_id if self.causal else None
        pairs = [self.fitted(one, self.prompts.pair(one.args[0], one.args[1], prefix)) for one in requests]
        self.prompts.forget()
        how = dataclasses.asdict(self.wanted.likelihood())
        keys = [key_of("loglikelihood", *pair, how) for pair in pairs]
        several = sum(len(pair.target) > 1 for pair in pairs)
        scoring = self.wanted.scoring
        if several and not self.causal and scoring.mc_num == 1 and scoring.likelihood == "exact_count":
            what = "targets have several tokens, and mc_num=1 draws one mask for each, which is mostly noise"
            self.remarks[what] = self.remarks.get(what, 0) + several
        wanted = {key: Request(*pair, place_of(pair.given)) for key, pair in zip(keys, pairs, strict=True)}
        self.score(wanted, "scoring")
        self.check_greedy(requests, pairs)
        scale, found = how["cfg_scale"], []
        for one, pair, key in zip(requests, pairs, keys, strict=True):
            known = self.store.answers[key]
            self.details[detail_key(one)] = {name: known[name] for name in ("se", "looks")}
            greedy = known["greedy"]
            if greedy is None:
                greedy = self.store.answers.get(key_of("greedy", *pair, scale), {"greedy": False})["greedy"]
            found.append((known["nats"], greedy))
            self.cache_hook.add_partial("loglikelihood", one.args, found[-1])
        return found

    def fitted(self, one: Instance, pair: Pair) -> Pair:
        """A request that the model holds: what is given is cut from its beginning, and that is counted."""
        if not pair.target:
            raise UserError(f"{where(one)}: the continuation {one.args[1]!r} has no token of its own.")
        room = self.max_length - len(pair.target) + self.causal
        if room < self.causal:
            raise UserError(
                f"{where(one)}: the target has {len(pair.target)} tokens, and the model holds {self.max_length}."
            )
        if len(pair.given) <= room:
            return pair
        self.remark(f"prompts were cut from their beginning to fit {self.max_length} tokens")
        return Pair(pair.given[len(pair.given) - room :], pair.target)

    def check_greedy(self, requests: list[Instance], pairs: list[Pair]) -> None:
        """Whether greedy decoding writes the targets of several tokens, where that is asked or the task needs it."""
        check = self.wanted.scoring.is_check_greedy
        if self.causal or check is False:
            return
        scale = self.wanted.likelihood().cfg_scale
        targets = Counter((one.task_name, one.doc_id) for one in requests)  # a question with choices has several
        todo: dict[str, Pair] = {}
        for one, pair in zip(requests, pairs, strict=True):
            if len(pair.target) > 1 and (check or targets[one.task_name, one.doc_id] == 1):
                todo.setdefault(key_of("greedy", *pair, scale), pair)
        missing = {pair: key for key, pair in todo.items() if self.store.get(key) is None}
        if not missing:
            return
        bar = report.Bar("greedy check", len(todo), len(todo) - len(missing))
        try:
            found = writing.greedy(self.writer, list(missing), scale, self.wanted.batch_size or DRAFTS)
            for done, (pair, right) in enumerate(found, 1):
                self.store.put(missing[pair], {"greedy": right})
                bar.to(len(todo) - len(missing) + done)
        finally:
            bar.close()

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows, in nats."""
        self.prompts.remember(one.args[0] for one in requests)
        parts: list[list[str]] = []
        wanted: dict[str, Request] = {}
        how = dataclasses.asdict(self.wanted.likelihood())
        prefix = self.prefix_token_id if self.causal else None
        for one in requests:
            ids = self.prompts.encode(one.args[0])
            if not ids:
                raise UserError(f"{where(one)}: an empty text; there is nothing to score.")
            parts.append([])
            for i, (given, target) in enumerate(likelihood.windows(ids, self.max_length, prefix)):
                place = (one.doc_id or 0) * FAR + i
                parts[-1].append(key := key_of("rolling", given, target, place, how))
                wanted[key] = Request(given, target, place)
        self.prompts.forget()
        self.score(wanted, "scoring windows")
        found = []
        for one, keys in zip(requests, parts, strict=True):
            records = [self.store.answers[key] for key in keys]
            errors = [record["se"] for record in records]
            found.append(sum(record["nats"] for record in records))
            self.details[detail_key(one)] = {
                "nats": found[-1],
                "se": None if None in errors else sum(error**2 for error in errors) ** 0.5,
                "tokens": sum(len(wanted[key].target) for key in keys),
                "windows": len(keys),
            }
            self.cache_hook.add_partial("loglikelihood_rolling", one.args, found[-1])
        return found

    # -----------------------------------------------------------------------------------------------------------------
    # Generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to each request, cut before the first of its stop strings."""
        by_task: dict[str, dict[str, Draft]] = {}
        keys, times = [], Counter[Any]()
        for one in requests:
            draft = self.draft(one, times[one.task_name, one.doc_id])
            times[one.task_name, one.doc_id] += 1
            keys.append(draft.key)
            by_task.setdefault(str(one.task_name), {}).setdefault(draft.key, draft)
        for task, drafts in by_task.items():
            self.write(task, list(drafts.values()))
        found = []
        for one, key in zip(requests, keys, strict=True):
            known = self.store.answers[key]
            names = ("tokens", "forward_passes", "finish", "seconds")
            self.details[detail_key(one)] = {name: known[name] for name in names}
            found.append(known["text"])
            self.cache_hook.add_partial("generate_until", one.args, found[-1])
        return found

    def draft(self, one: Instance, again: int) -> Draft:
        """A request as the loop takes it. What the user asked for goes before what the task asks for."""
        task = normalize_gen_kwargs(one.args[1], default_max_gen_toks=0)
        ours = {field.name for field in dataclasses.fields(Options)}
        for name in task:
            if name not in ours | {"until", "max_gen_toks", "do_sample"}:
                raise UserError(f"{where(one)}: the task wants {name}={task[name]}, which means nothing here.")
        until = [text for text in task["until"] if text]
        new = self.wanted.scoring.max_new_tokens or task["max_gen_toks"]
        if not new:
            raise UserError(
                f"task {one.task_name} generates, and nobody says how many tokens: give --max_new_tokens 256 (in "
                "model_args: max_new_tokens=256), or take published settings: --preset llada-instruct or llada-base."
            )
        settings = {name: value for name, value in task.items() if name in ours and value is not None}
        if not settings.get("temperature") and not self.wanted.decoding.get("temperature"):
            for name in ("temperature", "top_p", "top_k"):
                settings.pop(name, None)
        settings |= self.wanted.decoding
        room = self.max_length - int(new)
        if room < 1:
            raise UserError(
                f"{where(one)}: {new} new tokens leave no room for a prompt; the model holds {self.max_length}."
            )
        prompt = self.prompts.encode(one.args[0])
        if len(prompt) > room:
            self.remark(f"prompts were cut from their beginning to leave {new} of {self.max_length} tokens")
            prompt = prompt[-room:]
        drawn = bool(settings.get("temperature") or settings.get("remasking") == "random")
        # without chance the same question has the same answer, and is written once
        number = (one.doc_id or 0) + FAR * again if drawn or settings.get("rule") not in (None, "reference") else 0
        key = key_of("generate", prompt, int(new), until, settings, number)
        return Draft(number, prompt, int(new), until, settings, key)

    def write(self, task: str, drafts: list[Draft]) -> None:
        """Write the answers that the store lacks, several at once, the longest first; each is kept when it is done."""
        missing = sorted((d for d in drafts if self.store.get(d.key) is None), key=lambda d: -len(d.prompt) - d.new)
        bar = report.Bar(f"writing {task}", len(drafts), len(drafts) - len(missing))
        began, tokens = time.monotonic(), 0
        at_once = self.wanted.batch_size or DRAFTS
        try:
            found = (
                writing.left_to_right(self.writer, missing)
                if self.causal
                else writing.unmasked(self.writer, missing, at_once)
            )
            for done, (draft, record) in enumerate(found, 1):
                self.store.put(draft.key, record)
                tokens += record["tokens"]
                speed = report.amount(tokens / max(time.monotonic() - began, 1e-9))
                bar.to(len(drafts) - len(missing) + done, f"{speed} tokens/s")
        finally:
            bar.close()

    # -----------------------------------------------------------------------------------------------------------------
    # What the results say of each request

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval's own results say of the model."""
        model = self.loaded.model
        return {
            "model_num_parameters": model.num_parameters(),
            "model_dtype": str(model.dtype),
            "model_type": self.name,
        }


for _kind in OURS:
    Unmask = register_model(_kind)(Unmask)  # type: ignore[misc]


def detail_key(one: Instance) -> Detail:
    return str(one.task_name), one.doc_id, one.idx


def where(one: Instance) -> str:
    return f"task {one.task_name}, question {one.doc_id}"


def place_of(given: tuple[int, ...]) -> int:
    """A number made of what is given: choices of one question share their noise, whatever stands around it."""
    digest = hashlib.blake2b(np.array(given, dtype=np.int64).tobytes(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
