"""Models and data sets from a hub: `unmask download NAME`.

In:  a name on the Hugging Face Hub (the default) or on ModelScope, and a folder.
Out: the repository's files in that folder, fetched by the hub's own client.

Left to the clients, with the variables they read:

- mirrors: HF_ENDPOINT; MODELSCOPE_ENDPOINT, or MODELSCOPE_DOMAIN as it was called before
- proxies: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY
- who asks: `hf auth login` or HF_TOKEN; `modelscope login` or MODELSCOPE_API_TOKEN
- retries, checksums, resuming: a finished file is not fetched again. A file that was cut off goes on at the byte while
  the command runs. In a later run ModelScope goes on at the byte too, from `FILE.incomplete`; Hugging Face's client
  begins that file anew (since 1.x; each process writes to a temporary file of its own).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fnmatch
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from unmask.config import UserError, nearest, option, parse
from unmask.values import NO, YES

Source = Literal["hf", "modelscope"]
Kind = Literal["model", "dataset"]

WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.ggml", "*.msgpack", "*.h5", "*.npz"),
    *("*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel", "*.ot", "*.pdparams", "*.nemo"),
)
"""What --no_weights leaves out, in every folder of the repository. The index (`model.safetensors.index.json`) stays."""

HUBS = {"hf": "Hugging Face", "modelscope": "ModelScope"}
MIRROR = {"hf": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}
LOGIN = {"hf": "`hf auth login` or HF_TOKEN", "modelscope": "`modelscope login` or MODELSCOPE_API_TOKEN"}
PREFIXES: dict[str, Source] = {"ms:": "modelscope", "hf:": "hf"}
ANSWER_SECONDS = 20  # Hugging Face's client would wait for the first answer for ever (2.4: no default time-out)


@dataclasses.dataclass
class Settings:
    """Download"""

    name: str | None = option(None, "owner/name on the hub; `ms:owner/name` is one on ModelScope.")
    source: Literal["hf", "modelscope"] = option("hf", "Which hub.", aliases=("from",))
    local_dir: str | None = option(None, "Folder for the files; those of the same name in it are replaced.")
    dataset: bool = option(False, "NAME is a data set, not a model.")
    no_weights: bool = option(False, "All but the weights: config, tokenizer and index, to start a model from scratch.")
    revision: str | None = option(None, "Branch, tag or commit. The hub's default branch if left out.")
    allow_patterns: list[str] = option([], "Only files that match one of these: '*.json' 'data/*'.")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a hub. `folder` None: the client's own cache."""

    name: str
    source: Source
    kind: Kind
    folder: Path | None
    no_weights: bool
    revision: str | None
    allow: list[str] | None

    @property
    def ignore(self) -> list[str] | None:
        return list(WEIGHTS) if self.no_weights else None

    @property
    def what(self) -> str:
        return "data set" if self.kind == "dataset" else "model"


def main(argv: list[str]) -> int:
    """The command `unmask download`."""
    found = parse(
        "unmask download",
        "Fetch a model or a data set from the Hugging Face Hub or from ModelScope.",
        [Settings],
        _names_after_switches(argv),
        legacy={"from": "source"},
        positional=("name", "owner/name on the hub; `ms:owner/name` is one on ModelScope."),
    )
    settings: Settings = found.groups[0]
    name, source = settings.name or "", settings.source
    for prefix, hub in PREFIXES.items():
        if name.startswith(prefix):
            if "source" in found.given and source != hub:
                raise UserError(f"{name!r} is on {HUBS[hub]} but --from is {source}; leave one of the two out.")
            name, source = name.removeprefix(prefix), hub
    if not name:
        raise UserError("nothing to download; type `unmask download owner/name --local_dir FOLDER`.")
    if not settings.local_dir:
        raise UserError(f"no --local_dir; type `unmask download {settings.name} --local_dir FOLDER`.")
    folder = fetch(
        name,
        source=source,
        kind="dataset" if settings.dataset else "model",
        local_dir=settings.local_dir,
        no_weights=settings.no_weights,
        revision=settings.revision,
        allow_patterns=settings.allow_patterns or None,
    )
    print(folder)
    if settings.no_weights:
        sys.stderr.write(f"without weights; `unmask pretrain --model_name_or_path {folder}` starts it from scratch\n")
    return 0


