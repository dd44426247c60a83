"""A chat template as a function from conversations to ids, the same for training and for chat.

In:  a tokenizer, a chat template (its own, LLaDA's, or a jinja file), conversations (`chats.py`).
Out: `Turn`s, pieces of ids by turns prompt and answer. A prompt ends with the opened turn of the assistant, an answer
     with the end of that turn; each is tokenised by itself. So what chat sends as the prompt is, token for token, what
     stood before the answer in training.

Only the template writes control tokens. The literal of one in a message becomes the tokens of its letters.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from unmask.encode import Encoder
from unmask.tokenizer import CHAT_TEMPLATE, HEADER, HEADER_END, TURN_END
from unmask.values import UserError, nearest

if TYPE_CHECKING:
    from unmask.chats import Message

LLADA = "llada"
NEEDED = (HEADER, HEADER_END, TURN_END)  # what LLaDA's template writes
FAILURES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)  # of Python code in a template
MARKS = range(0x10FFFD, 0x10FF00, -1)  # private use: a character that the conversation does not have is taken

SYSTEM, USER, ANSWER, NEXT = (f"unmask-{word}" for word in ("system", "user", "answer", "next"))  # read in renderings


class Turn(NamedTuple):
    """Ids of a part of a conversation.

    role: assistant; or user for all that leads to an answer, the system message too. answer: it can bear the loss.
    """

    ids: list[int]
    role: str
    answer: bool


class _Piece(NamedTuple):
    text: str  # as rendered; `mark` stands in what must not become a control token
    mark: str
    answer: bool


class Template:
    """A tokenizer with a chat template.

    Attributes:
        source: the template in jinja. name: where it is from, as `--chat_template` has it; None: from the tokenizer.
        ends: the id that ends an answer, in a list; empty when no control token does.
        header: the ids that open an answer; empty where nothing does.
        fingerprint: the same for templates that are written alike and whose control tokens have the same ids.

    Raises:
        UserError: no template, a file that is not there, a template that fails or leaves out what messages say.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.name = template
        self.source = _source(tokenizer, template)
        added = tokenizer.added_tokens_decoder
        special = set(tokenizer.all_special_tokens)
        self._control = {t.content: i for i, t in added.items() if t.special or t.content in special}
        self._stray = ""
        first, asked, both, more = self._probe()
        # What separates turns is control, too, where the tokenizer does not call it special (DeepSeek's <｜User｜>).
        between = more.replace(USER, "").replace(ANSWER, "").replace(NEXT, "")
        self._control |= {t.content: i for i, t in added.items() if t.content in between and _looks_control(t.content)}
        eaten = {t.content: (t.lstrip, t.rstrip) for t in added.values() if t.content in self._control}
        longest_first = sorted(self._control, key=len, reverse=True)
        either = "|".join(map(re.escape, longest_first)) or "(?!)"
        around = [("\\s*" * eaten[t][0]) + re.escape(t) + ("\\s*" * eaten[t][1]) for t in longest_first]
        self._cut = re.compile("|".join(around) or "(?!)")
        self._literal = re.compile(f"(?=(?:{either}))(.)", re.DOTALL)  # each beginning, of overlapping ones too
        self._stray = self._find_stray(first, both, more) if first == asked else ""
        after = both.removesuffix(self._stray).partition(ANSWER)[2]
        self.ends = [self._control[self._bare(found[0])] for found in [self._cut.search(after)] if found]
        written = sorted({(t, self._control[t]) for t in map(self._bare, self._cut.findall(both + more))})
        self.fingerprint: str = xxhash.xxh3_128_hexdigest(json.dumps([self.source, written]).encode())
        self._encode, self._joined, self._after_control = _encoders(tokenizer, set(self._control))
        header = _Piece(self._stray or first.removeprefix(asked), "", False)
        self.header = self._turns([[_Piece("\n", "", False), header]])[0][1].ids

    # -----------------------------------------------------------------------------------------------------------------
    # What callers use

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation with the assistant's turn opened: what a model is given to answer."""
        pieces = self._pieces(messages, opened=True)
        return [i for turn in self._turns([pieces])[0] for i in turn.ids]

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        """The ids of a conversation that ends with an answer, as prompt, answer, prompt, answer, …

        Where a template writes earlier answers otherwise than the last (Qwen3 leaves out what was thought), they are
        part of the prompt before the next answer, so that there are fewer turns.
        """
        return self._turns([self._pieces(messages)])[0]

    def many(self, conversations: Sequence[Sequence[Message]], numbers: Sequence[int]) -> list[list[Turn]]:
        """`turns` of each; tokenised together, which is much faster. numbers: of the rows, for errors."""
        pieces = []
        for number, messages in zip(numbers, conversations, strict=True):
            try:
                pieces.append(self._pieces(messages))
            except UserError as error:
                raise UserError(f"row {number:,}: {error}") from None
        return self._turns(pieces)

    # -----------------------------------------------------------------------------------------------------------------
    # From messages to text

    def _render(self, messages: Sequence[Any], opened: bool = False) -> str:
        import jinja2

        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.source, tokenize=False, add_generation_prompt=opened
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid jinja (line {error.lineno}): {error.message}.") from None
        except (jinja2.TemplateError, *FAILURES) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the chat template fails: {reason[:300]}") from None
        return text

    def _pieces(self, messages: Sequence[Message], opened: bool = False) -> list[_Piece]:
        """A conversation's rendering, cut where answers begin and end; `opened`: up to the turn after the last one."""
        texts = [message["content"] for message in messages]
        if opened and (not messages or messages[-1]["role"] == "assistant"):
            raise UserError("there is nothing to answer: the conversation has no message, or ends with an answer.")
        whole = "".join([*texts, self.source])
        mark = next((chr(code) for code in MARKS if chr(code) not in whole), "")
        if not mark:
            raise UserError("the conversation has all private-use characters from U+10FF01 on; leave one of them out.")
        texts = [self._literal.sub(lambda found: found[1] + mark, text) for text in texts]
        said = [{"role": m["role"], "content": text} for m, text in zip(messages, texts, strict=True)]
        ends = [i for i, message in enumerate(said) if message["role"] == "assistant"]
        pieces: list[_Piece] = []
        done = ""
        for i in ends + [len(said)] * opened:
            prompt = self._render(said[:i], opened=True)
            if not prompt.startswith(done):
                pieces, done = [], ""
            pieces.append(_Piece(prompt[len(done) :], mark, False))
            if i == len(said):
                break
            done = self._render(said[: i + 1]).removesuffix(self._stray)
            if not done.startswith(prompt):
                raise UserError(
                    f"the chat template opens an answer with {prompt[-40:]!r} and writes one that is there otherwise; "
                    "give one that does both alike: --chat_template FILE.jinja."
                )
            pieces.append(_Piece(done[len(prompt) :], mark, True))
        return pieces

    # -----------------------------------------------------------------------------------------------------------------
    # From text to ids

    def _turns(self, conversations: list[list[_Piece]]) -> list[list[Turn]]:
        texts: dict[tuple[str, bool], int] = {}  # a stretch of text, and whether it goes on from another → its number
        plans: list[list[int | tuple[str, bool]]] = []
        for pieces in conversations:
            begin, after_control = True, False
            for text, mark, _ in pieces:
                plan: list[int | tuple[str, bool]] = []
                at = 0
                for found in [*self._cut.finditer(text), None]:
                    stretch = text[at : found.start() if found else len(text)].replace(mark, "")
                    if stretch:
                        joined = not begin and (self._after_control if after_control else True)
                        plan.append((stretch, joined))
                        texts.setdefault((stretch, joined), len(texts))
                        begin, after_control = False, False
                    if found:
                        plan.append(self._control[self._bare(found[0])])
                        at, begin, after_control = found.end(), False, True
                plans.append(plan)
        ids: dict[tuple[str, bool], list[int]] = {}
        for joined, encode in ((False, self._encode), (True, self._joined)):
            some = [key for key in texts if key[1] is joined]
            ids |= {key: one.tolist() for key, one in zip(some, encode([text for text, _ in some]), strict=True)}
        plan_of = iter(plans)
        return [
            [
                Turn(
                    [i for part in next(plan_of) for i in ([part] if isinstance(part, int) else ids[part])],
                    "assistant" if piece.answer else "user",
                    piece.answer,
                )
                for piece in pieces
            ]
            for pieces in conversations
        ]

    def _bare(self, found: str) -> str:
        """The control token in what was matched, which may have blanks around it."""
        return found if found in self._control else found.strip()

    # -----------------------------------------------------------------------------------------------------------------
    # What kind of template it is

    def _probe(self) -> tuple[str, str, str, str]:
        """Renderings: a question with the answer opened; the same without; with its answer; with another question."""
        said = [{"role": r, "content": t} for r, t in (("user", USER), ("assistant", ANSWER), ("user", NEXT))]
        try:
            self._render(said[:1])
        except UserError:  # some ask for a system message
            said.insert(0, {"role": "system", "content": SYSTEM})
            self._render(said[:2])
        first, asked = self._render(said[:-2], opened=True), self._render(said[:-2])
        both, more = self._render(said[:-1]), self._render(said)
        for text, wanted in ((first, [USER]), (both, [USER, ANSWER]), (more, [USER, ANSWER, NEXT])):
            if any(text.count(word) != 1 for word in wanted):
                raise UserError(
                    "the chat template does not write each message once, as it is; give another: --chat_template "
                    "FILE.jinja."
                )
        return first, asked, both, more

    def _find_stray(self, first: str, both: str, more: str) -> str:
        """The assistant's header that a template which heeds no add_generation_prompt writes after an answer, too.

        With A what ends an answer, H what opens one and U what opens a question, LLaDA's own writes A H after an
        answer, A U between an answer and a question, and ends with H what is between a question and its answer. Llama
        2's has no H.
        """
        if more.startswith(both):
            return ""
        tail = self._atoms(both.partition(ANSWER)[2])
        between = self._atoms(more.partition(ANSWER)[2].partition(NEXT)[0])
        before, opening = self._atoms(first.partition(USER)[0]), self._atoms(first.partition(USER)[2])
        for k in range(len(tail) + 1):
            end, header, question = tail[:k], tail[k:], between[k:]
            if between[:k] == end and _ends_with(before, question) and _ends_with(opening, header):
                return "".join(header)
        raise UserError(
            "the chat template does not heed add_generation_prompt, and what it writes after an answer depends on what "
            "follows; give another: --chat_template llada or FILE.jinja."
        )

    def _atoms(self, text: str) -> list[str]:
        """Control tokens and single characters."""
        parts: list[str] = []
        at = 0
        for found in self._cut.finditer(text):
            parts += [*text[at : found.start()], found[0]]
            at = found.end()
        return [*parts, *text[at:]]


