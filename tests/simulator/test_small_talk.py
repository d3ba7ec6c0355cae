"""Small talk: what is held out is new, and the rows are the same everywhere, always."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from configs import sft
from easylm.data import chat, tokenizer
from easylm.data.sources import open_source
from easylm.errors import UserError
from easylm.simulator import small_talk

# Of all rows. If it changes, raise SmallTalk.VERSION: data on disk goes by the version.
DIGEST = "3283904f70feea0d9d17e0871c324dac967bba69450b9ddb96c88477abd5cd8c"

LOOKUPS = ("addition", "sequence", "opposite", "color", "spelling")
LOUD, FULL = "Answer in upper case.", "Answer in full."


@pytest.fixture(scope="module")
def rows():
    return {split: small_talk.rows(split) for split in small_talk.SPLITS}


@pytest.fixture(scope="module")
def words(rows, tmp_path_factory):
    """The tokenizer that the tiny run learns from these rows."""
    texts = [turn["content"] for row in rows["train"] for turn in row["messages"]]
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    headers = ("<|system|>", "<|user|>", "<|assistant|>")
    return tokenizer.train(texts, str(path), 768, special=headers)


def digest(rows):
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def ordered(rows):
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def questions(row):
    """What the user says, without openers and whatever the system message is."""
    asks = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
    openers = {turn.ask for turn in small_talk._GREETINGS}
    return [ask for ask in asks if ask not in openers]


def contents(row):
    """What the turns of a conversation are about, read from their text alone."""
    asks, first = questions(row), questions(row)[0]
    if row["family"] == "memory":
        return re.findall(r"I am (\w+) and I like (\w+)", first)
    if row["family"] == "echo":
        return [first]
    answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
    answers = answers[-len(asks) :]  # without that to an opener
    return [(ask, found(said)) for ask, said in zip(asks, answers, strict=True)]


def found(answer):
    """What matters in "It is May.", "April comes before May." or "c-a-t.", say."""
    words = answer.lower().rstrip(".").split()
    return words[0 if "comes" in words else -1]


@pytest.mark.parametrize("family", small_talk.SIZES)
def test_what_validation_asks_last_is_nowhere_in_train(rows, family):
    train, held = (
        [contents(row) for row in rows[split] if row["family"] == family]
        for split in small_talk.SPLITS
    )
    seen = {content for talk in train for content in talk}
    assert len(seen) > 40 and len(held) >= 20
    assert seen.isdisjoint(talk[-1] for talk in held)


@pytest.mark.parametrize("family", LOOKUPS)
def test_a_question_of_validation_has_its_own_words(rows, family):
    """The first questions; "And after that?" is new by what goes before it."""
    first = {
        split: {questions(row)[0] for row in rows[split] if len(questions(row)) == 1}
        for split in small_talk.SPLITS
    }
    assert first["validation"] and first["train"].isdisjoint(first["validation"])


def test_sizes_are_as_declared_and_no_conversation_comes_twice(rows):
    for column, split in enumerate(small_talk.SPLITS):
        sizes = {name: size[column] for name, size in small_talk.SIZES.items()}
        assert Counter(row["family"] for row in rows[split]) == sizes
    every = [json.dumps(row["messages"]) for split in rows.values() for row in split]
    assert len(set(every)) == len(every)


def test_one_to_three_turns_and_system_messages_that_matter(rows):
    styles = Counter()
    for row in rows["train"]:
        roles = [turn["role"] for turn in row["messages"]]
        style = row["messages"][0]["content"] if roles[0] == "system" else ""
        styles[style] += 1
        assert roles[bool(style) :] in [["user", "assistant"] * n for n in (1, 2, 3)]
        answer = row["messages"][-1]["content"]
        assert (answer == answer.upper()) == (style == LOUD) or "-" in answer
        assert not answer.startswith("It is") or style == ""
    assert set(styles) == {"", LOUD, FULL} and min(styles.values()) > 300


def test_the_rows_are_what_this_version_of_the_data_set_says(rows):
    assert digest(rows) == DIGEST


def test_another_seed_draws_other_conversations_about_the_same_facts(rows):
    other = small_talk.rows("validation", seed=1)
    assert len(other) == len(rows["validation"]) and other != rows["validation"]
    held = {c for row in other if row["family"] == "addition" for c in contents(row)}
    seen = [c for r in rows["train"] if r["family"] == "addition" for c in contents(r)]
    assert held.difference(seen)


def test_every_row_is_text_that_the_tiny_run_can_use(rows, words):
    length = sft.tiny().data.length
    talks = [row["messages"] for split in rows.values() for row in split]
    encoded = chat.encode_chats(words, chat.tulu, talks)
    for messages, (ids, mask) in zip(talks, encoded, strict=True):
        assert len(ids) <= length and mask.any() and not mask.all()
        scored = words.decode(ids[mask > 0].tolist())
        for turn in messages:
            assert turn["role"] != "assistant" or turn["content"] in scored


def test_two_processes_that_open_it_first_at_once_read_the_same_rows(rows, tmp_path):
    code = (
        "import json, sys; from easylm.data.sources import open_source;"
        f"s = open_source('tfds:small_talk:validation@{tmp_path}');"
        "print(json.dumps([s[i] for i in range(len(s))]), 'tensorflow' in sys.modules)"
    )
    made = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outs = [process.communicate() for process in made]
    assert all(out.endswith(" False\n") for out, _ in outs), outs[0][1] + outs[1][1]
    found = [json.loads(out.removesuffix(" False\n")) for out, _ in outs]
    assert found[0] == found[1]
    assert ordered(found[0]) == ordered(rows["validation"])
    train = open_source(f"tfds:small_talk@{tmp_path}")
    assert len(train) == len(rows["train"])
    assert [path.name for path in (tmp_path / "small_talk").iterdir()] == ["2.0.0"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"small_talk cannot be written.*TFDS_DATA_DIR"):
        open_source(f"tfds:small_talk@{tmp_path}/file")