def _names_after_switches(argv: Sequence[str]) -> list[str]:
    """`--dataset NAME` and `--model NAME` (`modelscope download`; with _id: dllm) to `NAME --dataset` and `NAME`."""
    words = list(argv)
    spelt = {"--dataset": ["--dataset"], "--model": list[str]()}
    for switch, kept in (spelt | {f"{name}_id": kept for name, kept in spelt.items()}).items():
        if switch in words:
            at = words.index(switch)
            after = words[at + 1 : at + 2]
            if after and not after[0].startswith("-") and after[0].lower() not in YES | NO:
                words[at : at + 2] = [*after, *kept]
    return words


def fetch(
    name: str,
    *,
    source: Source,
    kind: Kind,
    local_dir: str | None = None,
    no_weights: bool = False,
    revision: str | None = None,
    allow_patterns: Sequence[str] | None = None,
) -> Path:
    """Bring a repository's files here and say where they are.

    Args:
        name: `owner/name`.
        local_dir: where to; None: the client's own cache, for data sets that a command reads.
        no_weights: leave out files that match `WEIGHTS`.
        revision: branch, tag or commit; None: the default branch.
        allow_patterns: shell patterns; a file is fetched if one matches its path.

    Returns:
        The folder, complete: every file asked for is there at that revision.

    Raises:
        UserError: unknown or forbidden name or revision, nothing matches, no network, no space, a file in the way.
            Finished files stay where they are, and the same call goes on from there.
    """
    if no_weights and kind == "dataset":
        raise UserError("--no_weights goes with a model; a data set has none. For a part of it: --allow_patterns.")
    if "://" in name or not name.strip():
        raise UserError(f"{name!r} is not a name on a hub; expected owner/name, as in `GSAI-ML/LLaDA-8B-Base`.")
    folder = Path(local_dir).expanduser() if local_dir is not None else None
    if folder is not None:
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not there.is_dir():
            raise UserError(f"{there} is a file; --local_dir must be a folder.")
    request = Request(
        name, source, kind, folder, no_weights, revision, list(allow_patterns) if allow_patterns else None
    )
    return _from_hugging_face(request) if source == "hf" else _from_modelscope(request)


# ---------------------------------------------------------------------------------------------------------------------
# The two clients


def _from_hugging_face(request: Request) -> Path:
    # Read here as well: the client looks at its variables once, when it is first imported.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if endpoint:
        # Xet goes to servers of its own, past any mirror (huggingface_hub#4475); plain HTTP stays with the mirror.
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    import huggingface_hub as client
    from huggingface_hub import constants

    with _one_line(request, endpoint or constants.ENDPOINT):
        # Asked for first, because snapshot_download (2.4) takes any non-empty folder for the answer when the hub
        # cannot be reached or does not know the name.
        info: Any = client.HfApi(endpoint=endpoint).repo_info(
            request.name,
            repo_type=request.kind,
            revision=request.revision,
            files_metadata=True,
            timeout=ANSWER_SECONDS,
        )
        wanted = _wanted(request, {file.rfilename: file.size or 0 for file in info.siblings})
        _make_room(request, wanted)
        at: dict[str, Any] = {
            "repo_type": request.kind,
            "revision": info.sha,
            "local_dir": request.folder,
            "endpoint": endpoint,
        }
        with _bars(sys.stderr.isatty()):
            folder = client.snapshot_download(
                request.name, allow_patterns=request.allow, ignore_patterns=request.ignore, **at
            )
        # For the same reason: it keeps an old file, with a warning, when the hub falters at that file. A dry run looks
        # at what lies on the disk and asks the hub nothing about a file that has arrived.
        for file in wanted:
            seen: Any = client.hf_hub_download(request.name, file, dry_run=True, **at)
            if isinstance(seen, str) or seen.will_download or seen.commit_hash != info.sha:
                raise UserError(f"{file} of {request.name} did not arrive, an older one is in its place; {AGAIN}")
    return request.folder or Path(folder)