def _ends_with(atoms: list[str], end: list[str]) -> bool:
    return not end or atoms[-len(end) :] == end


def _looks_control(token: str) -> bool:
    """`<｜User｜>`, `[INST]`; not what Gemma's tokenizer has besides, such as two line ends."""
    return any(c.isalpha() for c in token) and not token[0].isalnum() and not token[-1].isalnum()


def _source(tokenizer: Any, template: str | None) -> str:
    has = tokenizer.get_added_vocab()
    if template is None:
        if tokenizer.chat_template:
            return str(tokenizer.get_chat_template())
        if all(token in has for token in NEEDED):
            return CHAT_TEMPLATE
        raise UserError(
            "the tokenizer has no chat template; type --chat_template FILE.jinja, or --chat_template llada if it has "
            f"LLaDA's special tokens ({' '.join(NEEDED)})."
        )
    if template.strip().lower() == LLADA:
        missing = [token for token in NEEDED if token not in has]
        if missing:
            raise UserError(
                f"--chat_template llada writes {' '.join(missing)}, which the tokenizer lacks as special tokens; "
                "leave it out for the tokenizer's own template, or give a file."
            )
        return CHAT_TEMPLATE
    path = Path(template).expanduser()
    if not path.is_file():
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, [LLADA, *around])
        raise UserError(f"--chat_template {template}: there is no such file; it can be llada or a jinja file.{hint}")
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat_template {template}: cannot read it ({error}).") from None
    if not source.strip():
        raise UserError(f"--chat_template {template}: the file is empty.")
    return source


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers that put a blank before a text


