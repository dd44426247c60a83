"""lm-eval's socket: what the harness asks is answered as `transformers`, `unmask chat` and `sample` answer it."""

import json
import math
import pickle

import pytest
import torch
import transformers
from runs import make_model

import unmask
from unmask import decoding, validate
from unmask.__main__ import main
from unmask.batches import VALIDATION, Collate, Ticket
from unmask.canvas import Canvas
from unmask.config import UserError
from unmask.harness import writing
from unmask.harness.arguments import asked, parse_model_args
from unmask.harness.prompts import Pair, Rendered
from unmask.likelihood import Scorer, windows
from unmask.objectives import masked
from unmask.template import Template

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from unmask.evaluate import Unmask

LENGTH = 192


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_tokenizer):
    """A masked model with random weights and a context of 192 tokens."""
    folder = make_model(tmp_path_factory.mktemp("model") / "tiny", byte_tokenizer, max_sequence_length=LENGTH)
    unmask.load(str(folder), fresh=True, seed=3).model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory, byte_tokenizer):
    """A causal model with random weights, as `transformers` saves it."""
    folder = tmp_path_factory.mktemp("causal")
    config = transformers.LlamaConfig(
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"vocab_size": 262, "max_position_embeddings": 64, "initializer_range": 0.2},
        **{"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257},
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return str(folder)


def ours(folder, **more):
    return Unmask.create_from_arg_obj({"pretrained": folder, **more}, {"device": "cpu"})


def ask(kind, *arguments, task="t", doc=0, idx=0):
    return Instance(kind, {}, arguments, idx, metadata=(task, doc, 1))


PAIRS = [
    ("Question: what?\nAnswer:", " A"),
    ("Question: what?\nAnswer:", " B"),
    ("Question: what?\nAnswer: ", "C"),  # the space belongs to the continuation
    ("Once upon a time", " there was a fox."),
    ("", "No context at all"),
    ("long " * 30, "and the end"),  # cut from its beginning
    ("ä ü 中文", " 答案"),
]


# ---------------------------------------------------------------------------------------------------------------------
# Causal models


@pytest.mark.filterwarnings("ignore")
def test_a_causal_model_scores_as_lm_evals_own_hf_does(causal):
    from lm_eval.models.huggingface import HFLM

    mine, theirs = ours(causal), HFLM(pretrained=causal, device="cpu", dtype="float32", batch_size=3)
    requests = [ask("loglikelihood", *pair, doc=i) for i, pair in enumerate(PAIRS)]
    assert mine.causal
    for (nats, greedy), (wanted, best) in zip(
        mine.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True), strict=True
    ):
        assert nats == pytest.approx(wanted, abs=1e-3)
        assert greedy == best
    texts = ["A short one.", "One that is longer than the model. " * 9, "x" * 64, "y" * 65]
    requests = [ask("loglikelihood_rolling", text, doc=i) for i, text in enumerate(texts)]
    wanted = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert mine.loglikelihood_rolling(requests) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_causal_model_writes_as_lm_evals_own_hf_does(causal):
    from lm_eval.models.huggingface import HFLM

    mine, theirs = ours(causal), HFLM(pretrained=causal, device="cpu", dtype="float32")
    how = {"until": ["I"], "max_gen_toks": 12, "do_sample": False}
    requests = [ask("generate_until", text, how, doc=i) for i, text in enumerate(["Once upon", "Three", "a b c d"])]
    assert mine.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)


def test_settings_of_unmasking_are_refused_by_a_causal_model(causal):
    with pytest.raises(UserError, match="block_size belongs to models that unmask"):
        ours(causal, block_length=8)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts


def test_a_chat_prompt_is_that_of_unmask_chat_and_its_header_stays_out_of_the_target(folder, byte_tokenizer):
    """lm-eval moves the two line ends of the header into the target, so that a letter becomes three tokens."""
    model = ours(folder)
    rendered = model.apply_chat_template([{"role": "user", "content": "A or B? <|mdm_mask|>"}])
    messages = [{"role": "user", "content": "A or B? <|mdm_mask|>"}]
    assert list(rendered.ids) == Template(byte_tokenizer).prompt(messages)
    assert byte_tokenizer.mask_token_id not in rendered.ids
    assert rendered.endswith("<|end_header_id|>\n\n")
    pair = model.prompts.pair(rendered, "A", None)
    assert (pair.given, pair.target) == (rendered.ids, (byte_tokenizer.encode("A")[0],))
    again = pickle.loads(pickle.dumps(rendered))
    assert (again, again.ids) == (rendered, rendered.ids)