def _from_modelscope(request: Request) -> Path:
    if request.name.count("/") != 1:
        raise UserError(f"{request.name!r} is not a name on ModelScope; expected owner/name.")
    # Listing has four attempts of its own; times five in the transport below, a dead mirror is silent for a minute.
    os.environ.setdefault("MODELSCOPE_API_MAX_RETRIES", "1")
    os.environ.setdefault("MODELSCOPE_LOG_LEVEL", "WARNING")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # its bars have no switch; tqdm reads this when it is imported
    try:
        # The client under `modelscope.snapshot_download`, which adds two seconds and torch to the import.
        from modelscope_hub import HubApi, HubConfig
    except ImportError:
        raise UserError(
            "ModelScope's client is not installed: pip install modelscope, or 'unmask[modelscope]'"
        ) from None

    config = HubConfig()
    with _one_line(request, config.endpoint or ""):
        endpoint = HubApi(config=config).resolve_endpoint_for_read(request.name, repo_type=request.kind)
        api = HubApi(config=config, endpoint=endpoint)
        listed = api.list_repo_files(request.name, request.kind, revision=request.revision)
        files = {file.path: file for file in listed if file.type != "tree"}
        wanted = _wanted(request, {path: file.size or 0 for path, file in files.items()})
        _make_room(request, wanted)
        return api.download_repo(
            request.name,
            request.kind,
            revision=request.revision,
            local_dir=request.folder,
            file_list=[
                # A size of 0 also stands for one that the hub does not know.
                {"Path": path, "Size": files[path].size or None, "Sha256": files[path].sha256}
                for path in wanted
            ],
        )


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Hugging Face's progress bars on or off. Its outermost bar does not see for itself that nobody looks (2.4)."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _wanted(request: Request, sizes: dict[str, int]) -> dict[str, int]:
    """The files asked for, {path: bytes}; UserError if there is none, or if a path would leave the folder."""

    def matches(path: str, patterns: list[str] | None) -> bool:
        # A folder stands for all in it, as in both clients.
        return any(fnmatch.fnmatchcase(path, p + "*" if p.endswith("/") else p) for p in patterns or ())

    for path in sizes:
        if path.startswith(("/", "\\")) or ".." in Path(path).parts:
            raise UserError(f"{request.name} holds a file that would be written outside the folder: {path!r}.")
    found = {
        path: size
        for path, size in sizes.items()
        if (request.allow is None or matches(path, request.allow)) and not matches(path, request.ignore)
    }
    if not found:
        if not sizes:
            raise UserError(f"{request.name} on {HUBS[request.source]} holds no files.")
        asked = " ".join(request.allow or ["--no_weights"])
        some = ", ".join(sorted(sizes)[:5]) + (", …" if len(sizes) > 5 else "")
        raise UserError(f"no file of {request.name} fits {asked}; there are {some}.{nearest(asked, sizes)}")
    return found


