"""Prompts: rows as they are published become turns to answer, and ground truths."""

import inspect
import json

import numpy as np
import pytest

from easylm.data import chat, formats, prompt_formats, tokenizer
from easylm.data.encode import prompts_encoder, sft_encoder
from easylm.data.sources import BadRow, Skip
from easylm.errors import UserError
from tests.data.toy import make


def turns(*texts):
    roles = ["user", "assistant"] * len(texts)
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


SYSTEM = [{"role": "system", "content": "be brief"}]
IF_ANSWER = "[{'instruction_id': ['keywords:existence'], 'kwargs': [{'keywords': []}]}]"
RLVR = {"messages": turns("2+2?"), "ground_truth": "4", "dataset": "MATH"}
GSM = {"question": "Eggs?", "answer": "16 - 3 = 13\n#### 1,013 "}
BOX = {"problem": "2+2?", "solution": "Not \\boxed{3} but $\\boxed{\\frac{8}{2}}$."}
IFEVAL = {
    "key": "1",
    "prompt": "Write.",
    "instruction_id_list": ["count:words", "format:list"],
    "kwargs": [{"n": 3.0, "word": None}, None],
}
MMLU = {"question": "2+2?", "subject": "sums", "choices": ["3", "4"], "answer": 1}
ARC = {
    "question": "2+2?",
    "choices": {"text": ["3", "4"], "label": ["1", "2"]},
    "answerKey": "2",
}
CHOICES = "2+2?\n\nA. 3\nB. 4"
ASSERTS = ["assert f(1) == 2", "assert f(2) == 3"]
STDIO = [{"input": "1\n", "output": "2\n"}]


@pytest.mark.parametrize(
    ("name", "row", "asked"),
    [
        ("prompts", {"instruction": " 2+2?\n", "tags": "na"}, turns("2+2?")),
        ("prompts", {"history_messages": turns("a", "b", "c")}, turns("a", "b", "c")),
        ("prompts", {"messages": turns("a", "b", "c", "d")}, turns("a", "b", "c")),
        ("prompts", {"conversation": SYSTEM + turns("a")}, SYSTEM + turns("a")),
        (
            "prompts",
            {"chosen": turns("a", "b"), "rejected": turns("a", "c"), "score": 1},
            turns("a"),
        ),
        ("prompts", {"instruction": None, "messages": turns("a", "b")}, turns("a")),
        ("prompt_only", {"prompt": "a"}, turns("a")),
        ("prompt_only", {"prompt": turns("a", "b")}, turns("a")),
    ],
)
def test_a_prompt_is_what_was_asked_before_the_last_answer(name, row, asked):
    assert formats.get(name)(row) == {"prompt": asked, "verifiers": []}