def _encoders(tokenizer: Any, control: set[str]) -> tuple[Encoder, Encoder, bool]:
    """Encoders of a text that begins, of one that goes on, and whether what follows a control token goes on.

    SentencePiece's tokenizers put a blank before a text; before which parts of one, their settings say.
    """
    begins = Encoder(tokenizer, eos=False)
    if begins.backend is None:
        return begins, begins, False
    kind = type(begins.backend)
    parts = json.loads(begins.backend.to_str())
    plain = [t for t in parts["added_tokens"] if t["content"] in control and not t["special"]]
    for token in plain:
        token["special"] = True  # so that `encode_special_tokens` makes it text
    if plain:
        begins.backend = kind.from_str(json.dumps(parts))
    first: list[bool] = []
    bare = {name: _unprefixed(copy.deepcopy(parts[name]), first) for name in ("normalizer", "pre_tokenizer")}
    if bare == {name: parts[name] for name in bare}:
        return begins, begins, False
    goes_on = copy.copy(begins)
    goes_on.backend = kind.from_str(json.dumps(parts | bare))
    return begins, goes_on, any(first)


def _unprefixed(part: Any, first: list[bool]) -> Any:
    """A normalizer or pre-tokenizer that puts no blank before a text; `first` notes which did so at the start alone."""
    if not isinstance(part, dict):
        return part
    for name in ("normalizers", "pretokenizers"):
        if name in part:
            part[name] = [one for one in (_unprefixed(one, first) for one in part[name]) if one is not None]
    if part.get("type") == "Prepend":
        return None
    if part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never":
        first.append(part["prepend_scheme"] == "first")
        part["prepend_scheme"] = "never"
    if part.get("type") == "ByteLevel" and part.get("add_prefix_space"):
        part["add_prefix_space"] = False
    return part
