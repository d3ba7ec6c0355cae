"""No text, however hostile, makes a verifier raise, hang, or give a score beyond 1.

All verifiers of the package are taken, with an answer and options of this table.
"""

import random
import time

import pytest

from easylm.rewards import base
from easylm.rewards.workers import Job, Workers

FOLLOW = {  # every constraint has tests like these of its own
    "instruction_id_list": ["keywords:frequency", "startend:quotation", "words:vowel"],
    "kwargs": [{"keyword": "9", "frequency": 2, "relation": "at least"}, {}, {}],
}
STDIO = [{"input": "1", "output": "1"}]
SAMPLES = {  # verifier: (answer, options)
    "gsm8k": ("72", {}),
    "math": (r"\frac{1}{2}", {}),
    "strict_math": (r"\frac{1}{2}", {}),
    "multiple_choice": ("C", {}),
    "exact_match": ("Eiffel Tower", {}),
    "flan": ("Eiffel Tower", {}),
    "answer_tag": ("Eiffel Tower", {}),
    "contains": ("Eiffel Tower", {}),
    "string_f1": (["Eiffel Tower", "the tower"], {}),
    "think_format": (None, {}),
    "boxed_format": (None, {}),
    "at_most_words": (None, {"words": 10}),
    "at_least_words": (None, {"words": 10}),
    "near_words": (None, {"words": 10}),
    "repetition": (None, {"n": 3}),
    "random": (None, {}),
    "mentions_python": (None, {}),
    "if_constraints": (FOLLOW, {}),
    "if_all": (FOLLOW, {"loose": True, "thinking": True}),
    "code": (["assert f(1) == 1"], {"seconds": 1.0}),
    "code_stdio": (STDIO, {"seconds": 1.0}),
    "world": ({"family": "reasoning", "check": {"number": 7}}, {}),
    "inverse": ("72", {"of": "gsm8k"}),
    "every": ("72", {"of": ("gsm8k", "boxed_format", "think_format")}),
}
IN_PROCESSES = {"math", "strict_math"}  # they need the limit of time
START_ONE = {"code", "code_stdio"}  # a process for every text: few of them
HERE = sorted(set(SAMPLES) - IN_PROCESSES - START_ONE)
LONG = 15_000  # characters
SECONDS = 1.0  # for LONG characters: a linear one takes 0.03 at most

PIECES = [
    *"{}()[]<>$^_\\/|,.;:!?*+-=%&#~'\"`@ \n\t\r\0",
    *"0 1 9 A C a I x é İ ß \uff11 ٣ ½ ∞ 字 😀 \u2212 \u2019 \u202e \u2028".split(" "),
    *["\ud800", "\udfff", "\U0010ffff", "e\u0301", "\x1b[31m", "\N{NO-BREAK SPACE}"],
    *[r"\boxed{", r"\boxed", r"\frac{", r"\frac12", r"\text{", r"\left(", r"\right)"],
    *[r"\sqrt", r"\{", r"\}", r"\\", "$$", r"\(", r"\)", r"\[", r"\]", "^{", "^9", "!"],
    *["1,234", "1e999", "9" * 30, "-.5", "0x1F", "20-25", "1{,}000", "nan", "inf"],
    *["<think>", "</think>", "<answer>", "</answer>", "The answer is", "Answer:"],
    *["The final answer is", "I hope it is correct.", " not ", "the ", "option "],
    *["```python\n", "```", "**", "- ", "# ", "* * *", "P.S.", "{0.__class__}", "%s%n"],
]
BAITS = [  # regular expressions that backtrack are slow on these
    *["(", "{", "[", "<", "\\", "$", "-", "*", " ", "\n", "\0", "9", "A", "a ", "1,"],
    *["111,", "1.", "{,}", "()", "{}", "({[", ")]}", "\\{", "\\text{", "\\boxed{"],
    *["\\boxed{x", "\\frac{", "x^", "x_", "answer ", "answer is ", "Answer:  "],
    *["answer is \\text{**", "not A ", "(A", "A. ", "<think>", "</think><think>"],
    *[
        "<answer>",
        "</answer>",
        "<answer></answer>",
        "The answer is:",
        "$x",
        "\\(",
        "``",
    ],
    *["The final answer is", "I hope it is correct", "```\n", "a\n\n", "é", "\ud800"],
]


def short(count):
    """Texts of up to 40 pieces in any order, some of them boxed."""
    draw = random.Random(0)
    for k in range(count):
        text = "".join(draw.choices(PIECES, k=draw.randint(0, 40)))
        yield rf"so \boxed{{{text}}}" if k % 4 == 0 else text


def long():
    """One bait again and again, and what might close it."""
    for bait in BAITS:
        body = bait * (LONG // len(bait))
        yield from (body + "!", f"The answer is{body}}}\n1")


def ask(name, response):
    answer, options = SAMPLES[name]
    return base.get(name)("the prompt", response, answer, **options)


def jobs(name, responses):
    answer, options = SAMPLES[name]
    return [Job(name, "the prompt", text, answer, options) for text in responses]


def test_every_verifier_is_in_the_table():
    missing = set(base.known()) - set(SAMPLES)
    assert not missing, f"give an answer and options of {missing} in SAMPLES"


@pytest.mark.parametrize("name", HERE)
def test_thousands_of_hostile_texts_get_a_score(name):
    for text in short(1000):
        score = ask(name, text)
        assert isinstance(score, float) and 0 <= score <= 1, text
        assert ask(name, text) == score, text


@pytest.mark.parametrize("name", HERE)
def test_long_texts_take_linear_time(name):
    for text in long():
        begun = time.perf_counter()
        assert 0 <= ask(name, text) <= 1
        assert time.perf_counter() - begun < SECONDS, (name, text[:40])


def test_mathematics_gives_a_score_or_runs_out_of_time():
    """What the library cannot read is no error; few texts need more than the limit."""
    texts = [*short(120), *long()]
    with Workers(processes=2, seconds=2.0) as workers:
        verdicts = workers.score([*jobs("math", texts), *jobs("strict_math", texts)])
    assert all(v.failed in ("", "timeout") and 0 <= v.score <= 1 for v in verdicts)
    assert sum(v.failed == "timeout" for v in verdicts) < len(verdicts) / 20
    assert max(v.seconds for v in verdicts) < 4


@pytest.mark.parametrize("name", sorted(START_ONE))
def test_hostile_programs_get_a_score(name):
    """Whatever is no program, or none that holds, is right in none of the tests."""
    draw = random.Random(1)
    texts = ["", "\0", "\ud800", "```python\n" + "(" * LONG, "\\" * LONG]
    texts += ["".join(draw.choices(PIECES, k=40)) for _ in range(2)]
    assert [ask(name, text) for text in texts] == [0.0] * len(texts)
