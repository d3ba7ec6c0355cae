"""Formats of prompts to sample answers to, and what those answers are verified by.

    prompts                   allenai/tulu-2.5-prompts, and any conversation or pair:
                              what was asked before the last answer
    conversation_answer       {"messages"}: the last answer is the ground truth
    prompt_only               {"prompt"[, "verifier", "answer"]}: text or turns
    rlvr                      {"messages", "ground_truth", "dataset"}: allenai/RLVR-*,
                              allenai/IF_multi_constraints_upto5
    gsm8k                     openai/gsm8k
    hendrycks_math            MATH, MATH-500, DeepScaleR: {"problem", "solution"}
    spurious                  {"id", "prompt", "answer", "source"}, Spurious Rewards (a
                              list in a .json file there: save it as .jsonl first)
    ifbench                   allenai/IFBench_test, google/IFEval
    multiple_choice_prompts   cais/mmlu, TIGER-Lab/MMLU-Pro, allenai/ai2_arc
    code_prompts              {"prompt" or "messages", "tests"}: assert statements, or
                              {"input", "output"} of a program

    {"prompt": turns, "verifiers": [(name, ground truth), ...]}

The turns end with one of the user: an answer that follows it is left out. Contents are
stripped. Verifiers have the names that the data set calls them by, in lower case; there
may be none. Rows are skipped, and counted, as empty_prompt or empty_answer. Worked
examples before the question are for the data to bring.
"""

import json
import re
from collections.abc import Mapping

from easylm.data import fields
from easylm.data.fields import get
from easylm.data.sources import BadRow, Skip

CONVERSATIONS = "history_messages", "messages", "conversation", "chosen"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BOXED = re.compile(r"\\f?boxed\s*")
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def prompts(row: Mapping) -> dict:
    """Of `instruction`, or the first of CONVERSATIONS that the row has."""
    for field in CONVERSATIONS if row.get("instruction") is None else ():
        if row.get(field) is not None:
            return _example(fields.turns(row, field))
    return _example(get(row, "instruction", str))


def conversation_answer(row: Mapping) -> dict:
    """To be answered as the last turn does, word by word: exact_match."""
    turns = fields.turns(row, "messages")
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRow("messages", "do not end with a turn of the assistant")
    answer = turns[-1].get("content", "").strip()
    if not answer:
        raise Skip("empty_answer")
    return _example(turns, ("exact_match", answer))


def prompt_only(row: Mapping) -> dict:
    """`verifier` and `answer` come together, or not at all."""
    if row.get("verifier") is None and row.get("answer") is None:
        return _example(_turns(row))
    verifier = get(row, "verifier", str), get(row, "answer", object)
    return _example(_turns(row), verifier)


def rlvr(row: Mapping) -> dict:
    """`dataset` names the verifier, or several, with as many ground truths."""
    names, answers = get(row, "dataset", object), _ground_truth(row, "ground_truth")
    if not isinstance(names, list):
        names, answers = [get(row, "dataset", str)], [answers]
    if not isinstance(answers, list) or len(answers) != len(names):
        detail = f"{answers!r:.40} for {names}"
        raise BadRow("ground_truth", "is not a list as long as 'dataset'", detail)
    names = [fields.check(name, "dataset", str) for name in names]
    return _example(fields.turns(row, "messages"), *zip(names, answers, strict=True))


def gsm8k(row: Mapping) -> dict:
    """The ground truth is the number after "####", without commas."""
    _, mark, number = get(row, "answer", str).rpartition("####")
    if not (mark and number.strip()):
        raise BadRow("answer", "has no '#### ' and a number", f"{row['answer']!r:.60}")
    number = number.strip().replace(",", "")
    return _example(get(row, "question", str), ("gsm8k", number))


def hendrycks_math(row: Mapping) -> dict:
    r"""The ground truth is `answer`, or what is in the last \boxed{} of `solution`."""
    if row.get("answer") is not None:
        answer = _ground_truth(row, "answer")
    else:
        answer = _last_boxed(get(row, "solution", str))
    return _example(get(row, "problem", str), ("math", answer))


def spurious(row: Mapping) -> dict:
    return _example(get(row, "prompt", str), ("math", _ground_truth(row, "answer")))


def ifbench(row: Mapping) -> dict:
    """The ground truth is {"instruction_id_list", "kwargs"}, without nulls."""
    ids, kwargs = get(row, "instruction_id_list", list), get(row, "kwargs", list)
    if len(ids) != len(kwargs):
        detail = f"{len(kwargs)} against {len(ids)}"
        raise BadRow("kwargs", "are not as many as 'instruction_id_list'", detail)
    kwargs = [
        {name: value for name, value in (given or {}).items() if value is not None}
        for given in kwargs
    ]
    answer = {"instruction_id_list": ids, "kwargs": kwargs}
    return _example(get(row, "prompt", str), ("ifeval", answer))


