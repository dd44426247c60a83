"""The command `unmask chat`: questions in, answers out, shown while they are written.

In:  a model or adapter folder; questions typed on a terminal, in the lines of a pipe, or given with `-p`.
Out: answers on standard output; everything else that is said, on standard error.

Masked diffusion models answer by the decoding loop, causal ones (Qwen, Llama, SmolLM) left to right.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from unmask import replay, report
from unmask.canvas import Row
from unmask.config import UserError, nearest, option
from unmask.conversation import Answer, ChatLength, ChatOptions, Conversation, count
from unmask.reader import ReaderArguments, load, read
from unmask.replay import Recorder
from unmask.screen import Screen, Stream, shown
from unmask.terminal import Interrupts, Questions, is_terminal
from unmask.values import NO, YES

if TYPE_CHECKING:
    from unmask.models import Loaded

LEAVE = ("exit", "quit")  # the tutorial's word, and what else is typed to get out

COMMANDS = {
    "help": ("", "this list"),
    "new": ("", "forget the conversation; system text and settings stay"),
    "system": ("TEXT", "what the model is told before the first question; `/system none` takes it away"),
    "undo": ("", "take the last question and its answer back"),
    "retry": ("", "answer the last question anew, with other random numbers"),
    "set": ("KEY=VALUE …", "change settings (steps=64 temperature=0.7 max_new_tokens=256); alone: list them"),
    "save": ("FILE", "add the conversation to a .jsonl file that `unmask sft` reads"),
    "replay": ("FILE", "how the last answer was written, as FILE.html (plays in a browser), FILE.gif or FILE.json"),
    "stats": ("", "tokens, seconds and forward passes"),
    "quit": ("", "leave; so do exit, Ctrl-D and Ctrl-C"),
}
ABOUT_TYPING = (
    '//text sends "/text" to the model. A line that ends in \\ goes on in the next one, all between """ and """ is one',
    "message. Ctrl-C stops an answer; what stands of it is kept.",
)


@dataclasses.dataclass
class ChatArguments:
    """Chat"""

    prompt: list[str] = option(
        [], "A question; its answer is printed, and that is all. Several are turns of one conversation.", aliases=["-p"]
    )
    system: str | None = option(None, "What the model is told before the first question.")
    chat_template: str | None = option(
        None,
        "true, as if left out: the tokenizer's own. llada, or a .jinja file. false (also --no_chat_template): none, so "
        "that each text is continued as it is.",
    )
    visualize: bool = option(True, "Show answers while they are written, on a terminal.")


class Chat:
    """A conversation and the terminal or pipe where it is led.

    Args:
        once: only what was asked for is answered, so that no commands can follow.
    """

    def __init__(
        self, conversation: Conversation, loaded: Loaded, *, terminal: bool, visualize: bool, once: bool = False
    ) -> None:
        self.conversation, self.loaded, self.terminal, self.visualize = conversation, loaded, terminal, visualize
        self.once, self.told_of_length = once, 0
        self.recorder: Recorder | None = None

    # -----------------------------------------------------------------------------------------------------------------
    # Answers

    def ask(self, question: str, retries: int = 0, at: int | None = None) -> Answer:
        """Answer a question on the screen. KeyboardInterrupt after a second Ctrl-C, and at the first one in a pipe."""
        row, remark = self.conversation.begin(question, retries, at)
        if remark:
            self.say(remark)
        began = time.monotonic()
        pressed = self.write(row)
        answer = self.conversation.finish(row, time.monotonic() - began)
        if self.terminal and self.visualize and self.loaded.causal:
            print(flush=True)  # the text stands there already
        elif answer.text.strip() or not self.terminal:
            print(shown(answer.text) if self.terminal else answer.text, flush=True)
        if pressed > 1 or (pressed and not self.terminal):
            raise KeyboardInterrupt
        if self.terminal and not self.once:
            self.remark(answer)
        return answer

    def write(self, row: Row) -> int:
        """Write a row to its end or to Ctrl-C; returns how often that was pressed."""
        screen: Screen | Stream | None = None
        given = int((~row.free).sum())
        self.recorder = None if self.loaded.causal else Recorder(self.tokenizer, row, self.conversation.settings())
        with Interrupts() as interrupts:
            try:
                try:
                    if self.terminal and self.visualize:
                        screen = Stream(self.tokenizer) if self.loaded.causal else Screen(self.tokenizer, given)
                    if isinstance(screen, Screen):
                        screen.draw(row)
                    for _ in self.conversation.writer.write(row):
                        if self.recorder:
                            self.recorder.note(row)
                        if isinstance(screen, Screen):
                            screen.draw(row)
                        elif screen:
                            screen.put(self.conversation.writer.answer(row)[0])
                finally:
                    if screen:
                        screen.close()
            except KeyboardInterrupt:
                if screen:
                    screen.close()  # where it was pressed while the screen was being closed
            except RuntimeError as error:
                if "out of memory" not in str(error):
                    raise
                raise UserError(
                    "out of memory; /set max_new_tokens to less, or /new for a shorter conversation."
                ) from None
        return interrupts.count

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    def remark(self, answer: Answer) -> None:
        """What is to be said of an answer, if anything."""
        most = self.conversation.length.max_new_tokens or 0
        if answer.reason == "interrupted":
            if answer.kept:
                what = "what you see is kept; /undo takes it back, /retry answers anew"
            elif self.conversation.pending:
                what = "nothing stood yet, so nothing is kept; /retry asks again"
            else:
                what = "the earlier answer stays"
            self.say(f"stopped: {what}.")
        elif not answer.kept:
            self.say("the model ended without a word, so nothing is kept; /retry asks again.")
        elif answer.reason == "length" and answer.tokens == most != self.told_of_length:
            self.told_of_length = most
            self.say(f"cut at {most} tokens; /set max_new_tokens={2 * most} makes room for more.")

    def say(self, *lines: str) -> None:
        """Remarks, on standard error; dim on a terminal."""
        plain = not self.terminal or not sys.stderr.isatty() or "NO_COLOR" in os.environ
        report.say(*(line if plain else f"\x1b[2m{line}\x1b[0m" for line in map(shown, lines)))

    # -----------------------------------------------------------------------------------------------------------------
    # Commands

    def command(self, line: str) -> bool:
        """Do what a line that begins with a slash asks for; false to leave. UserError for what cannot be done."""
        name, _, rest = line[1:].strip().partition(" ")
        rest = rest.strip()
        if name not in COMMANDS:
            near = nearest(name, COMMANDS).replace("'", "").replace("mean ", "mean /")
            raise UserError(f"no command /{name}.{near} /help lists them; //{name} sends it as text.")
        if rest and not COMMANDS[name][0]:
            raise UserError(f"/{name} takes nothing after it.")
        if name != "quit":
            getattr(self, f"do_{name}")(rest)
        return name != "quit"

    def do_help(self, _: str) -> None:
        self.say(*(f"/{f'{name} {takes}':<17} {what}" for name, (takes, what) in COMMANDS.items()))
        self.say(*ABOUT_TYPING)

    def do_new(self, _: str) -> None:
        self.conversation.new()
        self.say("a new conversation.")

    def do_system(self, text: str) -> None:
        if text:
            self.conversation.tell(None if text.lower() == "none" else text)
        now = self.conversation.system
        self.say(f"system text{', from the next question on' if text else ''}: {now or 'none'}")

    def do_undo(self, _: str) -> None:
        gone = self.conversation.undo()
        first = gone.question.split("\n")[0]
        left = count(len(self.conversation.turns), "turn")
        self.say(f"taken back: {first[:60]}{'…' if first[60:] or first != gone.question else ''} ({left} left)")

    def do_retry(self, _: str) -> None:
        question, retries, at = self.conversation.again()
        before = self.conversation.turns[at] if at < len(self.conversation.turns) else None
        answer = self.ask(question, retries, at)
        same = before and answer.reason == before.reason and answer.text == before.text
        if same and self.terminal and not self.conversation.settings().get("temperature"):
            self.say("the same answer: at temperature 0 there is no chance in it; /set temperature=0.7")

    def do_set(self, text: str) -> None:
        words = text.split()
        if len(words) == 2 and "=" not in text:
            words = ["=".join(words)]  # `/set steps 64`
        for word in words:
            if "=" not in word:
                raise UserError(f"expected /set KEY=VALUE, such as /set steps=64, not {word!r}.")
        pairs = {w.partition("=")[0].lstrip("-").replace("-", "_"): w.partition("=")[2] for w in words}
        names = self.conversation.set(pairs)
        listing = self.conversation.listing()
        self.say(" ".join(f"{name}={_plain(listing.get(name))}" for name in names or listing))

    def do_save(self, name: str) -> None:
        if not name:
            raise UserError("type /save FILE.jsonl.")
        self.say(self.conversation.save(name))

    def do_replay(self, name: str) -> None:
        if not name:
            raise UserError("type /replay FILE.html (or .gif, .json).")
        if not self.recorder:
            raise UserError("no answer was unmasked yet, so there is nothing to replay.")
        self.say(f"how the last answer was written is in {replay.write(self.recorder.record(), name)}")

    def do_stats(self, _: str) -> None:
        self.say(*self.conversation.statistics())


def _plain(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Questions


def talk(chat: Chat, questions: Questions) -> int:
    """Read and answer until there is nothing more; exit code 2 if something in a pipe could not be done."""
    code = 0
    try:
        while True:
            try:
                text, quoted = questions.next()
                if not text.strip():
                    continue
                if not quoted and text.strip().lower() in LEAVE:
                    break
                if quoted or not text.startswith("/"):
                    chat.ask(text)
                elif text.startswith("//"):
                    chat.ask(text[1:])
                elif not chat.command(text):
                    break
            except UserError as error:
                report.say(f"unmask: {shown(str(error))}")
                code = 2
    except EOFError:
        if chat.terminal:
            print()
    except KeyboardInterrupt:
        if not chat.terminal:
            raise
        print()
    if chat.terminal:
        chat.say("Bye.")
    return 0 if chat.terminal else code


# ---------------------------------------------------------------------------------------------------------------------
# The command

REFUSED = {"return_dict": "gives an object to a Python program; here /save FILE writes the conversation."}


def main(argv: list[str]) -> int:
    """`unmask chat --model FOLDER`"""
    about = "Chat with a masked diffusion model, or with a causal one."
    groups = [ChatArguments, ReaderArguments, ChatLength]
    mine, _, given = read("unmask chat", about, _spelt(argv), groups, options=ChatOptions, refused=REFUSED)
    arguments, reader, length = mine
    remark = length.settle()
    if any(not question.strip() for question in arguments.prompt):
        raise UserError("-p is empty; give it a question.")
    questions = None if arguments.prompt else Questions(terminal=is_terminal())

    loaded = load(reader, causal=None)
    from unmask.answer import Writer
    from unmask.template import Template

    if loaded.causal and reader.right_shift_logits is not None:
        raise UserError("--right_shift_logits belongs to models that unmask; this one writes left to right.")
    wish = (arguments.chat_template or "true").strip()
    template = None
    if wish.lower() not in NO:
        template = Template(loaded.tokenizer, None if wish.lower() in YES else wish)
    writer = Writer(loaded, template.ends if template else ())
    conversation = Conversation(writer, template, arguments.system, length, given)
    how = {"terminal": is_terminal(), "visualize": arguments.visualize, "once": questions is None}
    chat = Chat(conversation, loaded, **how)
    chat.say(first_line(str(reader.model), loaded, conversation) + remark)
    if questions:
        if chat.terminal:
            chat.say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
        return talk(chat, questions)
    for question in arguments.prompt:
        if chat.ask(question).reason == "interrupted":
            return 130
    return 0


def first_line(name: str, loaded: Loaded, conversation: Conversation) -> str:
    """What is loaded, and how it answers."""
    settings, new = conversation.settings(), conversation.length.max_new_tokens or 0
    model = f"{loaded.model.config.model_type}, {report.amount(loaded.model.num_parameters())} parameters"
    if loaded.adapter:
        model += ", with an adapter"
    how = "autoregressive"
    if not loaded.causal:
        size = settings.get("block_size")
        how = (
            f"diffusion; {min(settings.get('steps') or new, new)} steps, {f'blocks of {size}' if size else 'one block'}"
        )
    turns = "" if conversation.template else "; no chat template: each text is continued"
    return f"{name}: {model}, {how}, up to {new} new tokens{turns}"


def _spelt(argv: list[str]) -> list[str]:
    """`--chat_template` as a switch, too: the tutorial's is one, ours also takes a name."""
    words = []
    for word, after in itertools.pairwise([*argv, "--"]):
        name = word.replace("-", "_")
        if name == "__no_chat_template":
            word = "--chat_template=false"
        elif name == "__chat_template" and after.startswith("--"):
            word = "--chat_template=true"
        words.append(word)
    return words
