#!/usr/bin/env python3
"""The project's environment, made with nothing but Python: `python3 scripts/setup.py [--extras dev] [--venv .venv]`.

In:  the Python that runs this, `pyproject.toml`, `constraints.txt`, and pip's own configuration (index, proxy, cache).
Out: a virtual environment (`.venv` beside `pyproject.toml`, or the folder in $VENV) that has Unmask in it, editable.

A torch that is new enough is kept, in that environment or in the Python that runs this: only its owner knows which
build fits the machine. A second run does nothing unless `pyproject.toml`, `constraints.txt` or the extras have changed.
"""
# No `from __future__ import annotations`: an older Python must come as far as the line that says what is wrong.

import argparse
import contextlib
import difflib
import errno
import hashlib
import importlib.util
import json
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from pathlib import Path

OLDEST_PYTHON = (3, 11)  # transformers 5.23 needs it
OLDEST_TORCH = (2, 7)
ROOT = Path(__file__).resolve().parent.parent
STAMP = "unmask-setup.json"
LOG = "unmask-setup.log"

if sys.version_info < OLDEST_PYTHON:
    sys.exit(
        f"setup: error: Unmask needs Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer; {sys.executable} is "
        f"{platform.python_version()}. Take a newer one: `python3.12 scripts/setup.py`, or `make PYTHON=python3.12 …`."
    )

MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
started = time.monotonic()


class Failed(Exception):
    """What went wrong and what to do about it, in one line."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def took() -> str:
    return f"{time.monotonic() - started:.1f} s"


# ---------------------------------------------------------------------------------------------------------------------
# What is there already


def known_extras() -> list[str]:
    """The names under [project.optional-dependencies]."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted(project["optional-dependencies"])


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ask(python: Path, code: str) -> str | None:
    """What `code` prints when that interpreter runs it, or None when it fails."""
    try:
        # Away from the project: a folder named `unmask` or `torch` where the user stands must not answer.
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=python.parent)
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def new_enough(version: str | None) -> bool:
    """Whether a version of torch such as `2.9.1+cu128` is one that Unmask can use."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST_TORCH


def torch_here() -> str | None:
    """The version of torch in the Python that runs this."""
    from importlib import metadata

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def torch_in(python: Path) -> str | None:
    """The version of torch that another interpreter sees."""
    return ask(python, "import importlib.metadata as m; print(m.version('torch'))")


def read_stamp(folder: Path) -> dict:
    """What the last run that went well wrote; empty if there was none."""
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def fingerprint() -> str:
    """Changes when an environment made earlier may no longer be right: what is asked for, the project's folder."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*parts, os.fsencode(ROOT)])).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Making it


