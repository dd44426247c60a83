"""What all tests share: no network, one thread a worker, test data, a tiny tokenizer, and a clean working tree after.

Out: fixtures `shared` (the folder of test data beside the project), `byte_tokenizer` (a vocabulary of 262), `model` and
`text` (what `unmask pretrain` needs).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent

# Set before anything imports torch, transformers or datasets, which read them once; xdist's workers inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg", COLUMNS="120"
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers already share the cores; threads of torch on top of that make every test slower.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", RAYON_NUM_THREADS="1")
else:
    # Nothing of the user's caches is read or written; the workers inherit this folder, and it goes at the end. So does
    # what torchrun (torch 2.13 never removes its torchelastic_*), datasets and killed processes leave in the system's
    # folder for temporary files; pytest's own stays there, for who wants to look into it.
    os.environ["HF_HOME"] = CACHE = tempfile.mkdtemp(prefix="unmask-tests-")
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="tmp-", dir=CACHE)
os.environ.pop("BASE_DATASETS_DIR", None)
os.environ.pop("BASE_MODELS_DIR", None)

# No wall clock: a slow or busy machine fails no test.
settings.register_profile("unmask", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unmask")

# What tools write beside the sources, and git ignores.
CACHES = {".git", "__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache", "unmask.egg-info"}
BEFORE: pytest.StashKey[set[Path]] = pytest.StashKey()


def files() -> set[Path]:
    """Every file under the project's root but the caches of tools and virtual environments."""
    found = set()
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in CACHES and not Path(folder, name, "pyvenv.cfg").exists()]
        found |= {Path(folder, name) for name in names}
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEFORE] = files()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fails a run whose tests left files in the working tree: they belong in `tmp_path`.

    Only where CI=true: elsewhere somebody may be working while the tests run, so there it is a remark.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    shutil.rmtree(CACHE, ignore_errors=True)
    left = sorted(str(path.relative_to(ROOT)) for path in files() - session.config.stash[BEFORE])
    if left:
        print(f"\nnew in the working tree since the tests began: {', '.join(left[:10])}{' …' if left[10:] else ''}")
        if os.environ.get("CI") == "true":
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, with the reason, where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the project: real data, the official code's answers. Skips where it is not there."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared with test data, which is not part of the repository")
    return folder


SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "mask_token": "<|mdm_mask|>",
}
TURNS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 tokens for bytes, then LLaDA's: start 256, end 257, mask 258, turn headers 259 and 260, end of turn 261."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL)
    tokenizer.add_special_tokens({"additional_special_tokens": TURNS})
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    return tokenizer


@pytest.fixture(autouse=True)
def no_settings_leak() -> Iterator[None]:
    """What a test changes in `os.environ` is undone: commands set variables for the libraries they call."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model folder of about 37k parameters, without weights."""
    from runs import make_model

    return make_model(tmp_path_factory.mktemp("model") / "tiny", byte_tokenizer)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl of 60 short documents."""
    from runs import make_text

    return make_text(tmp_path_factory.mktemp("text") / "text.jsonl")
