"""What a run tells: figures people can read, files that are whole or not there."""

import json

import pytest

from unmask import report


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75, "1:15"), (3700, "1:01:40"), (59.6, "1:00")])
def test_durations(seconds, text):
    assert report.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(999, "999"), (1234, "1.23k"), (1_234_567, "1.23M"), (8e9, "8G")])
def test_amounts(value, text):
    assert report.amount(value) == text


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ZeroDivisionError), report.written_aside(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    report.write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), report.written_aside(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    (tmp_path / report.METRICS).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [line["step"] for line in report.read_metrics(tmp_path)] == [1]


def test_lines_after_the_checkpoint_are_forgotten(tmp_path):
    (tmp_path / report.METRICS).write_text("".join(f'{{"step": {i}}}\n' for i in range(1, 6)))
    report.forget_after(tmp_path, 3)
    assert [line["step"] for line in report.read_metrics(tmp_path)] == [1, 2, 3]


def test_the_smoothed_curve_of_a_constant_is_that_constant():
    assert report.smoothed([2.0] * 5) == pytest.approx([2.0] * 5)


def test_the_curve_is_a_picture(tmp_path):
    lines: list = [{"step": i, "loss": 5 - i / 10} for i in range(1, 20)]
    lines.append({"step": 19, "eval_loss": 3.2, "eval_loss_se": 0.1})
    (tmp_path / report.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report.draw_curve(tmp_path, "a run").read_bytes().startswith(b"\x89PNG")


def test_one_point_is_no_curve(tmp_path):
    (tmp_path / report.METRICS).write_text('{"step": 1, "loss": 2.0}\n')
    assert report.draw_curve(tmp_path, "a run") is None
    assert not (tmp_path / report.CURVE).exists()


def test_a_bar_is_silent_where_there_is_no_terminal(capsys):
    bar = report.Bar("training", 10)
    bar.to(3, "loss 2.0")
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_validation_is_said_as_a_bound_or_as_a_value():
    metrics = {"eval_loss": 3.5, "eval_loss_se": 0.01, "eval_bits_per_byte": 1.5, "eval_bits_per_byte_se": 0.004}
    assert report.validation_line(metrics, "bound") == "≤ 3.5000 ± 0.0100 nats/token, 1.5000 ± 0.0040 bits/byte"
    assert report.validation_line(metrics, "exact").startswith("= 3.5")


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    report.say("hello")
    assert capsys.readouterr().err == ""


def test_digests_do_not_depend_on_the_order_of_keys():
    assert report.digest({"a": 1, "b": 2}) == report.digest({"b": 2, "a": 1}) != report.digest({"a": 1, "b": 3})