@pytest.mark.parametrize(
    ("name", "row", "asked", "verifiers"),
    [
        ("rlvr", RLVR, "2+2?", [("math", "4")]),
        ("rlvr", RLVR | {"messages": turns("2+2?", "5")}, "2+2?", [("math", "4")]),
        ("rlvr", RLVR | {"ground_truth": 4}, "2+2?", [("math", "4")]),
        (
            "rlvr",
            RLVR | {"dataset": "ifeval", "ground_truth": IF_ANSWER},
            "2+2?",
            [("ifeval", IF_ANSWER)],
        ),
        (
            "rlvr",
            RLVR | {"dataset": ["gsm8k", "IFEval"], "ground_truth": ["4", IF_ANSWER]},
            "2+2?",
            [("gsm8k", "4"), ("ifeval", IF_ANSWER)],
        ),
        (
            "rlvr",
            RLVR | {"dataset": "code", "ground_truth": ASSERTS},
            "2+2?",
            [("code", ASSERTS)],
        ),
        ("gsm8k", GSM, "Eggs?", [("gsm8k", "1013")]),
        ("hendrycks_math", BOX, "2+2?", [("math", "\\frac{8}{2}")]),
        (
            "hendrycks_math",
            BOX | {"solution": "so $\\boxed{\\left\\{1, 2\\right.}$"},
            "2+2?",
            [("math", "\\left\\{1, 2\\right.")],
        ),
        (
            "hendrycks_math",
            BOX | {"solution": "so $x = \\boxed 4$."},
            "2+2?",
            [("math", "4")],
        ),
        ("hendrycks_math", BOX | {"answer": "4"}, "2+2?", [("math", "4")]),
        (
            "spurious",
            {"id": "0", "prompt": "2+2?", "answer": "4", "source": "aime"},
            "2+2?",
            [("math", "4")],
        ),
        (
            "ifbench",
            IFEVAL,
            "Write.",
            [
                (
                    "ifeval",
                    {
                        "instruction_id_list": ["count:words", "format:list"],
                        "kwargs": [{"n": 3.0}, {}],
                    },
                )
            ],
        ),
        ("multiple_choice_prompts", MMLU, CHOICES, [("multiple_choice", "B")]),
        (
            "multiple_choice_prompts",
            {"question": "2+2?", "options": ["3", "4"], "answer": "A"},
            CHOICES,
            [("multiple_choice", "A")],
        ),
        ("multiple_choice_prompts", ARC, CHOICES, [("multiple_choice", "B")]),
        (
            "conversation_answer",
            {"family": "sums", "messages": turns("2+2?", " It is 4.\n")},
            "2+2?",
            [("exact_match", "It is 4.")],
        ),
        ("code_prompts", {"prompt": "f", "tests": ASSERTS}, "f", [("code", ASSERTS)]),
        (
            "code_prompts",
            {"messages": turns("f", "g"), "ground_truth": json.dumps(ASSERTS)},
            "f",
            [("code", ASSERTS)],
        ),
        (
            "code_prompts",
            {"question": "f", "test_cases": ASSERTS},
            "f",
            [("code", ASSERTS)],
        ),
        (
            "code_prompts",
            {"prompt": "f", "tests": json.dumps(STDIO)},
            "f",
            [("code_stdio", STDIO)],
        ),
        (
            "prompt_only",
            {"prompt": "f", "verifier": "Mine", "answer": [1, 2]},
            "f",
            [("mine", [1, 2])],
        ),
    ],
)
def test_a_ground_truth_comes_with_the_name_of_its_verifier(
    name, row, asked, verifiers
):
    made = formats.get(name)(row)
    assert made == {"prompt": turns(asked), "verifiers": verifiers}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("prompts", {"text": "a"}, "'instruction' is missing: the fields are: text"),
        (
            "prompts",
            {"messages": SYSTEM},
            "'prompt' does not end with a turn of the user: it is system",
        ),
        (
            "conversation_answer",
            {"messages": turns("a", "b", "c")},
            "'messages' do not end with a turn of the assistant",
        ),
        ("prompt_only", {"prompt": "a", "answer": "b"}, "'verifier' is missing"),
        ("prompt_only", {"prompt": "a", "verifier": "math"}, "'answer' is missing"),
        ("rlvr", RLVR | {"ground_truth": None}, "'ground_truth' is missing"),
        ("rlvr", RLVR | {"dataset": 1}, "'dataset' is not text"),
        (
            "rlvr",
            RLVR | {"dataset": ["a", "b"], "ground_truth": ["4"]},
            "'ground_truth' is not a list as long as 'dataset'",
        ),
        (
            "rlvr",
            RLVR | {"dataset": ["a"], "ground_truth": "4"},
            "'ground_truth' is not a list",
        ),
        ("gsm8k", GSM | {"answer": "13"}, "'answer' has no '#### '"),
        ("hendrycks_math", BOX | {"solution": "4"}, "'solution' has no .boxed{}"),
        ("hendrycks_math", BOX | {"solution": "\\boxed{{4}"}, "without an end"),
        ("ifbench", IFEVAL | {"kwargs": [{}]}, "'kwargs' are not as many .*: 1 ag"),
        ("multiple_choice_prompts", MMLU | {"answer": 2}, "'answer' is not one of"),
        ("multiple_choice_prompts", MMLU | {"answer": "C"}, "'answer' is not one of"),
        ("multiple_choice_prompts", MMLU | {"choices": []}, "'choices' are none"),
        ("multiple_choice_prompts", {"question": "a"}, "'options' is missing"),
        ("code_prompts", {"prompt": "f"}, "'tests' is missing"),
        ("code_prompts", {"prompt": "f", "tests": []}, "'tests' holds no test"),
        ("code_prompts", {"prompt": "f", "tests": "f()"}, "'tests' is not JSON"),
        (
            "code_prompts",
            {"prompt": "f", "tests": [*ASSERTS, *STDIO]},
            "'tests' holds neither",
        ),
    ],
)
def test_a_malformed_row_is_a_bad_row_that_names_the_field(name, row, message):
    with pytest.raises(BadRow, match=message):
        formats.get(name)(row)


