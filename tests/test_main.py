"""The door: what a user sees who types `unmask`."""

import subprocess
import sys

import pytest

import unmask
from unmask.__main__ import COMMANDS, main


def test_alone_it_shows_the_commands_by_what_one_wants_to_do(capsys):
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in COMMANDS)
    assert told.index("Start") < told.index("Train") < told.index("Use")
    assert max(map(len, told.splitlines())) <= 80


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == unmask.__version__


def test_an_unknown_command_is_told_with_the_nearest(capsys):
    assert main(["pretain"]) == 2
    assert "no command 'pretain'. Did you mean `unmask pretrain`?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_refuses_an_unknown_option(command, capsys):
    words = ["pretrain"] if command == "prepare" else []
    with pytest.raises(SystemExit) as stop:
        main([command, *words, "--help"])
    assert stop.value.code == 0
    assert "[options]" in capsys.readouterr().out
    assert main([command, *words, "--no_such_option", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("unmask: ")
    assert "no_such_option" in error
    assert len(error.splitlines()) == 1


def test_a_reader_that_leaves_is_no_error():
    """`unmask … | head -1`."""
    script = "import sys; from unmask.__main__ import main; sys.exit(main(['pretrain', '--help']))"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{script}" | head -1; exit ${{PIPESTATUS[0]}}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("usage: unmask pretrain")


def test_importing_gives_the_public_names_and_no_others():
    assert set(unmask.__all__) <= set(dir(unmask))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unmask.nothing
    assert unmask.UserError is unmask.config.UserError