def multiple_choice_prompts(row: Mapping) -> dict:
    """The choices follow the question, lettered; the ground truth is a letter."""
    texts, labels = _choices(row)
    if not 0 < len(texts) <= len(LETTERS):
        raise BadRow("choices", "are none or too many", f"{len(texts)} choices")
    field = "answer" if row.get("answer") is not None else "answerKey"
    key = get(row, field, object)
    place = labels.index(key) if key in labels else key
    if type(place) is not int or not 0 <= place < len(texts):
        raise BadRow(field, "is not one of the choices", f"{key!r:.40} of {labels}")
    lines = [f"{a}. {text}" for a, text in zip(LETTERS, texts, strict=False)]
    question = get(row, "question", str).strip()
    prompt = "\n".join([question, "", *lines])
    return _example(prompt, ("multiple_choice", LETTERS[place]))


def code_prompts(row: Mapping) -> dict:
    """`tests` are a list, or one written as JSON; `ground_truth` (Dolci-RL-Zero-Code)
    and `test_cases` (AceCode) are other names for them."""
    names = [name for name in ("ground_truth", "test_cases") if row.get(name)]
    field = "tests" if row.get("tests") is not None or not names else names[0]
    tests = get(row, field, object)
    if isinstance(tests, str):
        tests = _from_json(tests, field)
    if not fields.check(tests, field, list):
        raise BadRow(field, "holds no test")
    if all(isinstance(test, str) for test in tests):
        return _example(_turns(row), ("code", tests))
    if all(isinstance(t, Mapping) and {"input", "output"} <= t.keys() for t in tests):
        return _example(_turns(row), ("code_stdio", tests))
    reason = "holds neither assert statements nor {'input', 'output'} alone"
    raise BadRow(field, reason, f"{tests!r:.60}")


def _example(prompt: str | list[dict], *verifiers: tuple) -> dict:
    """Checked and stripped; a prompt that is a text is what the user says."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if prompt and prompt[-1]["role"] == "assistant":
        prompt = prompt[:-1]
    prompt = [
        turn | {"content": turn["content"].strip()} if "content" in turn else turn
        for turn in prompt
    ]
    if not prompt or not all(t.get("content") or t.get("tool_calls") for t in prompt):
        raise Skip("empty_prompt")
    if prompt[-1]["role"] != "user":
        roles = ", ".join(turn["role"] for turn in prompt)
        raise BadRow("prompt", "does not end with a turn of the user", f"it is {roles}")
    for name, _ in verifiers:
        if ".py:" in name:  # data must not say which code is run
            raise BadRow(
                "verifier", "is a file's; set reward.terms.NAME.verifier", name
            )
    verifiers = [(name.lower(), answer) for name, answer in verifiers]
    return {"prompt": prompt, "verifiers": verifiers}


def _turns(row):
    """Of `messages`, `prompt` or `question`; the latter two may be texts."""
    if row.get("messages") is not None:
        return fields.turns(row, "messages")
    field = (
        "question" if row.get("prompt") is None and row.get("question") else "prompt"
    )
    if isinstance(row.get(field), list):
        return fields.turns(row, field)
    return get(row, field, str)


def _ground_truth(row, field):
    """A number is a text, too: what verifiers compare is text."""
    value = get(row, field, object)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else value


def _last_boxed(solution: str) -> str:
    r"""What is in the last \boxed{...}; "\boxed 5$" is written, too."""
    starts = [match.end() for match in BOXED.finditer(solution)]
    if not starts:
        raise BadRow("solution", "has no \\boxed{}", f"{solution!r:.60}")
    text = solution[starts[-1] :]
    if not text.startswith("{"):
        return text.split("$")[0].strip()
    depth = 0
    for brace in BRACES.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return text[1 : brace.start()].strip()
    raise BadRow("solution", "has a \\boxed{ without an end", f"{text!r:.60}")


def _choices(row) -> tuple[list[str], list[str]]:
    """The texts of `choices` or `options`, and what the data set calls each."""
    field = "choices" if row.get("choices") is not None else "options"
    found = get(row, field, object)
    if isinstance(found, Mapping):
        return get(row, f"{field}.text", list), get(row, f"{field}.label", list)
    texts = [
        fields.check(text, field, str) for text in fields.check(found, field, list)
    ]
    return texts, list(LETTERS[: len(texts)])


def _from_json(text: str, field: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise BadRow(field, "is not JSON", e.msg) from e