@pytest.mark.parametrize(
    "row", [{"instruction": " "}, {"messages": turns("a")[1:]}, {"chosen": turns("")}]
)
def test_a_row_that_asks_nothing_is_skipped_under_a_reason(row):
    with pytest.raises(Skip, match="empty_prompt"):
        formats.prompt_formats.prompts(row)


def test_a_conversation_asks_for_its_last_answer_and_shows_the_others():
    row = {"messages": SYSTEM + turns("2+2?", "4", "And plus 1?", "5")}
    made = prompt_formats.conversation_answer(row)
    assert made["prompt"] == SYSTEM + turns("2+2?", "4", "And plus 1?")
    assert made["verifiers"] == [("exact_match", "5")]
    with pytest.raises(Skip, match="empty_answer"):
        prompt_formats.conversation_answer({"messages": turns("2+2?", " ")})


def test_every_format_is_in_the_docstring_and_no_other_has_its_name():
    public = lambda module: {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and name[0] != "_"
    }
    here = public(prompt_formats)
    assert all(f"\n    {name} " in prompt_formats.__doc__ for name in here)
    for other in (formats, formats.pair_formats, formats.answer_formats):
        assert not here & public(other)


# Through the pipeline.


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    texts = [f"what is {i} and {i}?" for i in range(40)]
    headers = ("<|system|>", "<|user|>", "<|assistant|>")
    return tokenizer.train(texts, str(path), 320, special=headers)


@pytest.fixture
def data(tok, tmp_path):
    """-> dataset of prompts, one in seven of which is long."""
    rows = [
        {"prompt": f"what is {i} and {i}?" * (9 if i % 7 == 0 else 1)}
        | {"answer": str(i + i), "verifier": "math"}
        for i in range(20)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def data(format="prompt_only", too_long="drop", **options):
        encoder = prompts_encoder(tok, chat.tulu, vocab_size=tok.vocab_size)
        options = dict(length=64, packing=False, encoder=encoder) | options
        part = dict(path=str(path), format=format)
        return make(part, config=dict(too_long=too_long), **options)

    return data


def test_a_batch_holds_a_prompt_in_each_row_up_to_where_its_answer_begins(data, tok):
    dataset, seen = data(), []
    assert dataset.counts == {"too_long_dropped": 3} and len(dataset.table) == 17
    for iteration in range(dataset.batches(1)):
        batch = dataset.rows(iteration, range(4))
        assert batch["items"].shape == (4, 1)
        assert batch["ratings"].shape == (4, 1, 1, 0)
        for r, item in enumerate(batch["items"][:, 0].tolist()):
            here = batch["seqs"].segments[r] == 1
            asked = dataset.example(item)["prompt"]
            [(ids, _)] = chat.encode_chats(
                tok, chat.tulu, [asked], generation_prompt=True
            )
            np.testing.assert_array_equal(batch["seqs"].tokens[r, here], ids)
            assert tok.decode(ids.tolist()).endswith("<|assistant|>\n")
            assert (batch["seqs"].mask[r] == (here & (np.arange(64) > 0))).all()
            assert batch["seqs"].segments[r].max() == 1
            seen.append(item)
    assert sorted(seen[:17]) == list(range(17))


def test_an_item_leads_back_to_its_row(data):
    dataset = data()
    numbers = [i for i in range(20) if i % 7]
    answers = [dataset.example(k)["verifiers"] for k in range(17)]
    assert answers == [[("math", str(i + i))] for i in numbers]
    for nothing in (-1, 17):
        with pytest.raises(IndexError):
            dataset.example(nothing)


def test_prompts_are_never_cut(data):
    with pytest.raises(UserError, match="too_long='truncate' .*too_long='drop'"):
        data(too_long="truncate")


def test_prompts_are_told_from_what_others_learn_from(data, tok, tmp_path):
    message = "a row of text is no prompt; use a format of prompts"
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a"}\n')
    encoder = prompts_encoder(tok, chat.tulu, vocab_size=tok.vocab_size)
    with pytest.raises(UserError, match=message):
        make(str(path), config=dict(too_long="drop"), encoder=encoder, packing=False)
    sft = sft_encoder(tok, chat.tulu, length=64, vocab_size=tok.vocab_size)
    with pytest.raises(UserError, match="a row of prompt, verifiers is nothing to im"):
        data(encoder=sft)


def test_another_template_is_another_index(tok):
    made = [
        prompts_encoder(tok, template, vocab_size=tok.vocab_size).name
        for template in (chat.tulu, chat.chatml, chat.tulu)
    ]
    assert made[0] == made[2] != made[1]
