"""How runs are started on several devices: accelerate's files in `configs/`, `scripts/launch.sh`, the job for Slurm."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from runs import curve, make_model, pretrain, run, wait_for_steps, words
from tiny import tiny

from unmask import estimation
from unmask.report import read_metrics

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "cpu": "NO",
    "ddp": "MULTI_GPU",
    "fsdp": "FSDP",
    "fsdp-offload": "FSDP",
    **dict.fromkeys(("zero1", "zero2", "zero3", "zero2-offload", "zero3-offload"), "DEEPSPEED"),
}
FULL = [name for name, kind in KINDS.items() if kind == "FSDP"]
DEEPSPEED = [name for name, kind in KINDS.items() if kind == "DEEPSPEED"]


def path(name: str) -> Path:
    return ROOT / "configs" / f"{name}.yaml"


# ---------------------------------------------------------------------------------------------------------------------
# accelerate's files


def understood(name: str, *flags: str) -> argparse.Namespace:
    """What accelerate's launcher makes of a file and flags."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    given = ["--config_file", str(path(name)), "--num_cpu_threads_per_process", "1", *flags, "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    args.deepspeed_fields_from_accelerate_config = ""
    return args


def told(name: str, *flags: str) -> tuple[argparse.Namespace, dict[str, str]]:
    """The same, after the launcher has prepared it for torch's, and the environment that processes get."""
    from accelerate.utils import launch

    args = understood(name, *flags)
    before = dict(os.environ)
    if KINDS[name] == "DEEPSPEED":
        command, made = launch.prepare_deepspeed_cmd_env(args)
        assert command is None, "torch's launcher, and no other program"
    else:
        made = launch.prepare_multi_gpu_env(args)
    return args, {key: value for key, value in made.items() if before.get(key) != value}


