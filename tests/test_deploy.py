"""deploy/: what a container, a service and a proxy say to the server is so."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import test_readme as readme

from unmask.serve import LimitArguments

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"


def lines_of(file: str) -> list[str]:
    """The Dockerfile's instructions, one a line."""
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / file).read_text(encoding="utf-8"))
    return text.replace("\\\n", " ").splitlines()


def asked(words: list[str]) -> tuple[Any, Any]:
    """(server, limits) of a command line, whose every flag exists."""
    assert words[:2] == ["unmask", "serve"]
    _, server, limits, *_ = readme.settings_of(words[1:]).groups
    return server, limits


def test_the_image_starts_the_server_on_the_port_that_it_shows_and_asks_for_its_health() -> None:
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines_of("Dockerfile") if line.strip()}
    server, _ = asked(json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"]))
    assert (server.host, str(server.port)) == ("0.0.0.0", said["EXPOSE"])
    assert f"http://127.0.0.1:{server.port}/health" in said["HEALTHCHECK"]
    assert said["STOPSIGNAL"] == "SIGTERM"
    user = said["USER"].split(":")[0]
    assert int(user) > 0


def test_the_image_holds_what_a_build_needs_and_neither_data_nor_keys() -> None:
    copied = [line.split()[1:-1] for line in lines_of("Dockerfile") if line.startswith("COPY") and "--from" not in line]
    seen = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in seen
    allowed = {line[1:] for line in seen if line.startswith("!")}
    assert {name for names in copied for name in names} == allowed
    assert all((ROOT / name).exists() for name in allowed)
    assert not re.search(r"(?i)api_key|token=|secret", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture
def service() -> configparser.SectionProxy:
    read = configparser.ConfigParser(strict=False, interpolation=None)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(DEPLOY / "unmask.service", encoding="utf-8")
    return read["Service"]


def test_the_service_gets_more_time_to_stop_than_the_server_takes(service: configparser.SectionProxy) -> None:
    _, limits = asked(["unmask", *shlex.split(service["ExecStart"])[1:]])
    assert not limits.api_key
    assert int(service["TimeoutStopSec"]) > limits.drain_seconds
    assert service["EnvironmentFile"]


def test_systemd_understands_the_service() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    told = subprocess.run(
        ["systemd-analyze", "verify", str(DEPLOY / "unmask.service")], capture_output=True, text=True, timeout=60
    )
    about = [line for line in told.stderr.splitlines() if "unmask.service" in line]
    assert all("is not executable" in line for line in about)  # the program, which is not in /opt here


def test_the_proxy_lets_through_what_the_server_takes_and_waits_as_long() -> None:
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    limits = LimitArguments()
    assert int(re.findall(r"client_max_body_size (\d+)m;", text)[0]) << 20 == limits.max_body
    assert int(re.findall(r"proxy_read_timeout (\d+)s;", text)[0]) > limits.max_seconds
    assert "proxy_buffering off;" in text
    assert text.count("{") == text.count("}")