def create(folder: Path, keep: str | None) -> None:
    """A new environment; with `keep`, the version of a torch to be seen from it, it looks into this Python as well."""
    if importlib.util.find_spec("ensurepip") is None:
        raise Failed(
            f"this Python has no `ensurepip`, so no environment can be made with it. On Debian and Ubuntu: "
            f"`sudo apt-get install python{MINOR}-venv`."
        )
    say(f"making {folder} with Python {platform.python_version()}")
    within = sys.prefix != sys.base_prefix
    venv.EnvBuilder(
        system_site_packages=bool(keep) and not within, symlinks=os.name != "nt", with_pip=True, clear=folder.exists()
    ).create(folder)
    if keep and within:
        # `system_site_packages` looks past a virtual environment to the Python under it; a path file does not.
        inside = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
        (inside / "outer_environment.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def constraints(keep: str | None) -> str:
    """The text of constraints.txt; with `keep`, a version of torch, that one in the place of ours."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return re.sub(r"(?m)^torch==.*$", f"torch=={keep}", text) if keep else text


def doing(line: str) -> str | None:
    """What a line of pip's output says it is doing, in a few words; None if nothing worth showing."""
    for pattern, words in (
        (r"(?:Downloading|Using cached) (\S+\.(?:whl|tar\.gz|zip)\S*)(.*)", "fetching {0}{1}"),
        (r"(?:Collecting|Requirement already satisfied:) ([\w.-]+)", "looking at {0}"),
        (r"(?:Preparing|Building) (?:editable )?(?:metadata|wheel)", "building Unmask's own entry"),
        (r"Installing collected packages: (.+)", "installing {n} packages"),
    ):
        found = re.search(pattern, line)
        if found:
            return words.format(*(g.rsplit("/", 1)[-1] for g in found.groups()), n=line.count(",") + 1)
    return None


def install(python: Path, extras: list[str], constraint: Path, log: Path) -> None:
    """pip, with a line of progress; all that it says goes to `log`."""
    target = f".[{','.join(extras)}]" if extras else "."
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-compile",
        "-c",
        str(constraint),
        "-e",
        target,
    ]
    # PIP_USER: a user's `user = true` cannot hold inside an environment. The rest of pip's configuration is the user's.
    surroundings = {**os.environ, "PIP_USER": "0", "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=surroundings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    said: list[str] = []
    now, shown, last = "asking the package index", "", time.monotonic()
    live, width = sys.stdout.isatty(), 0
    with log.open("w", encoding="utf-8") as record:
        record.write(f"$ {' '.join(command)}\n")
        while True:
            try:
                line = lines.get(timeout=0.5)
                if line is None:
                    break
                record.write(line)
                said.append(line.rstrip())
                now = doing(line) or now
            except queue.Empty:
                pass
            if live:
                width = shutil.get_terminal_size().columns - 1
                print("\r" + f"setup: {took():>7}  {now}".ljust(width)[:width], end="", flush=True)
            elif now != shown and (time.monotonic() - last > 15 or now.startswith("installing")):
                say(f"{now} ({took()})")
                shown, last = now, time.monotonic()
    if live:
        print("\r" + " " * width + "\r", end="", flush=True)
    if process.wait():
        raise Failed(why(said, log.parent) + f" pip's own words: {log}")


def write_bytecode(python: Path) -> None:
    """Where Python is told to write none by itself: each start would compile thousands of files anew, for 7 seconds."""
    say(f"writing bytecode, since PYTHONDONTWRITEBYTECODE is set ({took()})")
    where = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    ).stdout.strip()
    # some packages ship files that no Python can read; that is nothing to stop for
    subprocess.run(
        [str(python), "-m", "compileall", "-q", "-q", "-j", "0", where], stdout=subprocess.DEVNULL, check=False
    )


def why(lines: list[str], folder: Path) -> str:
    """The output of pip, or of ensurepip, as one sentence: what failed and what to do."""
    text = "\n".join(lines)
    missing = re.search(r"No matching distribution found for ([^\s(]+)", text)
    unreachable = re.search(
        r"NameResolutionError|name resolution|getaddrinfo failed|Failed to establish a new connection|"
        r"Network is unreachable|ConnectTimeoutError|Read timed out|ProxyError|SSLError|Connection refused",
        text,
    )
    if re.search(r"No space left on device|Errno 28|not enough space on the disk|Disk quota exceeded", text):
        return full(folder)
    if unreachable:
        return (
            f"the package index does not answer ({unreachable[0]}). Look at the network and at pip's index and proxy "
            f"(`python -m pip config list`), then run this again: it goes on where it stopped."
        )
    if missing:
        return (
            f"the package index has no {missing[1]} for Python {MINOR} on {sysconfig.get_platform()}. "
            f"Try another Python: `python3.12 scripts/setup.py --venv another-folder`."
        )
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["pip said nothing"]
    return f"pip failed: {errors[0].removeprefix('ERROR:').strip()}"