def test_there_is_a_file_for_every_way_that_is_estimated() -> None:
    there = {p.stem for p in (ROOT / "configs").glob("*.yaml") if "distributed_type" in p.read_text(encoding="utf-8")}
    assert there == set(KINDS) == {"cpu", *get_args(estimation.Sharding)}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_its_files(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path(name)))  # an unknown key would be refused
    assert (config.distributed_type.value, config.use_cpu) == (KINDS[name], name == "cpu")
    assert (config.num_machines, config.machine_rank, config.mixed_precision) == (1, 0, "no")
    flags = vars(launch_command_parser().parse_args(["script"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= flags.keys()  # these are looked at by nobody


@pytest.mark.parametrize("name", KINDS)
def test_no_key_stands_twice_and_each_says_what_it_is_for(name: str) -> None:
    """The tutorial's fsdp.yaml had fsdp_forward_prefetch twice. Plain keys explain themselves."""
    text = path(name).read_text(encoding="utf-8")
    assert text.startswith("# For `accelerate launch --config_file")
    assert all(len(line) <= 120 for line in text.splitlines())
    keys = re.findall(r"(?m)^ *(\w+):", text)
    assert len(keys) == len(set(keys))
    plain = {"num_machines", "machine_rank", "use_cpu", "main_training_function", "debug"}
    plain |= {"fsdp_config", "deepspeed_config", "distributed_type", "num_processes"}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if (key := re.match(r" *(\w+):", line)) and key[1] not in plain:
            assert "#" in line or lines[number - 1].lstrip().startswith("#"), f"{name}: {line}"


def test_the_tutorials_numbers_of_processes() -> None:
    """A file by itself starts as many as the tutorial's did, so that a step has as many rows."""
    numbers = {name: yaml.safe_load(path(name).read_text(encoding="utf-8"))["num_processes"] for name in KINDS}
    theirs = {"cpu": 1, "ddp": 1, "fsdp": 2, "zero1": 8, "zero2": 4, "zero3": 2}
    assert numbers == theirs | {name: 1 for name in KINDS if name.endswith("offload")}


@pytest.mark.parametrize("name", FULL)
def test_fsdp_is_version_2_and_reshards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    _, environment = told(name, "--num_processes", "2", "--main_process_port", "0")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.activation_checkpointing is False
    assert "SHARDED" in str(plugin.state_dict_type)
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy) == (name == "fsdp-offload")


@pytest.mark.parametrize("kind", ["llada", "qwen2"])
def test_fsdp_finds_the_layers_without_their_names(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    for key, value in told("fsdp", "--num_processes", "2", "--main_process_port", "0")[1].items():
        monkeypatch.setenv(key, value)
    model, plugin = tiny(kind), FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(model)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    found = [module for module in model.modules() if policy(module)]
    assert found == list(model.model.layers)


def test_a_flag_overrides_a_file() -> None:
    _, environment = told("fsdp", "--fsdp_state_dict_type", "FULL_STATE_DICT", "--main_process_port", "0")
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    _, environment = told("zero2", "--offload_optimizer_device", "cpu", "--main_process_port", "0")
    assert environment["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "cpu"


@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeeds_stage_is_the_names_and_the_rest_the_recipes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping and accumulation stay open, for the Trainer to fill in."""
    from accelerate.utils import DeepSpeedPlugin

    _, environment = told(name, "--num_processes", "2", "--main_process_port", "0")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    made: dict[str, Any] = DeepSpeedPlugin().deepspeed_config
    zero = made["zero_optimization"]
    assert zero["stage"] == int(name[4])
    assert zero["offload_optimizer"]["device"] == ("cpu" if name.endswith("offload") else "none")
    assert zero["offload_param"]["device"] == ("cpu" if name == "zero3-offload" else "none")
    assert zero["stage3_gather_16bit_weights_on_model_save"] is (name[4] == "3")
    open_to_the_recipe = ("gradient_clipping", "gradient_accumulation_steps", "train_batch_size")
    assert {made[key] for key in open_to_the_recipe} == {"auto"}


@pytest.mark.parametrize("backend", ["static", "c10d"])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "cpu"])
def test_every_file_serves_several_machines(name: str, backend: str) -> None:
    """By torch's launcher on each, which meets the others at the address given. Nothing of that stands in the files."""
    several = ["--num_machines", "2", "--machine_rank", "1", "--num_processes", "16", "--rdzv_backend", backend]
    args, _ = told(name, *several, "--main_process_ip", "node-0", "--main_process_port", "29511")
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert (args.rdzv_backend, args.rdzv_endpoint) == (backend, "node-0:29511")
    assert not {"rdzv_backend", "same_network"} & yaml.safe_load(path(name).read_text(encoding="utf-8")).keys()


# ---------------------------------------------------------------------------------------------------------------------
# scripts/launch.sh


STAND_IN = """#!/bin/sh
case "$1 $2" in
*current_accelerator*) echo "$DEVICE" "$(expr 8 / $3)"; exit ;;
*find_spec*) exit "${MISSING:-0}" ;;
*accelerate.commands.launch*) shift 2; echo "launch $TORCH_ELASTIC_SHUTDOWN_TIMEOUT" ;;
esac
printf "%s\\n" "$@"
"""


@pytest.fixture
def start(tmp_path: Path):
    """(flags, environment) → what `scripts/train-pt.sh` would have Python run, and what it says."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def start(*flags: str, code: int = 0, **environment: str) -> list[str]:
        surroundings = {**os.environ, "PYTHON": str(python), "DEVICE": "cuda", **environment}
        command = ["bash", str(ROOT / "scripts" / "train-pt.sh"), *flags]
        done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == 1, "one line says what is done, or what is wrong"
        return [*lines, *done.stdout.splitlines()]

    return start


@pytest.mark.parametrize("name", KINDS)
def test_a_way_is_chosen_by_its_name(name: str, start) -> None:
    said, launch, *words = start("--max_steps", "3", ACCELERATE_CONFIG=name)
    assert launch == "launch 900"
    assert words[:4] == ["--quiet", "--config_file", f"configs/{name}.yaml", "--num_processes"]
    assert words[-2:] == ["--max_steps", "3"]
    assert f"configs/{name}.yaml" in said


def test_a_way_can_be_a_file_of_ones_own(start, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text(path("zero2").read_text(encoding="utf-8"))
    assert str(mine) in start(ACCELERATE_CONFIG=str(mine))
    assert "configs/zero3.yaml" in start(ACCELERATE_CONFIG="configs/zero3.yaml")


def test_processes_are_counted_over_all_machines_and_threads_on_one(start) -> None:
    several = {"NUM_MACHINES": "2", "MACHINE_RANK": "1", "MAIN_PROCESS_IP": "node-0", "NUM_PROCESSES": "16"}
    words = start(ACCELERATE_CONFIG="fsdp", **several)
    text = " ".join(words)
    assert "--num_processes 16 --num_cpu_threads_per_process 1 --num_machines 2 --machine_rank 1" in text
    assert "--main_process_ip node-0 --main_process_port 29500 --rdzv_backend static examples" in text
    text = " ".join(start(RDZV_BACKEND="c10d", MAIN_PROCESS_PORT="1234", **several))
    assert "--config_file configs/ddp.yaml" in text
    assert "--main_process_port 1234 --rdzv_backend c10d" in text


TWO = {"NUM_MACHINES": "2", "NUM_PROCESSES": "4"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_CONFIG": "fsdb"}, "no ACCELERATE_CONFIG 'fsdb'; it can be one of: cpu ddp fsdp"),
        ({"ACCELERATE_CONFIG": "my/zero2.yaml"}, "no ACCELERATE_CONFIG 'my/zero2.yaml'"),
        ({"ACCELERATE_CONFIG": "llada-100M-pt"}, "it has no distributed_type"),
        ({"ACCELERATE_CONFIG": "cpu", "NUM_PROCESSES": "2"}, "is for one process"),
        ({"ACCELERATE_CONFIG": "fsdp", "DEVICE": "cpu"}, "needs GPUs"),
        ({"ACCELERATE_CONFIG": "fsdp", "DEVICE": "mps"}, "a Mac has one"),
        ({"ACCELERATE_CONFIG": "zero2", "MISSING": "1"}, "needs DeepSpeed: pip install -e '.[deepspeed]'"),
        ({"NUM_PROCESSES": "two"}, "NUM_PROCESSES is 'two'; it must be a whole number above 0"),
        ({"NUM_PROCESSES": "0"}, "NUM_PROCESSES is '0'"),
        ({"NUM_MACHINES": "-1"}, "NUM_MACHINES is '-1'"),
        (TWO, "set MACHINE_RANK, from 0 on"),
        ({**TWO, "MACHINE_RANK": "0"}, "set MAIN_PROCESS_IP"),
        ({**TWO, "MACHINE_RANK": "2"}, "they are counted from 0 to 1"),
        ({**TWO, "MACHINE_RANK": "b"}, "it must be a whole number, 0 or more"),
        ({**TWO, "MACHINE_RANK": "0", "MAIN_PROCESS_IP": "a", "NUM_PROCESSES": "3"}, "cannot share them evenly"),
        ({**TWO, "MACHINE_RANK": "0", "MAIN_PROCESS_IP": "a", "RDZV_BACKEND": "x"}, "it can be static or c10d"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(environment: dict[str, str], said: str, start) -> None:
    (line,) = start(code=2, **environment)
    assert said in line


# ---------------------------------------------------------------------------------------------------------------------
# scripts/train.slurm.sh


PROGRAMS = {
    "srun": """
printf "%s\\n" "$@" > "$SEEN/srun"
env | grep -E "^(NUM_|MAIN_|ACCELERATE_CONFIG|CONFIG)" > "$SEEN/environment"
if [ -n "${LONG:-}" ]; then
  trap 'exit 143' TERM
  echo $$ > "$SEEN/pid"
  for _ in $(seq 300); do sleep 0.1; done
fi
exit "${CODE:-0}"
""",
    "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" $HOSTS; else echo "$@" >> "$SEEN/scontrol"; fi\n',
    "scancel": 'echo "$@" > "$SEEN/scancel"\nkill -TERM "$(cat "$SEEN/pid")"\n',
}


class Cluster:
    """Stand-ins for Slurm's commands, which write down what is asked of them."""

    def __init__(self, folder: Path) -> None:
        self.seen, programs = folder / "seen", folder / "programs"
        for made in (self.seen, programs):
            made.mkdir()
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (programs / name).chmod(0o755)
        spool = folder / "slurm_script"  # where Slurm runs its copy
        spool.write_text((ROOT / "scripts" / "train.slurm.sh").read_text(encoding="utf-8"))
        self.command = ["bash", str(spool)]
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "NUM_", "CONFIG"))},
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "SEEN": str(self.seen),
            "HOSTS": "node-3 node-4",
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NODELIST": "node-[3-4]",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_CPUS_PER_TASK": "32",
        }

    def run(self, *flags: str, code: int = 0, **environment: str) -> str:
        surroundings = self.environment | environment
        done = subprocess.run([*self.command, *flags], env=surroundings, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done.stderr

    def read(self, name: str) -> list[str]:
        file = self.seen / name
        return file.read_text().splitlines() if file.exists() else []

    @property
    def training(self) -> list[str]:
        """The flags of the training command, behind the recipe."""
        words = self.read("srun")
        return words[words.index("train.slurm.sh") + 3 :]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_job_starts_one_launcher_a_machine(cluster: Cluster) -> None:
    flags = ["--accelerate_config", "fsdp", "--script_path", "examples/llada/sft.py", "--num_train_epochs", "4"]
    cluster.run(*flags)
    words = cluster.read("srun")
    assert words[:3] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    launcher = 'MACHINE_RANK=$SLURM_NODEID exec bash scripts/launch.sh "$@"'
    script = ["train.slurm.sh", "examples/llada/sft.py", "configs/llada-8b-sft.yaml", "--num_train_epochs", "4"]
    assert words[words.index("bash") :] == ["bash", "-c", launcher, "bash", *script]
    assert set(cluster.read("environment")) == {
        "ACCELERATE_CONFIG=fsdp",
        "CONFIG=configs/llada-8b-sft.yaml",
        "NUM_MACHINES=2",
        "NUM_PROCESSES=8",
        "MAIN_PROCESS_IP=node-3",
        "MAIN_PROCESS_PORT=20077",
    }


def test_a_job_has_the_recipe_of_its_script_or_yours(cluster: Cluster) -> None:
    for script, recipe in (
        ("examples/llada/pt.py", "configs/llada-100M-pt.yaml"),
        ("examples/qwen/sft.py", "configs/qwen2.5-7b-alpaca.yaml"),
        ("examples/custom_objective.py", ""),
    ):
        cluster.run("--script_path", script)
        assert cluster.read("srun")[-2:] == [script, recipe]
    cluster.run("--configs=configs/qwen3-8b-alpaca.yaml", "--script_path=examples/qwen/sft.py")
    assert cluster.read("srun")[-2:] == ["examples/qwen/sft.py", "configs/qwen3-8b-alpaca.yaml"]


def test_a_job_goes_on_where_there_is_a_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    resumes = ["--overwrite_output_dir", "false", "--resume_from_checkpoint", "auto"]
    folder = ["--output_dir", str(tmp_path / "run")]
    cluster.run(*folder)
    assert cluster.training == folder, "nothing is there"
    cluster.run(*folder, SLURM_RESTART_COUNT="1")
    assert cluster.training == [*folder, "--overwrite_output_dir", "true"], "begun, and stopped before it had saved"
    (tmp_path / "run" / "checkpoint-20").mkdir(parents=True)
    cluster.run(*folder)
    assert cluster.training == [*folder, *resumes]
    anew = [*folder, "--overwrite_output_dir"]
    cluster.run(*anew)
    assert cluster.training == anew, "who asks to begin anew does"
    cluster.run(*anew, SLURM_RESTART_COUNT="1")
    assert cluster.training == [*anew, *resumes], "and not each time the job comes back"


def test_a_jobs_folder_may_stand_in_its_recipe(cluster: Cluster, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path}/run # here\noverwrite_output_dir: true\n")
    (tmp_path / "run" / "checkpoint-20").mkdir(parents=True)
    cluster.run("--config", str(recipe))
    assert cluster.training == []
    cluster.run("--config", str(recipe), SLURM_RESTART_COUNT="2")
    assert cluster.training[-2:] == ["--resume_from_checkpoint", "auto"]


def test_a_job_whose_time_is_up_saves_and_comes_back(cluster: Cluster) -> None:
    surroundings = cluster.environment | {"LONG": "1"}
    job = subprocess.Popen(cluster.command, env=surroundings, stderr=subprocess.PIPE, text=True)
    for _ in range(300):
        if cluster.read("pid"):
            break
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 143, said
    assert cluster.read("scancel") == ["--signal=TERM 77"], "to the launchers: srun itself would kill them"
    assert cluster.read("scontrol") == ["requeue 77"]
    assert "back into the queue" in said


def test_a_job_that_fails_or_ends_does_not_come_back(cluster: Cluster) -> None:
    cluster.run()
    cluster.run(code=3, CODE="3")
    assert not cluster.read("scontrol")


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        ([], {"SLURM_JOB_ID": ""}, "send it with: sbatch scripts/train.slurm.sh"),
        ([], {"SLURM_SUBMIT_DIR": "/"}, "send the job from the repository's folder"),
        ([], {"SLURM_GPUS_ON_NODE": ""}, "send with --gres=gpu:N"),
        (["--accelerate_config"], {}, "--accelerate_config has no value"),
        (["--script_path", "examples/none.py"], {}, "no --script_path examples/none.py"),
    ],
)
def test_a_job_that_cannot_be_is_one_line(
    flags: list[str], environment: dict[str, str], said: str, cluster: Cluster
) -> None:
    told = cluster.run(*flags, code=2, **environment)
    assert said in told
    assert len(told.splitlines()) == 1


