"""Claims about tokenizers: exact inverses, the same ids as the reference libraries."""

import json
import pickle
import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
from tokenizers import pre_tokenizers as pre

from easylm.data import tokenizer as tok
from easylm.errors import UserError

CORPUS = [
    "the quick brown fox jumps over the lazy dog 12345\nand hello world again",
    "café déjà vu 😀 naïve «hello»\n\tprint('hi')  # two  spaces",
    "<|user|>\nhello there\n<|assistant|>\nhello, friend",
] * 40
WORDS = [
    "hello",
    " ",
    "  ",
    "\n",
    "world",
    "é",
    "😀",
    "🧑‍🚀",
    "42",
    "e\u0301",
    "ö",
    "�",
    "the",
]
EOS = {"__type": "AddedToken", "content": "<|end|>", "rstrip": True, "special": True}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(folder):
    """As Llama 3 and Qwen have it, with one token that swallows the space after it."""
    new = Tokenizer(models.BPE())
    pattern = pre.Split(Regex(LLAMA3), "isolated")
    bytes_only = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    new.pre_tokenizer = pre.Sequence([pattern, bytes_only])
    new.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|eot_id|>", "<|end|>"]
    special[2] = AddedToken("<|end|>", rstrip=True, special=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    new.train_from_iterator(CORPUS, trainer)
    new.add_tokens(["<think>"])
    new.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|begin|>", "eos_token": EOS}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "old"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tok.load(folder)


def metaspace_first(folder, source):
    """As newer sentencepiece conversions: a space at the start of the text only."""
    spec = json.loads((source / "tokenizer.json").read_text())
    spec["normalizer"], spec["pre_tokenizer"] = (
        None,
        {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        },
    )
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return tok.load(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = {k: tmp_path_factory.mktemp(k) for k in ("sp", "json", "bytes", "first")}
    sp = tok.train(CORPUS, folder["sp"] / "my.model", 400)
    sp.save(folder["json"])
    return {
        "sentencepiece": sp,
        "converted": tok.load(folder["json"]),
        "bytes": byte_level(folder["bytes"]),
        "first": metaspace_first(folder["first"], folder["json"]),
    }


@pytest.fixture(params=["sentencepiece", "converted", "bytes", "first"])
def tokenizer(request, kinds):
    return kinds[request.param]


def random_texts(seed, count, special=()):
    rng = random.Random(seed)
    return [
        "".join(rng.choice([*WORDS, *special]) for _ in range(rng.randrange(12)))
        for _ in range(count)
    ]


def reference(tokenizer):
    """What the `tokenizers` library does with the file, special tokens parsed by it."""
    plain = Tokenizer.from_str(tokenizer.files["tokenizer.json"].decode())
    return lambda text: plain.encode(text, add_special_tokens=False).ids


# Text to ids to text.


def test_decode_inverts_encode(tokenizer):
    special = [tokenizer.eos_token, tokenizer.bos_token]
    for text in random_texts(0, 200, [s for s in special if s != "<|end|>"]):
        if text.startswith(" ") and "Metaspace" in str(tokenizer.files):
            continue  # there " a" and "a" have the same ids
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_a_special_string_is_one_id_and_nothing_else_is_added(tokenizer):
    ids = tokenizer.encode(f"{tokenizer.bos_token}hello{tokenizer.eos_token}")
    assert ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos
    assert tokenizer.encode(f"{tokenizer.bos_token}hello")[1:] == ids[1:-1]
    assert tokenizer.encode("") == []
    assert tokenizer.decode(ids) == "hello"


@pytest.mark.parametrize("kind", ["converted", "bytes", "first"])
def test_ids_are_those_of_the_tokenizers_library(kinds, kind):
    tokenizer = kinds[kind]
    expected = reference(tokenizer)
    for text in random_texts(1, 200, [*tokenizer.specials, "<think>"]):
        assert tokenizer.encode(text) == expected(text)


def test_ids_are_those_of_sentencepiece_also_after_conversion(kinds):
    for text in random_texts(2, 200, ["</s>", "<s>", "<unk>"]):
        assert kinds["sentencepiece"].encode(text) == kinds["converted"].encode(text)


def test_text_encoded_as_plain_never_gives_special_ids(tokenizer):
    text = "".join(tokenizer.specials) + " a"
    ids = tokenizer.encode_runs([[tok.Run(text)]])[0][0]
    assert not set(ids) & set(tokenizer.specials.values())
    assert tokenizer.decode(ids) == text


def test_a_continued_run_gets_no_space_in_front(tokenizer):
    runs = [
        tok.Run("hello"),
        tok.Run("world", continued=True),
        tok.Run(" ö", False, True),
    ]
    ids = [i for run in tokenizer.encode_runs([runs])[0] for i in run]
    assert tokenizer.decode(ids) == "helloworld ö"


def test_an_id_out_of_the_vocabulary_shows(tokenizer):
    ids = tokenizer.encode("hello") + [tokenizer.vocab_size + 7]
    assert tokenizer.decode(ids) == "hello�"


def test_id_of_knows_tokens_and_nothing_else(tokenizer):
    assert tokenizer.id_of(tokenizer.eos_token) == tokenizer.eos
    assert tokenizer.id_of("no such token") is None


# Offsets.


def test_offsets_count_characters_and_cover_the_text(tokenizer):
    texts = random_texts(3, 100, [tokenizer.eos_token])
    for text, (ids, offsets) in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids == tokenizer.encode(text)
        assert len(ids) == len(offsets)
        covered = 0
        for start, end in offsets:
            assert start <= covered and end >= start
            covered = max(covered, end)
        assert covered == len(text)


def test_offsets_of_special_tokens_are_their_strings(tokenizer):
    text = f"é😀{tokenizer.bos_token} ö{tokenizer.eos_token}"
    ids, offsets = tokenizer.encode_batch([text])[0]
    for name, i in (
        (tokenizer.bos_token, tokenizer.bos),
        (tokenizer.eos_token, tokenizer.eos),
    ):
        start, end = offsets[ids.index(i)]
        assert text[start:end] == name


# Streaming.


def test_streamed_text_adds_up_to_the_decoded_text(tokenizer):
    for text in random_texts(4, 60, [tokenizer.eos_token]):
        ids = tokenizer.encode(text)
        out = tok.stream(tokenizer)
        assert "".join([*map(out.push, ids), out.finish()]) == tokenizer.decode(ids)


def test_streaming_never_shows_half_a_character(tokenizer):
    out = tok.stream(tokenizer)
    parts = [out.push(i) for i in tokenizer.encode("a 🧑‍🚀é ö")]
    assert "".join(parts) == "a 🧑‍🚀é ö"
    assert not any("�" in part for part in parts)


def test_bytes_that_stay_broken_come_at_the_end(tokenizer):
    broken = tokenizer.encode("hello 🦆")[:-1]
    out = tok.stream(tokenizer)
    shown = "".join(out.push(i) for i in broken)
    assert shown.startswith("hello") and "�" not in shown
    assert "�" in out.finish()


# Files.


def test_a_directory_is_saved_byte_for_byte(kinds, tmp_path):
    kinds["bytes"].save(tmp_path / "out")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files == kinds["bytes"].files
    assert tok.load(tmp_path / "out").fingerprint == kinds["bytes"].fingerprint


def test_a_new_chat_template_replaces_the_old_one(kinds, tmp_path):
    kinds["bytes"].save(tmp_path, chat_template="new")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["chat_template"], config["bos_token"]) == ("new", "<|begin|>")
    assert tok.load(tmp_path).chat_template == "new"
    assert kinds["bytes"].chat_template == "old"


def test_transformers_loads_what_is_saved(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, chat_template="{{ messages }}")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in random_texts(5, 50, [*tokenizer.specials]):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert theirs.eos_token_id == tokenizer.eos
    assert theirs.bos_token_id == tokenizer.bos
    assert theirs.chat_template == "{{ messages }}"


def test_transformers_adds_bos_to_text_as_llama_does(kinds, tmp_path):
    transformers = pytest.importorskip("transformers")
    kinds["sentencepiece"].save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("hello") == [1, *kinds["sentencepiece"].encode("hello")]


def test_user_defined_symbols_survive_the_conversion(tmp_path):
    special = ["<|user|>\n", "<|x|>"]
    ours = tok.train(CORPUS, tmp_path / "a.model", 400, special=special)
    ours.save(tmp_path / "out")
    theirs = tok.load(tmp_path / "out")
    assert len(ours.encode("a<|x|><|x|>")) - len(ours.encode("a")) == 2
    for text in random_texts(6, 100, [*special, "</s>"]):
        assert ours.encode(text) == theirs.encode(text)


def test_generation_config_and_turn_tokens_say_where_to_stop(kinds, tmp_path):
    kinds["bytes"].save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    tokenizer = tok.load(tmp_path)
    assert tokenizer.stop_ids == (tokenizer.eos, 5, tokenizer.id_of("<|eot_id|>"))
    tokenizer.save(tmp_path / "copy")
    assert tok.load(tmp_path / "copy").stop_ids == tokenizer.stop_ids
    (tmp_path / "copy" / "generation_config.json").write_text('{"eos_token_id": 7}')
    tokenizer.save(tmp_path / "copy")
    assert 7 in tok.load(tmp_path / "copy").stop_ids


def test_the_config_decides_what_is_special(kinds, tmp_path):
    """Also against a tokenizer.json that lists the token as ordinary."""
    kinds["bytes"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    think = kinds["bytes"].id_of("<think>")
    config["added_tokens_decoder"] = {str(think): {"content": "<think>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tok.load(tmp_path)
    assert tokenizer.encode("<think>") == [think]
    assert think not in tokenizer.encode_runs([[tok.Run("<think>")]])[0][0]
    assert think in kinds["bytes"].encode_runs([[tok.Run("<think>")]])[0][0]


def test_eos_may_be_known_from_the_generation_config_alone(kinds, tmp_path):
    kinds["bytes"].save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    tokenizer = tok.load(tmp_path)
    assert (tokenizer.eos, tokenizer.eos_token) == (0, "<|begin|>")


def test_pad_is_eos_where_there_is_none(kinds):
    assert kinds["bytes"].pad == kinds["bytes"].eos
    assert kinds["sentencepiece"].pad == 3


def test_chat_template_comes_from_its_file_or_the_default_of_a_list(kinds, tmp_path):
    kinds["sentencepiece"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    config["chat_template"] = named
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tok.load(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert tok.load(tmp_path).chat_template == "file"


def test_a_directory_may_hold_only_a_sentencepiece_model(kinds, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(
        kinds["sentencepiece"].files["tokenizer.model"]
    )
    config = {"eos_token": "<|im_end|>", "legacy": False}
    config["added_tokens_decoder"] = {"400": {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tok.load(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos, tokenizer.bos) == (401, 400, 1)
    text = "hello<|im_end|>hello <|im_end|> a"
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert (
        tokenizer.encode(text)[-2:]
        == tokenizer.encode_runs(
            [[tok.Run("<|im_end|>", True), tok.Run(" a", continued=True)]]
        )[0][1]
    )


def test_a_pickled_tokenizer_still_keeps_special_tokens_out_of_text(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    runs = [[tok.Run(f"hello {tokenizer.eos_token} ö")]]
    assert copy.encode_runs(runs) == tokenizer.encode_runs(runs)
    assert copy.fingerprint == tokenizer.fingerprint


def test_the_fingerprint_sees_special_tokens(kinds, tmp_path):
    kinds["bytes"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|eot_id|>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tok.load(tmp_path).fingerprint != kinds["bytes"].fingerprint


# Training.


def test_training_gives_the_same_model_twice(tmp_path):
    one, two = (tok.train(CORPUS, tmp_path / n, 350) for n in ("a.model", "b.model"))
    assert one.files == two.files
    assert (one.vocab_size, one.bos, one.eos, one.pad) == (350, 1, 2, 3)


def test_trained_tokenizers_split_digits_and_know_every_byte(kinds):
    tokenizer = kinds["sentencepiece"]
    assert len(tokenizer.encode("12345")) == 6  # and the space in front
    assert len(tokenizer.encode("hello\n\n")) - len(tokenizer.encode("hello")) == 2
    assert tokenizer.decode(tokenizer.encode("漢字\t\0")) == "漢字\t\0"


# Bad input.


def save_json(folder, name, value):
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def test_errors_say_what_to_do(kinds, tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*meta/llama"):
        tok.load("meta/llama")
    with pytest.raises(UserError, match=r"holds neither tokenizer.json nor"):
        tok.load(tmp_path)
    save_json(tmp_path, "tokenizer.model", "IQ== 0\nIg== 1\n")
    with pytest.raises(UserError, match="tiktoken"):
        tok.load(tmp_path)
    save_json(tmp_path, "tokenizer.json", "{")
    with pytest.raises(UserError, match=r"broken tokenizer.json"):
        tok.load(tmp_path)
    kinds["bytes"].save(tmp_path)
    save_json(tmp_path, "tokenizer_config.json", {"eos_token": "<end>"})
    with pytest.raises(UserError, match="eos_token '<end>' is not in the vocabulary"):
        tok.load(tmp_path)
    save_json(tmp_path, "tokenizer_config.json", {"eos_token": None})
    with pytest.raises(UserError, match="which token ends a text"):
        tok.load(tmp_path)
    save_json(tmp_path, "tokenizer_config.json", "{")
    with pytest.raises(UserError, match=r"tokenizer_config.json is not JSON"):
        tok.load(tmp_path)


def test_too_small_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match="vocab_size=100"):
        tok.train(CORPUS, tmp_path / "a.model", 100)
