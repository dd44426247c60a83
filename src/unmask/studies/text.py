"""The text of a study as rows of tokens: the same pieces held out for all runs, the same first tokens for each amount.

In:  where the text is (`plan.Text`).
Out: a tokenizer made of the training text; a folder of rows for each amount of unique tokens, all with the same
     validation rows; `data.json`: what all this is, by fingerprints, so that results of one study go together.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask import report, sealed
from unmask.config import UserError
from unmask.spec import find
from unmask.studies.plan import Study, Text

if TYPE_CHECKING:
    import datasets

DATA = "data.json"
SEED = 0  # of the order of the pieces: the same in all runs, so that less text is a part of more


def locate(text: Text) -> Path:
    """The text's file, fetched if it has an address and is nowhere; UserError when it cannot be had or is another."""
    found = next((path for name in text.file if (path := find(name)) and path.is_file()), None)
    if found is None:
        if not text.url:
            raise UserError(f"no text at {' or '.join(text.file)}; put it there.")
        found = Path(text.file[0])
        _fetch(text.url, found)
    if text.sha256:
        is_ = _hash(found)
        if is_ != text.sha256:
            raise UserError(
                f"{found} is not the text that this study is about (sha256 {is_[:12]}…; {text.sha256[:12]}… is "
                f"wanted); move it away{', and it will be fetched' if text.url else ''}."
            )
    return found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(url: str, path: Path) -> None:
    report.say(f"fetching {url} to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, report.written_aside(path) as aside:
            aside.write_bytes(answer.read())
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise UserError(
            f"cannot fetch {url} ({reason}); put the file at {path} yourself, or set BASE_DATASETS_DIR to a folder "
            "that holds it under that name."
        ) from None


def pieces(text: Text) -> tuple[list[str], list[str]]:
    """(to train on, in a random order; held out): paragraphs, or documents, laid together to `piece` characters."""
    if text.dataset_args:
        from unmask import corpus

        rows = corpus.load(text.dataset_args, text_field=text.text_field, need_test=False).train
        parts = [str(row[text.text_field]) for row in rows]
    else:
        path = locate(text)
        try:
            whole_text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 (byte {error.start:,}); save it as UTF-8.") from None
        parts = [part + "\n\n" for part in whole_text.split("\n\n")]
    whole: list[str] = []
    now = ""
    for part in parts:
        now += part
        if len(now) >= text.piece:
            whole.append(now)
            now = ""
    if now.strip():
        whole.append(now)
    train = [piece for i, piece in enumerate(whole, 1) if i % text.held_out]
    held = [piece for i, piece in enumerate(whole, 1) if i % text.held_out == 0]
    if not held:
        raise UserError(
            f"the text makes {len(whole)} pieces of {text.piece:,} characters, too few to hold out each "
            f"{text.held_out}th; lower text piece, or held_out."
        )
    random.Random(SEED).shuffle(train)
    return train, held


def prepare(study: Study, home: Path) -> dict[str, Any]:
    """Make what is not there yet: `home/tokenizer`, `home/rows/AMOUNT`. Returns what data.json says."""
    wanted = sorted({run.unique_tokens for run in study.runs()})
    is_ = _hash(locate(study.text)) if study.text.file else None
    asked = report.digest([vars(study.text), is_, study.tokenizer, study.length])
    note = home / DATA
    if note.is_file():
        known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if known["asked"] == asked and all(str(amount) in known["rows"] for amount in wanted):
            return known
    import datasets

    from unmask import models, tokenizer, tokens

    report.quiet()
    train, held = pieces(study.text)
    note.unlink(missing_ok=True)  # until all is made anew
    made = {"train": train, "test": held}
    folder = home / "text"
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in made.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": piece}, ensure_ascii=False) + "\n" for piece in part)
    source = study.tokenizer.get("from")
    if source is None:
        words = ["--corpus", str(folder / "train.jsonl"), "--output_dir", str(home / "tokenizer"), "--overwrite"]
        tokenizer.main([*words, *(word for k, v in study.tokenizer.items() for word in (f"--{k}", str(v)))])
    read = models.load_tokenizer(source or str(home / "tokenizer"))
    how: dict[str, Any] = {"max_length": study.length, "insert_eos": study.text.insert_eos, "num_proc": 1}
    how |= {"text_field": "text", "drop_tail": True, "disable_caching": True}
    rows = {
        name: tokens.group(
            datasets.Dataset.from_dict({"text": part}), read, keep_lone=name == "test", desc=f"tokenising {name}", **how
        )
        for name, part in made.items()
    }
    most = len(rows["train"]) * study.length
    if wanted[-1] > most:
        raise UserError(f"unique_tokens {wanted[-1]:,}: the text has {most:,} tokens to train on.")
    known = {
        "asked": asked,
        "tokenizer": tokens.tokenizer_fingerprint(read),
        "validation": tokens.data_fingerprint(rows["test"]),
        "validation_tokens": len(rows["test"]) * study.length,
        "training_tokens": most,
        "rows": {},
    }
    for amount in wanted:
        part = rows["train"].select(range(amount // study.length))
        _save({"train": part, "test": rows["test"]}, home / "rows" / str(amount))
        known["rows"][str(amount)] = tokens.data_fingerprint(part)
    report.write_json(note, known)
    return known


def _save(parts: dict[str, datasets.Dataset], folder: Path) -> None:
    import datasets

    folder.parent.mkdir(parents=True, exist_ok=True)
    with sealed.replaced(folder) as aside:
        datasets.DatasetDict(parts).save_to_disk(str(aside))


def check_same(known: dict[str, Any], results: Path) -> None:
    """UserError when the results of a folder are of other data; else what the data are is written there."""
    path = results / DATA
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for key in ("tokenizer", "validation"):
            if before[key] != known[key]:
                raise UserError(
                    f"{results} holds results of another text or tokenizer ({key} {before[key][:12]}… there, "
                    f"{known[key][:12]}… here); name another --results_dir."
                )
        both = before["rows"].keys() & known["rows"].keys()
        if other := [amount for amount in both if before["rows"][amount] != known["rows"][amount]]:
            raise UserError(f"{results} was made from other rows of {other[0]} tokens; name another --results_dir.")
        known = known | {"rows": before["rows"] | known["rows"]}
    report.write_json(path, known)