def full(folder: Path) -> str:
    """What to say when a disk has no more room: the environment's, or the one pip unpacks on."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    left = [f"{shutil.disk_usage(p).free / 1e9:.1f} GB left at {p}" for p in (there, Path(tempfile.gettempdir()))]
    return f"the disk is full: {', '.join(left)}. It takes about 2 GB, and 8 GB with torch for a GPU."


# ---------------------------------------------------------------------------------------------------------------------


def set_up(folder: Path, extras: set[str]) -> None:
    """Bring the environment in `folder` to where Unmask and `extras` are installed in it."""
    known = known_extras()
    for extra in sorted(extras - set(known)):
        near = difflib.get_close_matches(extra, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise Failed(f"no extra {extra!r}; there are {', '.join(known)}.{hint}")
    stamp, now, python = read_stamp(folder), fingerprint(), python_of(folder)
    version = ask(python, "import sys; print(*sys.version_info[:2])")
    alive = version is not None
    if stamp.get("fingerprint") == now and extras <= set(stamp["extras"]) and ask(python, "import unmask") is not None:
        say(f"{folder} is up to date ({took()})")
        return
    ours = stamp or (folder / "pyvenv.cfg").is_file() or (folder / "conda-meta").is_dir()
    if folder.exists() and not ours and (folder.is_file() or any(folder.iterdir())):
        raise Failed(f"{folder} is there and is no virtual environment. Choose another folder with --venv.")
    if version and tuple(map(int, version.split())) < OLDEST_PYTHON:
        raise Failed(f"{folder} has Python {version.replace(' ', '.')}. Delete it, or choose another with --venv.")
    if not alive and ours and not stamp:
        raise Failed(f"the Python of {folder} does not start. Delete that folder, or choose another with --venv.")

    if alive:
        if ask(python, "import pip") is None:  # uv makes environments without it
            subprocess.run([python, "-m", "ensurepip"], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        found = torch_in(python)
        keep = found if new_enough(found) and found != stamp.get("own_torch") else None
        where = str(folder)
        extras = extras | set(stamp.get("extras", ()))  # an environment never loses what it had
    else:
        keep = torch_here() if new_enough(torch_here()) else None
        where = sys.prefix
        create(folder, keep)
    if keep:
        say(f"keeping torch {keep} of {where}")
    (folder / STAMP).unlink(missing_ok=True)  # a run that stops half-way must not look like one that went well
    names = sorted(extras)
    say(f"installing Unmask{' with ' * bool(names)}{', '.join(names)}; the first time takes a few minutes")
    with tempfile.TemporaryDirectory() as temporary:
        constraint = Path(temporary) / "constraints.txt"
        constraint.write_text(constraints(keep), encoding="utf-8")
        install(python, names, constraint, folder / LOG)
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        write_bytecode(python)
    stamp = {"fingerprint": now, "extras": names, "own_torch": None if keep else torch_in(python)}
    aside = folder / f"{STAMP}.new"
    aside.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    aside.replace(folder / STAMP)
    say(f"done in {took()}: {folder}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="setup.py", description="Make an environment and install Unmask in it.")
    parser.add_argument("--extras", default="", metavar="A,B", help=f"further parts: {', '.join(known_extras())}")
    parser.add_argument("--venv", metavar="FOLDER", help="the environment's folder [$VENV, or the project's .venv]")
    options = parser.parse_args(argv)
    chosen = options.venv or os.environ.get("VENV")
    folder = Path(os.path.abspath(Path(chosen).expanduser())) if chosen else ROOT / ".venv"
    problem = ""
    try:
        set_up(folder, set(filter(None, re.split(r"[\s,]+", options.extras))))
    except Failed as error:
        problem = str(error)
    except OSError as error:
        out_of_room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        problem = full(folder) if out_of_room else f"{error.strerror}: {error.filename}"
    except subprocess.CalledProcessError as error:  # ensurepip, run here or by venv
        said = (error.output or b"").decode(errors="replace").strip().splitlines()
        problem = f"no environment could be made in {folder}: {why(said, folder)}"
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print()
        problem = "interrupted. Run it again to go on."
    if problem:
        print(f"setup: error: {problem}", file=sys.stderr, flush=True)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