def test_sbatch_reads_the_jobs_options() -> None:
    """They stand before the first command, each on a line of its own, and ask for time to save."""
    text = (ROOT / "scripts" / "train.slurm.sh").read_text(encoding="utf-8")
    options = re.findall(r"(?m)^#SBATCH (--[\w-]+(?:=\S+)?)$", text)
    assert len(options) == text.count("#SBATCH")
    assert text.rindex("#SBATCH") < text.index("\nset -euo pipefail")
    assert {"--ntasks-per-node=1", "--signal=B:USR1@600", "--requeue"} <= set(options)


# ---------------------------------------------------------------------------------------------------------------------
# Real runs of several processes, on the CPU


@pytest.fixture
def small(tmp_path: Path, byte_tokenizer, text: Path) -> tuple[Path, str]:
    """A model folder, and data."""
    return make_model(tmp_path / "model", byte_tokenizer), f"{text}[train:50,test:10]"


SAME = {"bf16": False, "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-3}


def launched(*flags: str, **environment: str) -> list[str]:
    start = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_cpu_threads_per_process", "1"]
    return [*start, *flags, "-m", "unmask", "pretrain"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_two_machines_have_the_losses_of_one(backend: str, small: tuple[Path, str], tmp_path: Path) -> None:
    """Two launchers, as on two machines, of one process each."""
    alone = pretrain(*small, tmp_path / "alone", **SAME)
    out = tmp_path / "two"
    given = words(*small, out, **{**SAME, "gradient_accumulation_steps": 1})
    port = 20000 + os.getpid() % 12000
    flags = [
        "--config_file",
        str(path("ddp")),
        "--num_processes",
        "2",
        "--num_machines",
        "2",
        "--rdzv_backend",
        backend,
    ]
    flags += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    machines = [
        subprocess.Popen(
            [*launched(*flags, "--machine_rank", str(rank)), *given],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    ends = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], ends
    for one, two in zip(curve(alone, "loss"), curve(read_metrics(out), "loss"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_zero_has_the_losses_of_one_process(name: str, small: tuple[Path, str], tmp_path: Path) -> None:
    """With the recipe's clipping and accumulation, of which the file says nothing."""
    pytest.importorskip("deepspeed", reason="pip install deepspeed: ZeRO's tests need it")
    if torch.cuda.is_available():
        pytest.skip("on a CPU")
    same = {**SAME, "max_grad_norm": 0.1, "gradient_accumulation_steps": 4}
    alone = pretrain(*small, tmp_path / "alone", **same)
    out = tmp_path / "shared"
    given = words(*small, out, **{**same, "gradient_accumulation_steps": 2})
    done = run(
        [*launched("--config_file", str(path(name)), "--num_processes", "2", "--main_process_port", "0"), *given],
        DS_ACCELERATOR="cpu",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(curve(alone, "loss"), curve(read_metrics(out), "loss"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_launcher_that_is_told_to_stop_lets_its_processes_save(small: tuple[Path, str], tmp_path: Path) -> None:
    """What the job for Slurm relies on: SIGTERM to the launcher alone, a checkpoint of all processes, and going on."""
    out = tmp_path / "run"
    recipe = tmp_path / "recipe.yaml"
    given = words(*small, out, **{**SAME, "max_steps": 100_000})
    settings = dict(zip(given[::2], given[1::2], strict=True))
    recipe.write_text("".join(f"{key.removeprefix('--')}: {value}\n" for key, value in settings.items()))
    surroundings = {**os.environ, "PYTHON": sys.executable, "CONFIG": str(recipe), "NUM_PROCESSES": "2"}
    surroundings |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1", "ACCELERATE_CONFIG": "ddp"}
    command = ["bash", str(ROOT / "scripts" / "train-pt.sh")]
    process = subprocess.Popen(command, env=surroundings, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    wait_for_steps(process, out)
    process.send_signal(signal.SIGTERM)  # bash has given its place to the launcher
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    (saved,) = out.glob("checkpoint-*")
    assert (saved / "optimizer.pt").exists()
    assert f"stopped at step {saved.name.split('-')[1]}" in said