def test_the_beginning_of_an_answer_stands_behind_its_header(folder, byte_tokenizer):
    model = ours(folder)
    history = [{"role": "user", "content": "Say."}, {"role": "assistant", "content": "It is"}]
    begun, opened = model.apply_chat_template(history, False), model.apply_chat_template(history[:1])
    assert begun == opened + "It is"
    assert begun.ids == (*opened.ids, *byte_tokenizer.encode("It is"))


def test_names_of_special_tokens_in_a_text_are_letters(folder):
    model = ours(folder)
    assert max(model.tok_encode("<|mdm_mask|><|endoftext|>")) < 256
    model.prompts.remember(["<|mdm_mask|>"])
    assert max(model.tok_encode("<|mdm_mask|>")) < 256


def test_many_texts_at_once_are_encoded_as_each_alone(folder):
    model = ours(folder)
    texts = ["", " A", "a\n\nb", "中文 <|eot_id|>", *[str(i) * i for i in range(30)]]
    model.prompts.remember(texts)
    together = [model.prompts.encode(text) for text in texts]
    model.prompts.forget()
    assert together == [model.prompts.encode(text) for text in texts]


# ---------------------------------------------------------------------------------------------------------------------
# Masked models


def test_four_letters_cost_one_row_and_have_no_error(folder, monkeypatch):
    rows = []
    monkeypatch.setattr(
        Scorer, "look_at", lambda self, inputs, real=Scorer.look_at: (rows.extend(inputs), real(self, inputs))
    )
    model = ours(folder, mc_num=1)
    found = model.loglikelihood([ask("loglikelihood", "Which?", letter, idx=i) for i, letter in enumerate("ABCD")])
    assert len(rows) == 1
    assert len({nats for nats, _ in found}) == 4
    assert [one["se"] for one in model.details.values()] == [0] * 4


def test_scores_hang_on_neither_order_nor_batch_nor_company(folder):
    requests = [ask("loglikelihood", *pair, doc=i) for i, pair in enumerate(PAIRS)]
    together = ours(folder, mc_num=3, batch_size=5).loglikelihood(requests)
    backwards = ours(folder, mc_num=3, batch_size=2).loglikelihood(requests[::-1])[::-1]
    alone = [ours(folder, mc_num=3).loglikelihood([one])[0] for one in requests[:4]]
    assert [nats for nats, _ in together] == pytest.approx([nats for nats, _ in backwards], abs=1e-4)
    assert [nats for nats, _ in together[:4]] == pytest.approx([nats for nats, _ in alone], abs=1e-4)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in backwards]


def test_a_target_is_greedy_if_and_only_if_greedy_decoding_writes_it(folder):
    model = ours(folder)
    prompts = [f"{i} Once" for i in range(3)]
    model.generate_until(
        [ask("generate_until", text, {"until": [], "max_gen_toks": 6}, doc=i) for i, text in enumerate(prompts)]
    )
    written = [tuple(record["ids"]) for record in model.store.answers.values()]
    given = [tuple(model.tok_encode(text)) for text in sorted(prompts, reverse=True)]
    pairs = {}
    for prompt in given:
        for target in written:
            [row] = Canvas.after([prompt], len(target), model.writer.predict.mask_id).rows
            decoding.prepare(model.writer.predict, [row])
            while not row.finished:
                decoding.step(model.writer.predict, [row])
            pairs[Pair(prompt, target)] = tuple(row.answer.tolist()) == target
    assert sum(pairs.values()) == 3
    found = dict(writing.greedy(model.writer, list(pairs), 0.0, 2))
    assert found == pairs


def test_one_draw_for_a_target_of_several_tokens_is_warned_of(folder):
    model = ours(folder, mc_num=1)
    model.loglikelihood([ask("loglikelihood", "Which?", " ABC"), ask("loglikelihood", "Which?", "A", doc=1)])
    [(line, count)] = model.remarks.items()
    assert count == 1
    assert "mc_num=1" in line


def test_an_untrained_model_pays_log_vocabulary_for_each_token_of_a_long_text(folder, shared):
    """Weights near nothing say nothing: the head is all but flat."""
    model = ours(folder, mc_num=2)
    with torch.no_grad():
        model.loaded.model.get_output_embeddings().weight.mul_(0.01)
    text = (shared / "data" / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:3000]
    [nats] = model.loglikelihood_rolling([ask("loglikelihood_rolling", text)])
    tokens = len(model.tok_encode(text))
    assert -nats / tokens == pytest.approx(math.log(262), rel=2e-3)


