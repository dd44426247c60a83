"""Folders that are whole or not there: written aside, hashed, flushed to the disk, renamed.

In:  a folder that was written aside.  Out: the same under its own name, with a manifest; why a folder is not whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
THREADS = 4  # hashing lets other threads work, and one alone is slower than a good disk


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Write the manifest of what a folder holds, and flush all of it to the disk.

    Args:
        about: what else to note; `files` is the manifest's own: name → {"bytes", "sha256"}.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    paths = _files(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(_hash, paths))
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": found}
        for path, found in zip(paths, hashes, strict=True)
    }
    (folder / MANIFEST).write_text(json.dumps({**about, "files": files}, indent=1) + "\n", encoding="utf-8")
    flush(folder)


def flush(folder: Path) -> None:
    """All that a folder holds survives a loss of power."""
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the real one's place when all went well, and is gone when not."""
    part = folder.with_name(f".{folder.name}.part")
    remove(part)
    try:
        yield part
        flush(part)
        publish(part, folder)
    finally:
        remove(part)


def publish(aside: Path, folder: Path) -> None:
    """Give a folder its name; one that had it before is gone only when the new one is there."""
    before = folder.with_name(f".{folder.name}.before")
    remove(before)
    if folder.exists():
        folder.rename(before)
    aside.rename(folder)
    _flush(folder.parent)
    remove(before)


def remove(folder: Path) -> None:
    """Delete a folder; killed in the middle, what is left does not look like one that is whole."""
    if not folder.exists():
        return
    gone = folder if folder.name.startswith(".") else folder.with_name(f".{folder.name}.gone")
    if gone != folder:
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def leftovers(parent: Path) -> Iterator[Path]:
    """What a program that was killed while it wrote or deleted left behind, and the only copy of something that had it.

    `publish` may be killed between its two renamings: then the earlier folder takes its name again.
    """
    for path in parent.glob(".*.before") if parent.is_dir() else ():
        own = path.with_name(path.name.removeprefix(".").removesuffix(".before"))
        if not own.exists():
            path.rename(own)
    for pattern in (".*.part", ".*.gone", ".*.before"):
        yield from (path for path in parent.glob(pattern) if path.is_dir())


def read(folder: Path) -> dict[str, Any] | None:
    """A folder's manifest; None where there is none. ValueError for one that is no manifest."""
    if not (folder / MANIFEST).is_file():
        return None
    found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise ValueError("no files")
    return found


def fault(folder: Path, hashes: bool) -> str | None:
    """Why a folder is not what its manifest says; None if it is, or has none.

    Args:
        hashes: read every file; else only its size is looked at.
    """
    try:
        manifest = read(folder)
    except (ValueError, OSError):  # json's and Unicode's errors are ValueErrors
        return f"its {MANIFEST} is cut short"
    if manifest is None:
        return None
    files: dict[str, Any] = manifest["files"]
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"its {name} is missing"
        size = path.stat().st_size
        if size != wanted["bytes"]:
            what = "cut short" if size < wanted["bytes"] else "longer than it was"
            return f"its {name} is {what} ({size:,} bytes instead of {wanted['bytes']:,})"
    if not hashes:
        return None
    with ThreadPoolExecutor(THREADS) as pool:
        for (name, wanted), found in zip(files.items(), pool.map(_hash, (folder / n for n in files)), strict=True):
            if found != wanted["sha256"]:
                return f"its {name} is not what was written (delete its {MANIFEST} if you changed it on purpose)"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error)


def _flush(path: Path) -> None:
    """What was written there, or under which names, survives a loss of power. Windows cannot open folders."""
    try:
        number = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)
