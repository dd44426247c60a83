"""A folder is whole or not there, whenever the program that writes it is killed."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import sealed


def fill(folder: Path, text: str = "a") -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "one.bin").write_bytes(text.encode() * 1000)
    (folder / "inner" / "two.json").write_text(text)
    (folder / "empty").touch()
    return folder


def test_what_was_sealed_is_whole_and_says_what_it_is(tmp_path):
    folder = fill(tmp_path / "a")
    sealed.seal(folder, {"step": 3})
    found = sealed.read(folder)
    assert found["step"] == 3
    assert set(found["files"]) == {"one.bin", "inner/two.json", "empty"}
    assert sealed.fault(folder, hashes=True) is None
    sealed.seal(folder, {"step": 4})  # once more: the manifest is no part of itself
    assert set(sealed.read(folder)["files"]) == {"one.bin", "inner/two.json", "empty"}


@given(place=st.integers(0, 999), change=st.integers(1, 255))
@settings(deadline=None, max_examples=20)
def test_any_changed_byte_is_seen(place, change, tmp_path_factory):
    folder = fill(tmp_path_factory.mktemp("a") / "a")
    sealed.seal(folder, {})
    data = bytearray((folder / "one.bin").read_bytes())
    data[place] ^= change
    (folder / "one.bin").write_bytes(bytes(data))
    assert sealed.fault(folder, hashes=False) is None  # sizes alone do not tell
    assert "one.bin is not what was written" in sealed.fault(folder, hashes=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "one.bin").unlink(), "one.bin is missing"),
        (lambda folder: os.truncate(folder / "one.bin", 10), r"cut short (10 bytes instead of 1,000)"),
        (lambda folder: os.truncate(folder / sealed.MANIFEST, 10), "manifest.json is cut short"),
        (lambda folder: (folder / sealed.MANIFEST).write_text("[]"), "manifest.json is cut short"),
    ],
)
def test_damage_is_named(damage, said, tmp_path):
    folder = fill(tmp_path / "a")
    sealed.seal(folder, {})
    damage(folder)
    assert said in sealed.fault(folder, hashes=False)


def test_a_folder_of_others_without_a_manifest_has_no_fault(tmp_path):
    assert sealed.fault(fill(tmp_path / "a"), hashes=True) is None


def killed_at(monkeypatch, number):
    """The `number`th time that a file system is changed, the program is killed."""
    count = iter(range(number + 1))

    class Killed(BaseException):
        pass

    def dies(real):
        def change(*given, **more):
            if next(count, None) == number:
                raise Killed
            return real(*given, **more)

        return change

    for where, name in ((Path, "rename"), (os, "unlink"), (os, "rmdir")):
        monkeypatch.setattr(where, name, dies(getattr(where, name)))
    return Killed


@pytest.mark.parametrize("moment", range(12))
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new_one(moment, monkeypatch, tmp_path):
    folder, new = fill(tmp_path / "a", "old"), fill(tmp_path / ".a.part", "new")
    with monkeypatch.context() as changes:
        killed = killed_at(changes, moment)
        with contextlib.suppress(killed):
            sealed.publish(new, folder)
    for left in list(sealed.leftovers(tmp_path)):
        sealed.remove(left)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    texts = {(folder / "inner/two.json").read_text(), (folder / "one.bin").read_text()[:3]}
    assert texts in ({"old"}, {"new"})


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_while_a_folder_is_deleted_leaves_it_whole_or_out_of_sight(moment, monkeypatch, tmp_path):
    folder = fill(tmp_path / "a")
    sealed.seal(folder, {})
    with monkeypatch.context() as changes:
        killed = killed_at(changes, moment)
        with contextlib.suppress(killed):
            sealed.remove(folder)
    if folder.exists():
        assert sealed.fault(folder, hashes=True) is None
