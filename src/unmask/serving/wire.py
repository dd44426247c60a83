"""The shape of questions and answers on the wire: OpenAI's, and what masked diffusion adds.

In:  JSON bodies.  Out: models of pydantic; whatever is unknown or not supported is an error that names the field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Text = str
Probability = Annotated[float, Field(gt=0, le=1)]
MOST = 2**31 - 1  # of any number that counts something
Count = Annotated[int, Field(ge=1, le=MOST)]
Setting = bool | Annotated[int, Field(ge=-MOST, le=MOST)] | Annotated[float, Field(ge=-1e9, le=1e9)] | str

NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (None, 0)),
    **{
        "best_of": (None, 1),
        "echo": (None, False),
        "logit_bias": (None, {}),
        "response_format": (None, {"type": "text"}),
    },
    **dict.fromkeys(("tools", "functions"), (None, [])),
    **dict.fromkeys(("tool_choice", "function_call"), (None, "none", "auto")),
    **{"parallel_tool_calls": (None, True, False), "service_tier": (None, "auto", "default"), "store": (None, False)},
    **{"modalities": (None, ["text"]), "audio": (None,), "prediction": (None,), "reasoning_effort": (None, "none")},
    **{"verbosity": (None, "medium"), "web_search_options": (None,)},
    # and what clients of other servers send
    **dict.fromkeys(("repetition_penalty", "length_penalty"), (None, 1)),
    **{"min_p": (None, 0), "min_tokens": (None, 0), "stop_token_ids": (None, []), "chat_template_kwargs": (None, {})},
    **dict.fromkeys(("ignore_eos", "use_beam_search", "include_stop_str_in_output"), (None, False)),
    **dict.fromkeys(("skip_special_tokens", "add_generation_prompt"), (None, True)),
    # what OpenAI's client hands back when an answer's message is put into the next question as it came
    **dict.fromkeys(("tool_calls", "annotations"), (None, [])),
    **{"refusal": (None,), "name": (None, ""), "include_obfuscation": (None, False)},
}
"""OpenAI's fields that this server does not have, with the values that ask for nothing."""


OFF: dict[str, tuple[Any, ...]] = {"top_k": (0, -1)}
"""Values of fields that there are by which other servers say: none."""


ENTRIES = 1024
"""Of a list or an object at most."""


class Body(BaseModel):
    """A question. Fields that are not there are refused, not passed over."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        if len(data) > ENTRIES:
            raise PydanticCustomError("too_many", f"{len(data):,} fields are given; at most {ENTRIES:,} are taken")
        for name, value in data.items():
            if isinstance(value, (list, dict)) and len(value) > ENTRIES:  # before an error is made for each of them
                words = f"{str(name)[:40]!r} has {len(value):,} entries; at most {ENTRIES:,} are taken"
                raise PydanticCustomError("too_many", words)
            known = NEUTRAL.get(name, ()) if name not in cls.model_fields else OFF.get(name, ())
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in known):
                kept[name] = value
        return kept


class Decoding(Body):
    """How an answer is written. What is left out is the server's."""

    preset: Literal["exact", "balanced", "fast"] | None = Field(None, description="A way of decoding by name.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="0 takes the likeliest token; 1 draws from the model's own distribution."
    )
    top_p: Probability | None = Field(None, description="Draw among the likeliest tokens that have this probability.")
    top_k: Count | None = Field(None, description="Draw among so many of the likeliest tokens.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = Field(
        None, description="The same seed, the same answer; drawn anew for each request if left out."
    )
    steps: Count | None = Field(None, description="Denoising steps of the whole answer.")
    block_size: Count | None = Field(None, description="Places filled before the next are begun.")
    block_length: Count | None = Field(None, description="LLaDA's word for block_size.")
    rule: str | None = Field(None, max_length=40, description="Which places are written at each step.")
    rule_args: dict[str, Setting] | None = Field(None, description="Settings of the rule.")
    cache: str | None = Field(None, max_length=40, description="Which places are computed anew at a step.")
    cache_args: dict[str, Setting] | None = Field(None, description="Settings of the cache.")
    cfg_scale: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="Guidance; 0 is none.")
    canvas: Literal["fixed", "grow"] | None = Field(None, description="grow: begin short, grow where no end is found.")
    min_new_tokens: Annotated[int, Field(ge=0, le=MOST)] | None = Field(
        None, description="No end among so many first tokens."
    )
    eos_stop: bool | None = Field(None, description="Stop once an end of text stands and everything before it does.")
    logits_eos_inf: bool | None = Field(None, description="Never write the end of text.")
    confidence_eos_eot_inf: bool | None = Field(None, description="Write end of text and end of turn last.")


