"""`unmask eval`: exams on disk, own questions, folders of results, runs that stop and go on, several processes."""

import csv
import functools
import io
import itertools
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from runs import make_model

import unmask
from unmask import benchmark, likelihood
from unmask.__main__ import main
from unmask.harness import flags, results
from unmask.measure import wilson

lm_eval = pytest.importorskip("lm_eval")

ROOT = Path(__file__).resolve().parent.parent
EXAMS = "cmmlu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_tokenizer):
    """A masked model with random weights and a context of 1,024 bytes."""
    folder = make_model(tmp_path_factory.mktemp("model") / "tiny", byte_tokenizer, max_sequence_length=1024)
    unmask.load(str(folder), fresh=True, seed=3).model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def few_tasks(monkeypatch):
    """lm-eval's index of 14,000 tasks takes seconds to read; here it has the folders that are asked for."""
    tasks = Path(lm_eval.__file__).parent / "tasks"
    mine = [str(tasks / name) for name in ("cmmlu", "gsm8k", "wikitext", "lambada", "humaneval_infilling")]
    monkeypatch.setattr(benchmark, "FURTHER", [*benchmark.FURTHER, *mine])
    monkeypatch.setattr(benchmark, "manager", functools.partial(quick, benchmark.manager))


def quick(real, wanted):
    import dataclasses

    data, wanted.tasks = wanted.tasks, dataclasses.replace(wanted.tasks, data="no defaults")
    try:
        return real(wanted)
    finally:
        wanted.tasks = data


@pytest.fixture
def cmmlu(shared):
    return str(shared / "data" / "exams" / "cmmlu.zip")