def test_the_bound_of_a_long_text_is_trainings_own_validation_number(folder, shared):
    """The same windows, the same noise, the same number."""
    text = (shared / "data" / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    model = ours(folder, mc_num=2, seed=11)
    ids = model.tok_encode(text)[: 7 * LENGTH]
    text = model.tokenizer.decode(ids)
    rows = [list(target) for _, target in windows(ids, LENGTH, None)]
    objective = masked.Objective(masked.Settings(), model.writer.predict.mask_id)
    seats = [({"input_ids": row}, Ticket(i, 2 * i + draw, VALIDATION)) for i, row in enumerate(rows) for draw in (0, 1)]
    held = validate.rows(
        model.writer.predict, objective, [Collate(objective, seed=11, pad_id=257, exact=True)(seats)], None
    )
    loss = validate.summary(held)["loss"]
    [nats] = model.loglikelihood_rolling([ask("loglikelihood_rolling", text, doc=0)])
    assert -nats / len(ids) == pytest.approx(loss, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Generation


@pytest.mark.parametrize(
    "how",
    [
        {"steps": 8, "block_size": 8},
        {"rule": "threshold", "threshold": 0.1, "cache": "dual", "block_size": 8},
        {"temperature": 0.8, "remasking": "random", "seed": 5},
    ],
    ids=["reference", "threshold-dual", "drawn"],
)
def test_answers_are_those_of_unmask_sample_token_for_token(folder, tmp_path, how):
    prompts = ["Once upon a time", "Question: 2 + 2?\nAnswer:", "x"]
    model = ours(folder, max_new_tokens=16, batch_size=2, **how)
    requests = [ask("generate_until", text, {"until": []}, doc=i) for i, text in enumerate(prompts)]
    texts = model.generate_until(requests)
    written = [model.store.answers[model.draft(one, 0).key]["ids"] for one in requests]
    flags = [f"--{name}={value}" for name, value in how.items()]
    given = [word for text in prompts for word in ("-p", text)]
    out = tmp_path / "rows.jsonl"
    assert main(["sample", "--model", folder, "--max_new_tokens", "16", "--output", str(out), *flags, *given]) == 0
    sampled = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["tokens"] for row in sampled] == written
    assert [row["completion"] for row in sampled] == texts


def test_an_answer_ends_before_the_first_of_its_stop_strings_wherever_blocks_end(folder):
    prompts = [f"{i} Once upon a time" for i in range(4)]
    how = {"max_gen_toks": 24}
    free = ours(folder, block_size=24).generate_until(
        [ask("generate_until", text, {"until": [], **how}, doc=i) for i, text in enumerate(prompts)]
    )
    for text, whole in zip(prompts, free, strict=True):
        if len(whole) < 6:
            continue
        stop = whole[3:5]
        [cut] = ours(folder, block_size=24).generate_until([ask("generate_until", text, {"until": [stop], **how})])
        assert cut == whole[: whole.index(stop)]
        # two letters that stand on both sides of a block's edge end it as well
        [blocks] = ours(folder, block_size=4).generate_until([ask("generate_until", text, {"until": [], **how})])
        edge = blocks[3:5]
        [cut] = ours(folder, block_size=4).generate_until([ask("generate_until", text, {"until": edge, **how})])
        assert cut == blocks[: blocks.index(edge)]


def test_what_the_user_asks_goes_before_what_the_task_asks(folder):
    model = ours(folder, max_new_tokens=4)
    draft = model.draft(
        ask("generate_until", "x", {"until": "\n", "max_gen_toks": 99, "do_sample": False, "temperature": 0.7}), 0
    )
    assert (draft.new, draft.until, draft.settings) == (4, ["\n"], {})  # nothing is drawn without do_sample
    drawn = model.draft(ask("generate_until", "x", {"do_sample": True, "temperature": 0.7, "top_p": 0.9}), 0)
    assert drawn.settings == {"temperature": 0.7, "top_p": 0.9}


def test_a_question_asked_again_is_answered_anew_where_chance_plays(folder):
    how = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "until": []}
    twice = [ask("generate_until", "Once", how)] * 2
    one, other = ours(folder).generate_until(twice)
    assert one != other
    assert ours(folder).generate_until(twice) == [one, other]