class StreamOptions(Body):
    """What a stream tells beside text."""

    include_usage: bool | None = None


class Asked(Decoding):
    """What all questions have."""

    model: str | None = Field(None, description="The served model's name; may be left out.")
    n: Count | None = Field(None, description="Answers to each prompt.")
    stream: bool | None = Field(None, description="Send text as it becomes certain, as server-sent events.")
    stream_options: StreamOptions | None = None
    diffusing: bool | None = Field(None, description="With stream: also every step of the canvas, as a replay.")
    timeout: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Seconds after which what stands is the answer, with reason `timeout`."
    )
    user: str | None = None
    metadata: dict[str, str] | None = None


class Generating(Asked):
    """Questions whose answers have a length and an end."""

    max_tokens: Count | None = Field(None, description="Tokens of an answer at most.")
    stop: str | list[str] | None = Field(None, description="Texts that end an answer, which is cut before them.")


class Part(Body):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class ChatRequest(Generating):
    """A conversation to go on with."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = Field(None, description="max_tokens' newer name.")
    logprobs: bool | None = Field(None, description="Log-probability of each token when it was written; no likelihood.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class CompletionRequest(Generating):
    """A text to go on with, or, with a suffix, a gap to fill."""

    prompt: str | list[str]
    suffix: str | None = Field(None, description="Text behind the answer: a gap of max_tokens is filled.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class Gap(Body):
    """Places to be filled."""

    gap: Count = Field(description="How many tokens.")


class InfillRequest(Asked):
    """A text with gaps."""

    text: str | None = Field(None, description="Text in which {{8}} is a gap of 8 tokens.")
    parts: Annotated[list[str | Gap], Field(min_length=1)] | None = Field(
        None, description='The same in pieces: texts, and gaps as {"gap": 8}.'
    )


# ---------------------------------------------------------------------------------------------------------------------
# Answers


class Usage(BaseModel):
    """What a request took. Ends of text and what follows them are not counted as tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    forward_passes: int
    tokens_per_forward: float


Finish = Literal["stop", "length"]
Why = Literal["stop", "length", "timeout", "cancelled"]


class Reply(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer. reason: why it ended, where finish_reason only has OpenAI's words."""

    index: int
    message: Reply
    finish_reason: Finish
    reason: Why
    logprobs: dict[str, Any] | None = None


class ChatAnswer(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    finish_reason: Finish
    reason: Why
    logprobs: dict[str, Any] | None = None


class CompletionAnswer(BaseModel):
    """Answers to texts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class InfillChoice(BaseModel):
    """One way of filling all gaps. text: all of it; gaps: what was filled in, in order."""

    index: int
    text: str
    gaps: list[str]
    finish_reason: Finish
    reason: Why


class InfillAnswer(BaseModel):
    """A text with its gaps filled."""

    id: str
    object: Literal["infill"] = "infill"
    created: int
    model: str
    choices: list[InfillChoice]
    usage: Usage


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "unmask"
    kind: Literal["masked", "autoregressive"]
    max_length: int | None


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class State(BaseModel):
    """Whether the server works."""

    status: str
    running: int
    waiting: int


class Cancelled(BaseModel):
    """What became of a request that was cancelled."""

    id: str
    cancelled: bool


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """What was wrong."""

    error: ErrorDetail
