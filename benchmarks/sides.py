"""Two or more ways of doing the same, side by side: each run in a process of its own, in turn, again and again.

In:  for each way a command that prints one line of JSON, with `seconds` and whatever else is to be kept.
Out: rounds of such lines, with the share of the machine that other processes took meanwhile; their medians and ratios.

A round in which others took more than MOST_BY_OTHERS of the machine is run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

MOST_BY_OTHERS = 0.10
TRIES = 3  # times the rounds wanted, before what was disturbed is reported as that

Round = dict[str, dict[str, Any]]
"""Way → what its run printed."""


def busy() -> tuple[float, float] | None:
    """Seconds that the machine's cores have worked, and have been there; None where no /proc tells."""
    with contextlib.suppress(OSError):
        line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]
        ticks = [int(n) / os.sysconf("SC_CLK_TCK") for n in line]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
    return None


def run(command: Sequence[str], **environment: str) -> dict[str, Any]:
    """What a command prints in its last line, and `others`: the share of the machine that other processes took."""
    before, mine = busy(), os.times()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, env={**os.environ, **environment})
    after, now = busy(), os.times()
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
    if before is None or after is None:
        return found
    own = sum(now[:4]) - sum(mine[:4])
    others = max(0.0, after[0] - before[0] - own) / (after[1] - before[1])
    return found | {"others": round(others, 3)}


def rounds(ways: dict[str, Callable[[], dict[str, Any]]], count: int, check: Callable[[Round], None]) -> list[Round]:
    """So many undisturbed rounds of all ways; the order of the ways is turned about in every second one.

    Args:
        check: ends the program where the ways do not come to the same.
    """
    made: list[Round] = []
    for number in range(TRIES * count):
        order = list(ways) if number % 2 == 0 else list(reversed(ways))
        found = {name: ways[name]() for name in order}
        found = {name: found[name] for name in ways}
        check(found)
        told = (f"{name} {one['seconds']:.3g} s (others {one.get('others', 0):.0%})" for name, one in found.items())
        print(" · ".join(told), file=sys.stderr, flush=True)
        if max(one.get("others", 0) for one in found.values()) <= MOST_BY_OTHERS:
            made.append(found)
        if len(made) == count:
            return made
    sys.exit(f"only {len(made)} of {count} rounds were undisturbed; leave the machine alone and type it again.")


def medians(made: list[Round], what: Sequence[str], base: str) -> dict[str, Any]:
    """Medians of each figure by way, and by how much of `base` each other way differs, round by round."""
    ways = list(made[0])

    def of(way: str, name: str) -> float:
        return round(float(statistics.median(one[way][name] for one in made)), 4)

    found: dict[str, Any] = {"rounds": len(made)}
    found |= {name: {way: of(way, name) for way in ways} for name in what}
    for way in ways:
        if way != base:
            times = [one[way]["seconds"] / one[base]["seconds"] for one in made]
            found[f"{way} / {base}"] = {
                "seconds": [round(f(times), 2) for f in (statistics.median, min, max)],
                "peak_bytes": round(
                    statistics.median(one[base]["peak_bytes"] / one[way]["peak_bytes"] for one in made), 3
                ),
            }
    return found


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, versions."""
    cpu = platform.processor()
    with contextlib.suppress(OSError, IndexError):
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name\t: ")[1].split("\n")[0]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