# ---------------------------------------------------------------------------------------------------------------------
# Other projects' words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pretrained=m,is_check_greedy=False,mc_num=1,max_length=1024,steps=256,block_size=64,cfg=0.0", "tutorial"),
        ("model_path=m,gen_length=256,steps=256,block_length=32,cfg=0.5", {"block_size": 32, "cfg_scale": 0.5}),
        ("model_path=m,gen_length=256,steps=8,block_length=32,use_cache=True,threshold=0.9,show_speed=True", "fast"),
        ("pretrained=m,dual_cache=True,use_cache=True,factor=1.0", {"rule": "factor", "cache": "dual", "factor": 1.0}),
        ("pretrained=m,max_new_tokens=9,diffusion_steps=4,alg=entropy", {"rule": "entropy", "steps": 4}),
        ("pretrained=m,suppress_tokens=[126081;126348],begin_suppress_tokens=[5,6]", "ids"),
        ("pretrained=m,dtype=auto,trust_remote_code=False,temperature=None", {}),
    ],
)
def test_settings_are_understood_as_every_project_spells_them(words, expected):
    found = asked(parse_model_args(words))
    assert found.model.model == "m"
    if expected == "tutorial":
        assert (found.scoring.mc_num, found.scoring.is_check_greedy, found.scoring.max_length) == (1, False, 1024)
        expected = {"steps": 256, "block_size": 64, "cfg_scale": 0.0}
    elif expected == "fast":  # where a confidence decides, Fast-dLLM's steps bound nothing
        assert found.scoring.max_new_tokens == 256
        expected = {"rule": "threshold", "threshold": 0.9, "cache": "prefix", "block_size": 32}
    elif expected == "ids":
        expected = {"suppress_tokens": [126081, 126348], "begin_suppress_tokens": [5, 6]}
    assert expected.items() <= found.decoding.items()
    assert "steps" not in found.decoding or "steps" in expected or "gen_length" in words


def test_an_adapter_is_named_as_lm_eval_names_it():
    found = asked(parse_model_args("pretrained=base,peft=adapter"))
    assert (found.model.model, found.model.base_model_path) == ("adapter", "base")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("pretrained=m,mc_nun=1", "unknown name 'mc_nun'. Did you mean 'mc_num'"),
        ("pretrained=m,mc_num=0", "mc_num is 0"),
        ("pretrained=m,mc_num=x", "must be a whole number"),
        ("pretrained=m,block_size=4,block_length=8", "mean the same setting"),
        ("pretrained=m,cfg=1,cfg_scale=2", "mean the same setting"),
        ("pretrained=m,trust_remote_code" + "=True", "would run code from the hub"),
        ("pretrained", "expected key=value"),
        ("{broken", "not valid JSON"),
        ("pretrained=m,alg=best", "alg=best; there are"),
        ("pretrained=m,batch_size=0", "batch_size is 0"),
        ("pretrained=m,mc_num=1,mc_num=2", "gives mc_num twice"),
        ("pretrained=m,temperature=-1", "temperature is -1"),
    ],
)
def test_words_that_mean_nothing_are_refused_in_one_line(words, says):
    with pytest.raises(UserError) as error:
        asked(parse_model_args(words))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Bad requests


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (ask("loglikelihood", "a", ""), "task t, question 0: an empty continuation"),
        (ask("loglikelihood", "a", "b" * 500), "the target has 500 tokens, and the model holds 192"),
        (ask("loglikelihood_rolling", ""), "an empty text"),
        (ask("generate_until", "a", {"until": []}), "nobody says how many tokens"),
        (ask("generate_until", "a", {"max_gen_toks": 192}), "192 new tokens leave no room"),
        (ask("generate_until", "a", {"max_gen_toks": 2, "num_beams": 4}), "num_beams=4, which means nothing here"),
    ],
)
def test_what_cannot_be_answered_names_the_question(folder, one, says):
    with pytest.raises(UserError) as error:
        getattr(ours(folder), one.request_type)([one])
    assert says in str(error.value)


def test_a_prompt_too_long_is_cut_from_its_beginning_and_counted(folder):
    model = ours(folder, max_new_tokens=8)
    model.generate_until([ask("generate_until", "a" * 500, {"until": []})])
    assert model.draft(ask("generate_until", "b" + "a" * 500, {"until": []}), 0).prompt == tuple(
        model.tok_encode("a" * (LENGTH - 8))
    )
    assert any("cut from their beginning" in line for line in model.remarks)


def test_text_of_a_rendered_prompt_is_what_its_ids_say():
    assert Rendered("abc", [1, 2]).ids == (1, 2)