def _make_room(request: Request, files: dict[str, int]) -> None:
    """UserError when the disk has less space than what is still to be fetched needs."""
    if request.folder is None:
        return

    def here(path: Path) -> int:
        return path.stat().st_size if path.is_file() else 0

    need = 0
    for name, size in files.items():
        done = here(request.folder / name)
        need += 0 if done == size else max(0, size - here(request.folder / (name + ".incomplete")))
    there = next(p for p in (request.folder, *request.folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise UserError(
            f"not enough space for {request.name} in {request.folder}: {need / 1e9:.2f} GB are still to be fetched, "
            f"{free / 1e9:.2f} GB are free."
        )


# ---------------------------------------------------------------------------------------------------------------------
# What went wrong, in one line

AGAIN = "what has arrived is kept, and the same command goes on from there."


@contextlib.contextmanager
def _one_line(request: Request, endpoint: str) -> Iterator[None]:
    """Turn what a client raises into a UserError; what is not understood goes through as it came."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = _reason(list(_causes(error)), request, endpoint)
        if text is None:
            raise
        raise UserError(text) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, those it holds for single files (ModelScope), and what led to each."""
    while error is not None:
        yield error
        for inner in getattr(error, "failed_files", {}).values():
            yield from _causes(inner)
        error = error.__cause__ or error.__context__


def _reason(errors: list[BaseException], request: Request, endpoint: str) -> str | None:
    """The line for the user, from the first error that says enough."""
    name, hub = request.name, request.source
    for error in errors:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left on the disk for {name} in {request.folder or 'the cache'}; {AGAIN}"
        if code in (errno.EACCES, errno.EROFS, errno.EPERM) and getattr(error, "filename", None):
            return f"cannot write {error.filename}: {error.strerror}."  # type: ignore[attr-defined]
    for error in errors:
        kind, short = type(error).__name__, _short(error)
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None) or getattr(error, "status_code", None)
        if kind == "OfflineModeIsEnabled":
            return "HF_HUB_OFFLINE is set, so nothing can be fetched; unset it, or name a folder that is on this disk."
        if kind == "GatedRepoError":
            page = f"{endpoint}/{'datasets/' if request.kind == 'dataset' else ''}{name}"
            return f"{name} is gated: ask for access at {page}, then log in with {LOGIN[hub]}."
        if kind == "RevisionNotFoundError":
            return f"{name} has no revision {request.revision!r}."
        if status in (401, 403, 404) or kind == "NotExistError":
            at = f" at revision {request.revision!r}" if request.revision else ""
            other = "drop --dataset" if request.kind == "dataset" else "add --dataset"
            elsewhere = "modelscope" if hub == "hf" else "hf"
            return (
                f"{endpoint} shows no {request.what} {name!r}{at} to you. Check the spelling; if it is private log in "
                f"with {LOGIN[hub]}; if it is of the other kind {other}; or try --from {elsewhere}."
            )
        if status == 429:
            return f"{endpoint} answers that there were too many requests; log in ({LOGIN[hub]}) or wait; {AGAIN}"
        if isinstance(status, int) and status >= 500:
            return f"{endpoint} is out of order (HTTP {status}); try later, or a mirror ({MIRROR[hub]}=URL); {AGAIN}"
        if kind in ("HFValidationError", "InvalidParameter"):
            return f"{name!r} is not a name on {HUBS[hub]}: {short}"
        if isinstance(error, json.JSONDecodeError) or kind == "FileMetadataError":
            return f"{endpoint} does not answer as a hub does; is {MIRROR[hub]} right?"
        # httpx, requests and urllib3 have no common ancestor; which of them a client uses changed twice.
        transport = type(error).__module__.split(".")[0].rstrip("2") in ("httpx", "httpcore", "requests", "urllib3")
        if isinstance(error, (ConnectionError, TimeoutError)) or transport:
            return (
                f"could not reach {endpoint} ({short}). Check the network; a mirror is set by {MIRROR[hub]}=URL, a "
                f"proxy by HTTPS_PROXY=URL; {AGAIN}"
            )
    first = errors[0]
    if isinstance(first, OSError) or type(first).__module__.startswith("modelscope_hub"):
        file, why = next(iter(getattr(first, "failed_files", {}).items()), (name, first))
        return f"{file} could not be fetched: {_short(why)} ({AGAIN[:-1]})"
    return None


def _short(error: BaseException) -> str:
    """The system's own words if they are in there (urllib3 wraps them three times), else the first line."""
    text = str(error).strip() or type(error).__name__
    own = re.search(r"\[Errno -?\d+\] [\w ,.-]+", text)
    return own[0] if own else text.splitlines()[0][:160]
