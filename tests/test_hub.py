"""`unmask download` against a hub that stands in for the two real ones, on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from unmask import hub
from unmask.config import UserError

SOURCES = ["hf", "modelscope"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = {
    "config.json": b'{"model_type": "llada"}',
    "tokenizer/special.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "model-00001-of-00001.safetensors": bytes(range(256)) * 256,
    "pytorch_model.bin": b"old weights",
    "original/consolidated.00.pth": b"older weights",
}
DATASET = {"README.md": b"# rows", "data/train.jsonl": b'{"text": "a"}\n' * 500, "empty.txt": b""}


class StandIn:
    """Speaks what huggingface_hub 2.4 and modelscope_hub 0.5 ask for in a download, and remembers what was asked."""

    def __init__(self) -> None:
        self.repositories = {("models", "owner/model"): MODEL, ("datasets", "owner/rows"): DATASET}
        self.commit = COMMIT
        self.cut: dict[str, int] = {}  # file → how many more times it breaks off in the middle
        self.broken: set[str] = set()  # files that answer 500
        self.xet = False  # offers weights by Xet too, as Hugging Face does
        self.refuse: tuple[int, dict[str, str]] | None = None  # what everything answers
        self.asked: list[tuple[str, str, str | None]] = []  # method, path or file, Range
        self.hosts: set[str] = set()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stand_in.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def fetched(self, ending: str) -> list[str | None]:
        """The Range of every transfer of a file, in order."""
        return [part for method, path, part in self.asked if method == "GET" and path.endswith("file:" + ending)]

    def answer(self, ask: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(ask.path)  # a proxy gets the whole address
        self.hosts.add(parts.netloc or ask.headers["Host"])
        path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()}
        if self.refuse is not None and path != "/api/v1/repos/internalAccelerationInfo":
            self.note(ask, path)
            return self.send(ask, b'{"Code": 1, "Message": "refused"}', *self.refuse)
        if found := re.fullmatch(r"/api/(models|datasets)/(\w+/\w+)(?:/revision/(\w+))?", path):
            files = self.files(ask, found[1], found[2], path, found[3] or "main")
            if files is not None:
                siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
                self.json(ask, {"id": found[2], "sha": self.commit, "siblings": siblings})
        elif found := re.fullmatch(r"/api/(models|datasets)/(\w+/\w+)/tree/\w+", path):
            files = self.files(ask, found[1], found[2], path)
            if files is not None:
                entries = [{"type": "file", "path": n, "size": len(d), "oid": sha(d)[:40]} for n, d in files.items()]
                self.json(ask, entries)
        elif found := re.fullmatch(r"/(?:(datasets)/)?(\w+/\w+)/resolve/\w+/(.+)", path):
            files = self.files(ask, found[1] or "models", found[2], "file:" + found[3])
            if files is not None:
                self.file(ask, found[3], files[found[3]])
        elif found := re.fullmatch(r"/api/v1/(models|datasets)/(\w+/\w+)/repo/(?:files|tree)", path):
            files = self.files(ask, found[1], found[2], path, query["Revision"])
            if files is not None:
                entries = [{"Path": n, "Size": len(d), "Sha256": sha(d), "Type": "blob"} for n, d in files.items()]
                self.json(ask, {"Code": 200, "Data": {"Files": [{"Path": "data", "Type": "tree"}, *entries]}})
        elif found := re.fullmatch(r"/api/v1/(models|datasets)/(\w+/\w+)/repo", path):
            files = self.files(ask, found[1], found[2], "file:" + query["FilePath"])
            if files is not None:
                self.file(ask, query["FilePath"], files[query["FilePath"]])
        else:
            self.note(ask, path)
            self.send(ask, b"{}", 404)

    def note(self, ask: BaseHTTPRequestHandler, path: str) -> None:
        self.asked.append((ask.command, path, ask.headers.get("Range")))

    def files(self, ask: BaseHTTPRequestHandler, kind: str, name: str, path: str, revision: str = "main"):
        self.note(ask, path)
        files = self.repositories.get((kind, name))
        if files is None:
            self.send(ask, b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "master", self.commit):
            files = self.send(ask, b'{"error": "no revision"}', 404, {"X-Error-Code": "RevisionNotFound"})
        return files

    def file(self, ask: BaseHTTPRequestHandler, path: str, data: bytes) -> None:
        if path in self.broken:
            return self.send(ask, b"", 500)
        start = int(re.fullmatch(r"bytes=(\d+)-", ask.headers.get("Range", "bytes=0-"))[1])
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{sha(data)[:40]}"', "Accept-Ranges": "bytes"}
        if self.xet:
            headers |= {"X-Xet-Hash": sha(data), "Link": f'<{self.url}/xet-token>; rel="xet-auth"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = ask.command == "GET" and self.cut.get(path, 0) > 0
        if cut:
            self.cut[path] -= 1
        self.send(ask, data[start:], 206 if start else 200, headers, break_off=cut)

    def json(self, ask: BaseHTTPRequestHandler, data: object) -> None:
        self.send(ask, json.dumps(data).encode())

    def send(self, ask, body: bytes, status: int = 200, headers: dict[str, str] | None = None, break_off=False) -> None:
        ask.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {}), "Content-Length": len(body)}.items():
            ask.send_header(key, str(value))
        ask.end_headers()
        if ask.command == "GET":
            ask.wfile.write(body[: len(body) // 2] if break_off else body)
        if break_off:
            ask.close_connection = True


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A hub of our own, named to both clients by their variables; no token, no proxy, nothing written at home."""
    import huggingface_hub
    from huggingface_hub import constants
    from modelscope_hub import _legacy_api
    from modelscope_hub import config as modelscope_config

    it = StandIn()
    clean(monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", it.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", it.url)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    # What huggingface_hub reads when it is imported, which another test may have done.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # it resumes at whole chunks of 10 MB
    monkeypatch.setattr(_legacy_api, "REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    monkeypatch.setattr(modelscope_config, "_default_config", None)
    huggingface_hub.close_session()
    yield it
    huggingface_hub.close_session()
    it.server.shutdown()
    it.server.server_close()


def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if re.search(r"(?i)^(hf_|modelscope_)|_proxy$", name):
            monkeypatch.delenv(name)


def there(folder: Path) -> dict[str, bytes]:
    """The files in a folder, without the clients' own notes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.relative_to(folder).parts
    }


def fails(*words: str, **settings) -> str:
    """The one line of the UserError that a download ends in."""
    with pytest.raises(UserError) as caught:
        hub.fetch(**{"name": "owner/model", "source": "hf", "kind": "model", **settings})
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


# ---------------------------------------------------------------------------------------------------------------------
# What arrives


@pytest.mark.parametrize("source", SOURCES)
def test_a_model_arrives_byte_for_byte(stand_in, tmp_path, source):
    folder = hub.fetch("owner/model", source=source, kind="model", local_dir=str(tmp_path / "deep" / "m"))
    assert folder == tmp_path / "deep" / "m"
    assert there(folder) == MODEL


@pytest.mark.parametrize("source", SOURCES)
def test_a_data_set_arrives_byte_for_byte(stand_in, tmp_path, source):
    assert there(hub.fetch("owner/rows", source=source, kind="dataset", local_dir=str(tmp_path / "d"))) == DATASET


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_folder_a_data_set_arrives_in_the_clients_cache(stand_in, tmp_path, source):
    folder = hub.fetch("owner/rows", source=source, kind="dataset")
    assert folder.is_relative_to(tmp_path / "cache")
    assert there(folder) == DATASET


@pytest.mark.parametrize("source", SOURCES)
def test_no_weights_leaves_out_weights_in_every_folder_and_keeps_their_index(stand_in, tmp_path, source):
    folder = hub.fetch("owner/model", source=source, kind="model", local_dir=str(tmp_path / "m"), no_weights=True)
    kept = {"config.json", "tokenizer/special.json", "model.safetensors.index.json"}
    assert there(folder) == {name: MODEL[name] for name in kept}
    assert not any(stand_in.fetched(name) for name in MODEL.keys() - kept)


@pytest.mark.parametrize("source", SOURCES)
def test_patterns_choose_files_and_a_folder_stands_for_what_is_in_it(stand_in, tmp_path, source):
    ask = {"source": source, "kind": "model", "local_dir": str(tmp_path / "m")}
    folder = hub.fetch("owner/model", allow_patterns=["tokenizer/", "conf*.json"], **ask)
    assert there(folder).keys() == {"config.json", "tokenizer/special.json"}


@pytest.mark.parametrize("source", SOURCES)
def test_a_named_revision_is_the_one_asked_for(stand_in, tmp_path, source):
    hub.fetch("owner/rows", source=source, kind="dataset", local_dir=str(tmp_path / "d"), revision=COMMIT)
    fails("owner/rows", "'gone'", source=source, name="owner/rows", kind="dataset", revision="gone")


@pytest.mark.parametrize("source", SOURCES)
def test_the_hub_is_asked_for_its_listing_and_the_files_and_nothing_else(stand_in, tmp_path, source):
    hub.fetch("owner/rows", source=source, kind="dataset", local_dir=str(tmp_path / "d"))
    others = {path for _, path, _ in stand_in.asked if not path.startswith("file:")}
    # internalAccelerationInfo: ModelScope's client asks its hub whether it runs in the same data centre.
    mine = r"/api/(v1/)?datasets/owner/rows(/repo/tree|/tree/\w+)?|/api/v1/repos/internalAccelerationInfo"
    assert all(re.fullmatch(mine, path) for path in others), others


# ---------------------------------------------------------------------------------------------------------------------
# Interruptions


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_that_is_cut_off_goes_on_at_the_byte(stand_in, tmp_path, source):
    big = "model-00001-of-00001.safetensors"
    stand_in.cut[big] = 1
    assert there(hub.fetch("owner/model", source=source, kind="model", local_dir=str(tmp_path / "m"))) == MODEL
    assert stand_in.fetched(big) == [None, f"bytes={len(MODEL[big]) // 2}-"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_second_run_fetches_only_what_is_missing(stand_in, tmp_path, source):
    ask = {"source": source, "kind": "model", "local_dir": str(tmp_path / "m")}
    hub.fetch("owner/model", no_weights=True, **ask)
    stand_in.asked.clear()
    assert there(hub.fetch("owner/model", **ask)) == MODEL
    assert not stand_in.fetched("config.json")
    assert stand_in.fetched("pytorch_model.bin")


def test_modelscope_goes_on_at_the_byte_in_a_later_run(stand_in, tmp_path, monkeypatch):
    from modelscope_hub import _download

    monkeypatch.setattr(_download, "DOWNLOAD_RETRY_TIMES", 0)
    big = "model-00001-of-00001.safetensors"
    stand_in.cut[big] = 1
    ask = {"source": "modelscope", "kind": "model", "local_dir": str(tmp_path / "m")}
    fails("the same command goes on", **ask)
    assert big not in there(tmp_path / "m")
    stand_in.asked.clear()
    assert there(hub.fetch("owner/model", **ask)) == MODEL
    assert stand_in.fetched(big) == [f"bytes={len(MODEL[big]) // 2}-"]
    assert not stand_in.fetched("config.json")


def test_a_file_that_is_not_what_the_listing_says_is_refused(stand_in, tmp_path, monkeypatch):
    """ModelScope lists a checksum; huggingface_hub compares sizes."""
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    send = StandIn.file
    monkeypatch.setattr(StandIn, "file", lambda self, ask, path, data: send(self, ask, path, data[::-1]))
    ask = {"local_dir": str(tmp_path / "m"), "allow_patterns": ["config.json"]}
    fails("config.json could not be fetched", "Hash mismatch", source="modelscope", **ask)
    assert there(tmp_path / "m") == {}


def test_a_folder_with_files_in_it_is_no_answer_when_the_hub_gives_none(stand_in, tmp_path):
    """huggingface_hub's snapshot_download returns such a folder with a warning."""
    (tmp_path / "notes.txt").write_text("mine")
    fails("no model 'owner/other'", name="owner/other", local_dir=str(tmp_path))
    stand_in.refuse = (503, {})
    fails("out of order", local_dir=str(tmp_path))
    assert there(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("fetched", [True, False])
def test_an_old_file_is_no_answer_when_the_hub_falters_at_the_new_one(stand_in, tmp_path, fetched):
    """huggingface_hub keeps the old file with a warning."""
    ask = {"kind": "model", "source": "hf", "local_dir": str(tmp_path)}
    if fetched:
        hub.fetch("owner/model", **ask)
    else:
        (tmp_path / "config.json").write_text("of another model")
    stand_in.commit = "f" * 40
    stand_in.broken = {"config.json"}
    fails("config.json", "did not arrive", **ask)
    stand_in.broken = set()
    assert there(hub.fetch("owner/model", **ask)) == MODEL


# ---------------------------------------------------------------------------------------------------------------------
# Mirrors and proxies


@pytest.mark.parametrize(
    ("source", "variable"),
    [("hf", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT"), ("modelscope", "MODELSCOPE_DOMAIN")],
)
def test_a_mirror_is_honoured(stand_in, tmp_path, monkeypatch, source, variable):
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.delenv(name)
    monkeypatch.setenv(variable, stand_in.url + "/")
    assert there(hub.fetch("owner/rows", source=source, kind="dataset", local_dir=str(tmp_path / "d"))) == DATASET


@pytest.mark.parametrize("source", SOURCES)
def test_a_proxy_is_honoured(stand_in, tmp_path, monkeypatch, source):
    monkeypatch.setenv(hub.MIRROR[source], "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", stand_in.url)
    monkeypatch.setenv("http_proxy", stand_in.url)
    assert there(hub.fetch("owner/rows", source=source, kind="dataset", local_dir=str(tmp_path / "d"))) == DATASET
    assert stand_in.hosts == {"hub.invalid"}


def test_weights_do_not_go_past_a_mirror(stand_in, tmp_path):
    """Xet's servers are not the mirror's."""
    stand_in.xet = True
    ended = run(
        "owner/model", "--local_dir", str(tmp_path / "m"), HF_ENDPOINT=stand_in.url, HF_HOME=str(tmp_path / "hf")
    )
    assert ended.returncode == 0, ended.stderr
    assert there(tmp_path / "m") == MODEL
    assert not any("xet" in path for _, path, _ in stand_in.asked)


# ---------------------------------------------------------------------------------------------------------------------
# Errors, each in one line


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if not re.search(r"(?i)^(hf_|modelscope_)|_proxy$", k)}
    return subprocess.run(
        [sys.executable, "-m", "unmask", "download", *words],
        capture_output=True,
        text=True,
        env={**kept, **environment},
        timeout=60,
    )


@pytest.mark.parametrize("source", SOURCES)
def test_an_unreachable_hub_gives_one_line_and_leaves_nothing(tmp_path, source):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    home = {"HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_HOME": str(tmp_path / "ms")}
    few = {"MODELSCOPE_API_MAX_RETRIES": "1", "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1"}
    ended = run(
        "owner/model", "--from", source, "--local_dir", str(tmp_path / "m"), **{hub.MIRROR[source]: url}, **home, **few
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert f"could not reach {url}" in ended.stderr
    assert hub.MIRROR[source] in ended.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_an_unknown_name_says_so_and_leaves_nothing(stand_in, tmp_path, source):
    folder = tmp_path / "m"
    fails("no model 'owner/modle'", "--dataset", source=source, name="owner/modle", local_dir=str(folder))
    # A data set's name without --dataset is unknown too, and the line says what to add.
    fails("add --dataset", source=source, name="owner/rows", local_dir=str(folder))
    fails("drop --dataset", source=source, name="owner/model", kind="dataset", local_dir=str(folder))
    assert not folder.exists()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_does_not_know_the_user_says_how_to_log_in(stand_in, tmp_path, source, status):
    stand_in.refuse = (status, {})
    fails(hub.LOGIN[source], source=source, local_dir=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_a_gated_model_says_where_to_ask(stand_in, tmp_path):
    stand_in.refuse = (403, {"X-Error-Code": "GatedRepo"})
    fails("gated", stand_in.url + "/owner/model", "hf auth login", local_dir=str(tmp_path / "m"))


def test_offline_mode_is_named(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fails("HF_HUB_OFFLINE", local_dir=str(tmp_path / "m"))


@pytest.mark.parametrize("source", SOURCES)
def test_a_page_that_is_no_hub_says_which_variable_to_look_at(stand_in, tmp_path, source, monkeypatch):
    monkeypatch.setattr(StandIn, "json", lambda self, ask, data: self.send(ask, b"<html>welcome</html>"))
    fails(hub.MIRROR[source], source=source, local_dir=str(tmp_path / "m"))


@pytest.mark.parametrize("source", SOURCES)
def test_a_disk_that_is_too_small_is_seen_before_the_first_byte(stand_in, tmp_path, source, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    fails("not enough space", "are free", source=source, local_dir=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()
    # What is there already needs no room.
    hub.fetch("owner/model", source=source, kind="model", local_dir=str(tmp_path / "m"), no_weights=True)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("source", "writer"),
    [("hf", "huggingface_hub.file_download.http_get"), ("modelscope", "modelscope_hub._download._finish_download")],
)
def test_a_disk_that_fills_up_gives_one_line(stand_in, tmp_path, source, writer, monkeypatch):
    monkeypatch.setattr(writer, full_disk)
    fails("no space left", "the same command goes on", source=source, local_dir=str(tmp_path / "m"))
    assert not there(tmp_path / "m").keys() & MODEL.keys()


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_in_the_folders_place_is_named(stand_in, tmp_path, source):
    (tmp_path / "m").write_text("mine")
    fails(f"{tmp_path / 'm'} is a file", source=source, local_dir=str(tmp_path / "m"))
    fails(f"{tmp_path / 'm'} is a file", source=source, local_dir=str(tmp_path / "m" / "below"))
    assert stand_in.asked == []


@pytest.mark.parametrize("source", SOURCES)
def test_patterns_that_fit_nothing_name_files_that_are_there(stand_in, tmp_path, source):
    fails("config.json", source=source, local_dir=str(tmp_path / "m"), allow_patterns=["config.jsn"])
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_a_repository_cannot_write_outside_its_folder(stand_in, tmp_path, source):
    stand_in.repositories[("models", "owner/model")] = {"../evil.txt": b"x"}
    fails("outside the folder", source=source, local_dir=str(tmp_path / "m"))
    assert not (tmp_path / "evil.txt").exists()


def test_a_missing_client_gives_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    fails("pip install modelscope", source="modelscope")


@pytest.mark.parametrize("name", ["", "https://example.org/owner/model", "a/b/c", "owner/mo del"])
@pytest.mark.parametrize("source", SOURCES)
def test_what_cannot_be_a_name_is_told_so(stand_in, name, source):
    fails(repr(name), source=source, name=name)


def test_a_data_set_has_no_weights_to_leave_out():
    fails("--allow_patterns", kind="dataset", no_weights=True)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_prints_the_folder(stand_in, tmp_path, capsys):
    folder = str(tmp_path / "m")
    assert hub.main(["owner/model", "--from", "modelscope", "--local_dir", folder, "--no_weights"]) == 0
    out, remarks = capsys.readouterr()
    assert out == folder + "\n"
    assert "unmask pretrain" in remarks
    assert "pytorch_model.bin" not in there(tmp_path / "m")


@pytest.mark.parametrize(
    "words",
    [
        ["owner/rows", "--dataset", "--from", "modelscope"],
        ["--dataset", "owner/rows", "--from", "modelscope"],  # as `modelscope download` spells it
        ["ms:owner/rows", "--dataset"],  # as dataset specs spell it
        ["owner/rows", "--dataset", "--from", "hf"],
        ["hf:owner/rows", "--dataset", "true"],
    ],
)
def test_the_spellings_of_a_data_set(stand_in, tmp_path, capsys, words):
    assert hub.main([*words, "--local_dir", str(tmp_path / "d")]) == 0
    assert there(tmp_path / "d") == DATASET
    assert any("/api/v1/" in path for _, path, _ in stand_in.asked) == ("hf" not in " ".join(words))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "owner/name --local_dir"),
        (["owner/model"], "--local_dir"),
        (["owner/model", "--from", "github", "--local_dir", "x"], "modelscope"),
        (["ms:owner/model", "--from", "hf", "--local_dir", "x"], "leave one of the two out"),
        (["owner/model", "--local_dri", "x"], "local_dir"),
    ],
)
def test_missing_and_wrong_arguments_say_what_to_type(words, told):
    with pytest.raises(UserError, match=re.escape(told)):
        hub.main(words)


def test_importing_the_command_loads_no_client():
    code = (
        "import sys, unmask.hub; print([m for m in ('huggingface_hub', 'modelscope_hub', 'tqdm') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
