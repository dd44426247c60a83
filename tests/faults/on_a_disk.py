"""A run on a file system that fails: `unshare -Urm python on_a_disk.py full|read-only FOLDER BYTES KEPT words…`.

In:  a folder to mount a small file system on; the size of a checkpoint; where the final model is to be copied.
Out: exit code 0 if the run did what it should: whole checkpoints only, one line, and on it goes when that is mended.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from unmask import checkpoint


def whole(run):
    found = checkpoint.numbered(run)
    problems = {path.name: checkpoint.fault(path, hashes=True) for path in found}
    assert not any(problems.values()), problems
    return [path.name for path in reversed(found)]


def main(fault, disk, size, kept, *words):
    disk, size, kept = Path(disk), int(size), Path(kept)
    room = 60 * size
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", str(disk)], check=True)
    run = disk / "run"
    ballast = disk / "ballast"
    if fault == "full":  # room for one checkpoint and a part of the next
        ballast.write_bytes(b"x" * (room - int(1.6 * size)))
    command = [sys.executable, "-m", "unmask", "pretrain", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if fault == "read-only":
        while not checkpoint.numbered(run) and process.poll() is None:
            time.sleep(0.001)
        # a file that is open for writing keeps a file system from becoming read-only for a moment
        while subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True, check=False).returncode:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
    said = process.communicate()[1]
    print(said)
    assert process.returncode == 2, process.returncode
    expected = "no space left on the disk" if fault == "full" else "Read-only file system"
    assert said.count("Training goes on, and tries again at the next.") >= 1, said
    assert expected in said.splitlines()[-1], said
    assert "Traceback" not in said, said
    before = whole(run)
    assert before[0] == "checkpoint-10", before
    assert not list(run.glob(".*.part")) or fault == "read-only", list(run.iterdir())
    if fault == "full":
        ballast.unlink()
    else:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    again = subprocess.run(
        [*command, "--resume_from_checkpoint", "auto"], stderr=subprocess.PIPE, text=True, check=False
    )
    print(again.stderr)
    assert again.returncode == 0, again.stderr
    assert f"going on from {before[-1]}" in again.stderr, again.stderr
    assert whole(run)[-1] == "checkpoint-40"
    shutil.copytree(run / "checkpoint-final", kept)


if __name__ == "__main__":
    main(*sys.argv[1:])