@pytest.fixture
def gsm8k(shared, tmp_path):
    """The first questions of GSM8K's own file as both splits, as the data set lies on the hub."""
    there = tmp_path / "data" / "openai" / "gsm8k" / "main"
    there.mkdir(parents=True)
    with (shared / "data" / "gsm8k" / "train.jsonl").open(encoding="utf-8") as file:
        lines = list(itertools.islice(file, 6))
    for split in ("train", "test"):
        (there / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(tmp_path / "data")


@pytest.fixture
def evaluated(capsys, tmp_path, folder):
    """Runs `unmask eval` into a folder of its own and gives its results, its samples and what was printed."""

    def run(*words, name="out", code=0, model=folder):
        out = tmp_path / name
        capsys.readouterr()
        assert main(["eval", "--model", model, "--output_path", str(out), *map(str, words)]) == code
        said = capsys.readouterr()
        if code:
            return said
        whole = json.loads((out / "results.json").read_text(encoding="utf-8"))
        samples = {
            path.stem.removeprefix("samples_"): [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
            ]
            for path in sorted(out.glob("samples_*.jsonl"))
        }
        return whole, samples, said

    return run


def questions(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def choices(tmp_path):
    rows = [{"query": f"Number {i}:", "choices": ["one", "two", "three", "f"], "gold": i % 4} for i in range(12)]
    return questions(tmp_path / "qa.jsonl", rows)


# ---------------------------------------------------------------------------------------------------------------------
# Exams


def planted(monkeypatch, tokenizer, chosen):
    """Every look answers the letter that `chosen` picks of the last question's four choices."""
    letters = {name: tokenizer.encode(name)[0] for name in "ABCD"}

    def look_at(self, inputs):
        for one in inputs:
            asked = tokenizer.decode(one.ids.tolist()).rpartition("\n\n")[2]
            lines = [line[3:] for line in asked.splitlines() if line[:3] in ("A. ", "B. ", "C. ", "D. ")]
            pick = letters["ABCD"[chosen(lines)]]
            one.wanted = {pair: (0.0 if pair[1] == pick else -9.0, pair[1] == pick) for pair in one.wanted}

    monkeypatch.setattr(likelihood.Scorer, "look_at", look_at)


def longest(lines):
    return max(range(len(lines)), key=lambda i: len(lines[i]))


@pytest.mark.parametrize("shots", [0, 2])
def test_a_planted_rule_scores_what_is_counted_by_hand(evaluated, cmmlu, monkeypatch, byte_tokenizer, shots):
    """A model that always takes the longest choice, on CMMLU from the zip."""
    planted(monkeypatch, byte_tokenizer, longest)
    subjects = ["logical", "arts"]
    names = [f"cmmlu_{subject}" for subject in subjects]
    whole, samples, _ = evaluated("--tasks", *names, "--local_data", cmmlu, "--num_fewshot", shots)
    with zipfile.ZipFile(cmmlu) as file:
        for subject, name in zip(subjects, names, strict=True):
            rows = list(csv.DictReader(io.TextIOWrapper(file.open(f"test/{subject}.csv"), "utf-8")))
            right = sum("ABCD"[longest([row[c].strip() for c in "ABCD"])] == row["Answer"] for row in rows)
            assert whole["results"][name]["acc,none"] == pytest.approx(right / len(rows))
            assert whole["results"][name]["sample_len"] == len(samples[name]) == len(rows)
            assert whole["n-shot"][name] == shots
    assert samples[names[0]][0]["arguments"][0][0].count("答案：") == 1 + shots
    assert "sha256" in str(whole["local_data"])


def test_an_untrained_model_guesses(evaluated, cmmlu):
    whole, _, _ = evaluated("--tasks", "cmmlu_logical", "cmmlu_arts", "--local_data", cmmlu, "--mc_num", 1)
    scores = [one for name, one in whole["results"].items()]
    right = sum(round(one["acc,none"] * one["sample_len"]) for one in scores)
    low, high = wilson(right, sum(one["sample_len"] for one in scores))
    assert low < 0.25 < high


def tutorials(folder, out, cmmlu):
    """The flags and the model_args of the tutorial; --limit, --local_data and one subject instead of 67 are ours."""
    return [
        *("--tasks", "cmmlu_arts", "--model", "llada", "--apply_chat_template"),
        *("--output_path", str(out), "--log_samples", "--max_batch_size", "4", "--model_args"),
        f"pretrained={folder},is_check_greedy=False,mc_num=1,max_length=1024,steps=256,block_size=64,cfg=0.0",
        *("--limit", "8", "--local_data", cmmlu),
    ]


def as_the_tutorial_has_it(out):
    lines = (out / "samples_cmmlu_arts.jsonl").read_text(encoding="utf-8").splitlines()
    sample = json.loads(lines[0])
    assert len(lines) == 8
    assert sample["arguments"][0][0].endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert [one["se"] for one in sample["details"]] == [0] * 4  # a letter is one token: exact in one pass
    whole = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert whole["settings"]["asked"]["decoding"] == {"steps": 256, "block_size": 64, "cfg_scale": 0.0}


def test_the_tutorials_flags_are_understood(folder, cmmlu, tmp_path):
    out = tmp_path / "out"
    assert main(["eval", *tutorials(folder, out, cmmlu)]) == 0
    as_the_tutorial_has_it(out)


@pytest.mark.slow
def test_the_tutorials_command_runs_verbatim_but_for_its_paths(folder, cmmlu, tmp_path):
    out = tmp_path / "out"
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu")
    done = subprocess.run(
        [*launch, "dllm/pipelines/llada/eval.py", *tutorials(folder, out, cmmlu)],
        cwd=ROOT,
        env={**os.environ, "HF_ALLOW_CODE_EVAL": "1", "HF_DATASETS_TRUST_REMOTE_CODE": "True"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "cmmlu_arts" in done.stdout
    as_the_tutorial_has_it(out)


# ---------------------------------------------------------------------------------------------------------------------
# Results


def test_a_result_carries_what_made_it(evaluated, choices, folder):
    whole, samples, said = evaluated("--data", choices, "--metric", "choice", "--mc_num", 2, "--limit", 5)
    assert whole["settings"]["asked"]["scoring"]["mc_num"] == 2
    assert whole["model"]["name"] == folder
    assert len(whole["model"]["fingerprint"]) == 16
    assert whole["packages"]["torch"] == torch.__version__
    assert whole["packages"]["lm_eval"] == lm_eval.__version__
    rows = samples["qa"]
    assert [row["doc_id"] for row in rows] == list(range(5))
    assert all(row["arguments"][0][0].startswith("Number") for row in rows)
    assert all(len(row["details"]) == 4 for row in rows)
    assert sum(row["acc"] for row in rows) / 5 == whole["results"]["qa"]["acc,none"]
    assert "qa" in said.out
    assert "--limit 5: not the whole task" in said.out


def test_a_result_is_repeated_from_its_folder(evaluated, choices, capsys, tmp_path):
    evaluated("--data", choices, "--metric", "choice", "--mc_num", 2)
    again = tmp_path / "again"
    assert main(["eval", "--from", str(tmp_path / "out"), "--output_path", str(again)]) == 0
    assert "the scores are those in" in capsys.readouterr().err
    one, other = ((path / "samples_qa.jsonl").read_text(encoding="utf-8") for path in (tmp_path / "out", again))
    assert one == other


def test_another_seed_is_said_to_change_the_scores_or_not(evaluated, choices, capsys, tmp_path):
    evaluated("--data", choices, "--metric", "choice", "--mc_num", 1)
    assert main(["eval", "--from", str(tmp_path / "out"), "--mc_num", "3"]) == 0
    said = capsys.readouterr().err
    assert "there, " in said or "the scores are those in" in said


def interrupted(monkeypatch, after):
    """Ctrl-C in the pass that follows so many."""
    real, passes = likelihood.Scorer.look_at, []

    def look_at(self, inputs):
        passes.append(len(inputs))
        if len(passes) > after:
            raise KeyboardInterrupt
        real(self, inputs)

    monkeypatch.setattr(likelihood.Scorer, "look_at", look_at)
    return passes


def test_stopped_and_gone_on_equals_uninterrupted(evaluated, choices, monkeypatch, tmp_path):
    words = ["--data", choices, "--metric", "choice", "--mc_num", 5, "--batch_size", 4]
    whole, samples, _ = evaluated(*words, name="whole")
    with monkeypatch.context() as patch:
        interrupted(patch, 7)
        evaluated(*words, name="stopped", code=130)
    stopped = tmp_path / "stopped"
    assert not (stopped / "results.json").exists()
    there = len((stopped / "responses-0.jsonl").read_text(encoding="utf-8").splitlines())
    assert 0 < there < 48
    with (stopped / "responses-0.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "cut sho')  # what a process that is killed leaves
    scored = []
    monkeypatch.setattr(
        likelihood.Scorer,
        "scores",
        lambda self, requests, real=likelihood.Scorer.scores: (scored.extend(requests), real(self, requests))[1],
    )
    again, other, said = evaluated(*words[:-1], 3, name="stopped")  # another batch changes no score
    assert f"{there} answers are there already" in said.err
    assert len(scored) == 48 - there
    assert again["results"] == whole["results"]
    for one, two in zip(samples["qa"], other["qa"], strict=True):
        mine, theirs = ([value for [[value, _]] in row["resps"]] for row in (one, two))
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_a_stopped_run_is_not_gone_on_with_under_other_settings(evaluated, choices, monkeypatch):
    words = ["--data", choices, "--metric", "choice", "--batch_size", 4]
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        evaluated(*words, "--mc_num", 5, code=130)
    said = evaluated(*words, "--mc_num", 6, code=2)
    assert "with other settings (asked)" in said.err
    evaluated(*words, "--mc_num", 6, "--overwrite")


@pytest.mark.slow
def test_one_process_equals_two(folder, shared, tmp_path):
    rows = [json.loads(line) for line in (shared / "data" / "gsm8k" / "train.jsonl").open(encoding="utf-8")][:7]
    qa = questions(tmp_path / "gsm.jsonl", [{"question": r["question"][:80], "answer": r["answer"]} for r in rows])
    found = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}"
        words = ["eval", "--model", folder, "--data", qa, "--metric", "contains", "--max_new_tokens", "12"]
        words += ["--output_path", str(out), "--device", "cpu", "--temperature", "0.7", "--seed", "3"]
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29631"]
        done = subprocess.run(
            [sys.executable, *(launch if processes > 1 else []), "-m", "unmask", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        whole = json.loads((out / "results.json").read_text(encoding="utf-8"))
        samples = [json.loads(line) for line in (out / "samples_gsm.jsonl").read_text(encoding="utf-8").splitlines()]
        assert whole["processes"] == processes
        found.append((whole["results"], [(row["doc_id"], row["resps"][0][0]) for row in samples]))
    assert found[0] == found[1]


def test_generation_is_counted_in_passes_and_tokens_a_second(evaluated, tmp_path):
    qa = questions(tmp_path / "qa.jsonl", [{"prompt": f"{i}", "answer": "x"} for i in range(3)])
    words = ["--data", qa, "--metric", "exact", "--max_new_tokens", 8, "--steps", 4]
    whole, samples, said = evaluated(*words)
    known = whole["decoding"]["qa"]
    assert (known["answers"], known["forward_passes"]) == (3, 12)
    assert known["tokens"] == sum(row["details"][0]["tokens"] for row in samples["qa"])
    assert known["tokens_per_second"] > 0
    assert "4.0 forward passes an answer" in said.out
    # nothing is right: three of the answers are shown
    assert "qa: exact is 0" in said.err
    assert said.err.count("question ") == 3


@pytest.mark.parametrize("how", [("--steps", 4), ("--rule", "threshold", "--cache", "dual", "--block_size", 4)])
def test_answers_to_gsm8k_are_those_of_unmask_sample_with_the_same_stops(evaluated, gsm8k, folder, tmp_path, how):
    words = ["--tasks", "gsm8k", "--local_data", gsm8k, "--num_fewshot", 1, "--max_new_tokens", 12, "--batch_size", 3]
    _, samples, _ = evaluated(*words, *how)
    rows = [row for row in samples["gsm8k"] if row["filter"] == "strict-match"]
    prompts = tmp_path / "prompts.jsonl"
    questions(prompts, [{"prompt": row["arguments"][0][0]} for row in rows])
    out = tmp_path / "rows.jsonl"
    stops = rows[0]["arguments"][0][1]["until"]
    flags_ = ["--max_new_tokens", 12, "--file", prompts, "--output", out, *how, "--stop_strings", *stops]
    assert main(["sample", "--model", folder, *map(str, flags_)]) == 0
    sampled = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6
    assert [row["completion"] for row in sampled] == [row["resps"][0][0] for row in rows]
    store = (tmp_path / "out" / "responses-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(row["tokens"] for row in sampled) == sorted(json.loads(line)["ids"] for line in store)


def test_generation_that_was_stopped_goes_on_to_the_same_answers(evaluated, gsm8k, monkeypatch, tmp_path):
    from unmask import decoding

    words = ["--tasks", "gsm8k", "--local_data", gsm8k, "--num_fewshot", 0, "--max_new_tokens", 8, "--batch_size", 2]
    words += ["--temperature", 0.9, "--seed", 4]
    whole, samples, _ = evaluated(*words, name="whole")
    real, steps = decoding.step, []

    def step(*given):
        steps.append(1)
        if len(steps) > 20:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "step", step)
        evaluated(*words, name="stopped", code=130)
    written = (tmp_path / "stopped" / "responses-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert 0 < len(written) < 6
    again, other, _ = evaluated(*words, name="stopped")
    assert again["results"] == whole["results"]
    assert [row["resps"] for row in other["gsm8k"]] == [row["resps"] for row in samples["gsm8k"]]


def test_the_perplexity_of_a_file_is_its_bound_in_windows(evaluated, shared, tmp_path):
    text = (shared / "data" / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:5000]
    (tmp_path / "wiki.txt").write_text(text, encoding="utf-8")
    whole, _, said = evaluated("--data", tmp_path / "wiki.txt", "--metric", "perplexity", "--mc_num", 2)
    known, size = whole["texts"]["wiki"], len(text.encode())
    assert (known["tokens"], known["windows"]) == (size, -(-size // 1024))  # a byte is a token here
    bits = known["nats_per_token"] / math.log(2)
    assert whole["results"]["wiki"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)
    assert known["se"] > 0
    assert f"wiki: ≤ {known['nats_per_token']:.4f} ± " in said.out


def test_gsm8k_is_asked_with_its_own_examples_and_filters(evaluated, gsm8k):
    words = ["--tasks", "gsm8k", "--local_data", gsm8k, "--limit", 2, "--num_fewshot", 1]
    whole, samples, _ = evaluated(*words, "--max_new_tokens", 6)
    assert {key for key in whole["results"]["gsm8k"] if key.startswith("exact_match,")} == {
        "exact_match,strict-match",
        "exact_match,flexible-extract",
    }
    row = samples["gsm8k"][0]
    assert row["arguments"][0][0].count("Question:") == 2
    assert {r["filter"] for r in samples["gsm8k"]} == {"strict-match", "flexible-extract"}


def test_a_preset_sets_what_was_published_and_shows_the_papers_figure(evaluated, gsm8k):
    words = ["--tasks", "gsm8k", "--local_data", gsm8k, "--limit", 1, "--preset", "llada-base"]
    # what the user says goes first
    words += ["--num_fewshot", 0, "--max_new_tokens", 4, "--steps", 2, "--block_size", 4]
    _, samples, said = evaluated(*words)
    assert "0.703" in said.out
    assert "published: the paper's figure" in said.out
    assert samples["gsm8k"][0]["details"][0]["forward_passes"] == 2


def test_an_adapter_is_scored_as_it_lies_and_as_it_is_merged(evaluated, choices, folder, tmp_path):
    from unmask import adapters, models

    loaded = models.load(folder)
    worn = adapters.attach(loaded.model, adapters.LoraArguments(r=4), base=folder)
    for name, weight in worn.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapters.save(worn, loaded.tokenizer, adapter)
    assert main(["merge", "--lora_path", str(adapter), "--merge_path", str(merged)]) == 0
    words = ["--data", choices, "--metric", "choice", "--mc_num", 2]
    worn_whole, worn_samples, _ = evaluated(*words, name="worn", model=str(adapter))
    whole, samples, _ = evaluated(*words, name="melted", model=str(merged))
    bare = evaluated(*words, name="bare")[0]
    for one, two in zip(worn_samples["qa"], samples["qa"], strict=True):
        mine, theirs = ([value for [[value, _]] in row["resps"]] for row in (one, two))
        assert mine == pytest.approx(theirs, abs=1e-3)
    assert worn_whole["results"] == whole["results"]
    assert len({one["model"]["fingerprint"] for one in (worn_whole, whole, bare)}) == 3


# ---------------------------------------------------------------------------------------------------------------------
# lm-eval's flags


def test_short_forms_and_values_of_several_words_are_understood():
    words = ["-t", "a", "-a", "pretrained=m", "mc_num=1", "-f", "5", "--apply_chat_template", "-s", "-L", "3"]
    assert flags.normalised(words) == [
        *("--tasks", "a", "--model_args", "pretrained=m,mc_num=1", "--num_fewshot", "5"),
        *("--apply_chat_template", "true", "--log_samples", "--limit", "3"),
    ]
    assert flags.normalised(["--seed", "0,1,2,3"]) == ["--harness_seed", "0,1,2,3"]


@pytest.mark.parametrize(
    ("text", "expected"), [(None, (0, 1234, 1234, 1234)), ("7", (7,) * 4), ("1,2,3", (1, 2, 3, 1234))]
)
def test_seeds_are_read_as_lm_eval_reads_them(text, expected):
    assert flags.seeds(text) == expected


def test_every_flag_of_lm_evals_run_is_known():
    """From its own parser, so that a new one is noticed."""
    import argparse
    import dataclasses

    from lm_eval._cli.run import Run

    parser = argparse.ArgumentParser()
    Run(parser.add_subparsers())
    run = next(action.choices["run"] for action in parser._actions if getattr(action, "choices", None))
    theirs = {option for action in run._actions for option in action.option_strings if option.startswith("--")}
    groups = (flags.TaskArguments, flags.ResultArguments, benchmark.asking.ReaderArguments)
    ours = {f"--{field.name}" for group in groups for field in dataclasses.fields(group)}
    refused = {"--trust_remote_code"}
    assert theirs - ours - refused <= {"--help", "--config", "--seed"}


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "neither --tasks nor --data"),
        (["--tasks", "gsm8", "--max_new_tokens", "4"], "no task 'gsm8'. Did you mean 'gsm8k'"),
        (["--tasks", "gsm8k", "--max_new_tokens", "4"], "cannot load the data set 'openai/gsm8k'"),
        (["--tasks", "no.yaml"], "no task file 'no.yaml'"),
        (["--tasks", "cmmlu_arts", "--local_data", "nowhere.zip"], "nowhere.zip"),
        (["--tasks", "gsm8k", "--limit", "0"], "--limit is 0"),
        (["--tasks", "gsm8k", "--preset", "llada-bas"], "llada-base"),
        (["--tasks", "gsm8k", "--seed", "1,2"], "--seed has 2 numbers"),
        (["--tasks", "gsm8k", "--samples", "[1]"], "--samples is"),
        (["--tasks", "gsm8k", "--model_args", "mc_nun=1"], "Did you mean 'mc_num'"),
        (["--tasks", "gsm8k", "--mc_num", "0"], "mc_num is 0"),
        (["--data", "no.jsonl"], "--data and --metric belong together"),
        (["--data", "no.jsonl", "--metric", "exact"], "no.jsonl"),
        (["--data", "no.txt", "--metric", "perplexity"], "no file 'no.txt'"),
        (["--tasks", "gsm8k", "--include_path", "nowhere"], "--include_path nowhere is no folder"),
        (["--tasks", "gsm8k", "--trust_remote_code", "true"], "would run code from the hub"),
        (["--tasks", "humaneval_local", "--max_new_tokens", "4"], "data set 'openai/openai_humaneval'"),
        (["--from", "nowhere"], "there is no results.json in it"),
        (["--tasks", "gsm8k", "--predict_only", "--output_path", ""], None),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(capsys, folder, words, says, tmp_path):
    if says is None:
        words, says = words[:-2], "--predict_only writes answers into --output_path"
        out = []
    else:
        out = ["--output_path", str(tmp_path / "out")] if "--from" not in words else []
    assert main(["eval", "--model", folder, *words, *out]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1]
    assert said[-1].startswith("unmask: ")
    assert not (tmp_path / "out").exists()


def test_code_is_not_run_without_leave(capsys, folder, shared, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    words = ["--tasks", "mbpp_local", "--local_data", str(shared / "data" / "mbpp" / "mbpp.jsonl"), "--limit", "1"]
    assert main(["eval", "--model", folder, *words]) == 2
    assert "export HF_ALLOW_CODE_EVAL=1" in capsys.readouterr().err


def test_with_leave_mbpp_is_scored_from_the_official_file(evaluated, shared, monkeypatch):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    words = ["--tasks", "mbpp_local", "--local_data", shared / "data" / "mbpp" / "mbpp.jsonl", "--limit", 2]
    whole, samples, _ = evaluated(*words, "--num_fewshot", 0, "--max_new_tokens", 8)
    assert whole["results"]["mbpp_local"]["pass@1,none"] == 0
    assert len(samples["mbpp_local"]) == 2


def test_a_preset_for_another_family_is_refused(capsys, tmp_path, byte_tokenizer, gsm8k):
    import transformers

    config = transformers.Qwen2Config(
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": 262, "max_position_embeddings": 64, "eos_token_id": 257},
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    byte_tokenizer.save_pretrained(tmp_path / "qwen")
    words = ["--tasks", "gsm8k", "--local_data", gsm8k, "--preset", "llada-base", "--limit", "1"]
    assert main(["eval", "--model", str(tmp_path / "qwen"), "--objective", "masked", *words]) == 2
    assert "is for models of the family llada" in capsys.readouterr().err


def test_a_folder_with_results_is_left_alone(evaluated, choices, tmp_path):
    words = ["--data", choices, "--metric", "choice", "--mc_num", 1]
    evaluated(*words)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    said = evaluated(*words, code=2)
    assert "holds results already" in said.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    assert "holds no evaluation" in evaluated(*words, name="other", code=2).err


def test_a_model_tuned_on_instructions_scored_by_likelihood_is_remarked_on(evaluated, choices, folder, tmp_path):
    import shutil

    tuned = tmp_path / "llada-instruct"
    shutil.copytree(folder, tuned)
    said = evaluated("--data", choices, "--metric", "choice", "--mc_num", 1, model=str(tuned))[2]
    assert "is tuned on instructions" in said.err
    assert "is tuned on instructions" not in evaluated("--data", choices, "--metric", "choice", name="b")[2].err


def test_a_score_of_exactly_chance_shows_three_questions():
    row = {"doc_id": 0, "arguments": [["p", "A"], ["p", "B"]], "resps": [[[-1.0, False]], [[-2.0, False]]]}
    rows = [{**row, "doc_id": i, "target": 0, "filter": "none", "metrics": ["acc"], "acc": i % 2} for i in range(4)]
    found = results.suspicious({"results": {"t": {"acc,none": 0.5}}}, {"t": rows})
    assert "exactly that of guessing" in found[0]
    assert sum("question" in line for line in found) == 3
    assert not results.suspicious({"results": {"t": {"acc,none": 0.75}}}, {"t": rows})
