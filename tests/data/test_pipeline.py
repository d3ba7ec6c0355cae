"""The pipeline: rows by number, the same on any number of hosts, and no surprises."""

import json
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from easylm.data import chat, tokenizer
from easylm.data.formats import Encoder, sft_encoder
from easylm.data.pipeline import Prefetch, build, place
from easylm.errors import UserError

LENGTH, BATCH = 32, 4


def encode(examples):
    """A tokenizer small enough to check by eye: a row's text is its tokens + 1."""
    ids = [np.frombuffer(e["text"].encode(), np.uint8) + 1 for e in examples]
    return [[[(i.astype(np.int32), np.ones(len(i), np.float32))]] for i in ids]


BYTES = Encoder("bytes", 257, encode)


def texts(n, seed=0):
    """n different texts with a long tail of lengths."""
    lengths = np.random.default_rng(seed).lognormal(2.0, 0.7, n).astype(int) + 4
    return [f"{i:03d}{'abcdefg'[i % 7] * (size - 3)}" for i, size in enumerate(lengths)]


def write(path, rows):
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "rows.jsonl", texts(100))


def make(*paths, config=(), encoder=BYTES, **options):
    mixture = [p if isinstance(p, dict) else dict(path=p, format="text") for p in paths]
    options = dict(batch_rows=BATCH, length=LENGTH, seed=0) | options
    return build(dict(mixture=mixture, **dict(config)), encoder=encoder, **options)


def rows_of(dataset, start, stop):
    """Rows [start, stop) of the endless sequence."""
    parts = [
        dataset.rows(row // dataset.batch_rows, [row % dataset.batch_rows])
        for row in range(start, stop)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def documents(seqs):
    """The texts in the rows, in order."""
    found = []
    for tokens, segments in zip(seqs.tokens, seqs.segments, strict=True):
        for s in range(1, segments.max() + 1):
            found.append(bytes((tokens[segments == s] - 1).astype(np.uint8)).decode())
    return found


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("packing", [True, False])
def test_every_item_comes_exactly_once_in_each_epoch(file, packing):
    dataset = make(file, packing=packing)
    expected, first = sorted(text[:LENGTH] for text in texts(100)), 0
    orders = []
    for epoch in range(3):
        count = dataset.rows_per_epoch(epoch)
        orders.append(documents(rows_of(dataset, first, first + count)))
        assert sorted(orders[-1]) == expected
        first += count
    assert orders[0] != orders[1] != orders[2]
    assert dataset.batches(3) == -(-first // BATCH)


def test_packed_rows_hold_the_same_segments_as_separate_ones(file):
    packed, padded = make(file), make(file, packing=False)
    a = rows_of(packed, 0, packed.rows_per_epoch(0))
    b = rows_of(padded, 0, padded.rows_per_epoch(0))
    assert sorted(documents(a)) == sorted(documents(b))
    assert len(a.tokens) < 0.6 * len(b.tokens) and b.segments.max() == 1
    for seqs in (a, b):
        started = np.diff(seqs.segments, prepend=0, axis=1) != 0
        used = seqs.segments > 0
        assert (seqs.positions[started & used] == 0).all()
        assert (
            np.diff(seqs.positions, axis=1)[~started[:, 1:] & used[:, 1:]] == 1
        ).all()
        assert (seqs.mask == (used & ~started)).all()  # no context, hence not scored
        assert not (seqs.tokens[~used].any() or seqs.positions[~used].any())


def test_a_file_of_conversations_becomes_rows_that_score_the_answers(tmp_path):
    lines = [f"what is {i} and {i}?" for i in range(40)]
    tok = tokenizer.train(lines, str(tmp_path / "tiny.model"), 320)
    with open(tmp_path / "chats.jsonl", "w") as file:
        for i, line in enumerate(lines):
            turns = [("user", line), ("assistant", f"is {i + i}")]
            turns = [dict(role=role, content=content) for role, content in turns]
            file.write(json.dumps(dict(messages=turns)) + "\n")
    encoder = sft_encoder(tok, chat.tulu, length=128, vocab_size=tok.vocab_size)
    part = dict(path=str(tmp_path / "chats.jsonl"), format="messages")
    dataset = make(part, encoder=encoder, length=128)
    seqs = rows_of(dataset, 0, dataset.rows_per_epoch(0))
    answers = [
        tok.decode(row[(segments == s) & (mask > 0)]).strip()
        for row, segments, mask in zip(
            seqs.tokens, seqs.segments, seqs.mask, strict=True
        )
        for s in range(1, segments.max() + 1)
    ]
    assert sorted(answers) == sorted(f"is {i + i}" for i in range(40))
    assert (seqs.tokens == tok.bos).sum() == 40


def test_order_is_a_function_of_the_seed(file):
    a, b, c = make(file), make(file), make(file, seed=1)
    assert_same(rows_of(a, 0, 40), rows_of(b, 0, 40))
    assert documents(rows_of(a, 0, 40)) != documents(rows_of(c, 0, 40))


def test_going_to_an_iteration_equals_stepping_to_it(file):
    steps, direct = make(file), make(file)
    all_rows = range(BATCH)
    stepped = [steps.rows(i, all_rows) for i in range(45)]
    assert direct.batches(3) < 45
    for i in (44, 0, 20, 43):
        assert_same(direct.rows(i, all_rows), stepped[i])


def simulate(count, make_one):
    """`make_one(index, gather)` on threads that meet in every gather."""
    barrier, slots, results = threading.Barrier(count), [None] * count, [None] * count

    def run(index):
        def gather(array):
            slots[index] = array
            barrier.wait()
            assert len({part.shape for part in slots}) == 1
            assert all(part.dtype == np.int32 for part in slots)
            merged = np.concatenate(slots)
            barrier.wait()
            return merged

        try:
            results[index] = make_one(index, gather)
        except UserError as e:
            results[index] = e

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    return results


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_gives_the_rows_of_one(file, hosts):
    seen = [[] for _ in range(hosts)]

    def make_one(index, gather):
        def encode_and_note(examples):
            seen[index] += examples
            return encode(examples)

        encoder = Encoder("bytes", 257, encode_and_note)
        share = dict(process_index=index, process_count=hosts, gather=gather)
        return make(file, encoder=encoder, **share)

    datasets = simulate(hosts, make_one)
    assert [len(examples) for examples in seen] == [100 // hosts] * hosts
    one, per_host = make(file), BATCH // hosts
    for i in range(12):
        parts = [
            dataset.rows(i, range(k * per_host, (k + 1) * per_host))
            for k, dataset in enumerate(datasets)
        ]
        union = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        assert_same(one.rows(i, range(BATCH)), union)


def test_a_bad_row_on_one_host_stops_all_with_the_same_message(tmp_path):
    path = write(tmp_path / "rows.jsonl", ["fine", "fine", "fine", None, "fine"])
    errors = simulate(
        2, lambda i, g: make(path, process_index=i, process_count=2, gather=g)
    )
    assert len({str(e) for e in errors}) == 1
    assert f"{path}:line 4: 'text' is missing" in str(errors[0])


def test_hosts_with_different_files_are_told_so(tmp_path):
    paths = [write(tmp_path / f"{n}.jsonl", texts(n)) for n in (5, 6)]
    errors = simulate(
        2, lambda i, g: make(paths[i], process_index=i, process_count=2, gather=g)
    )
    assert all("the processes see [5, 6] rows" in str(e) for e in errors)


def test_bad_rows_are_errors_with_the_fix_or_counted_by_name(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good one"}\n{"text": 3}\n{"text": "x"}\n{"text": \n')
    fix = "fix the row, or set data.bad_rows='skip'"
    with pytest.raises(UserError, match=f"{path}:line 2: 'text' is not text.*{fix}"):
        make(str(path))
    dataset = make(str(path), config=dict(bad_rows="skip"))
    bad = {"text_is_not_text": 1, "line_is_not_valid_json": 1, "empty": 1}
    assert dataset.counts == bad
    assert documents(rows_of(dataset, 0, 1)) == ["good one"]


def test_a_row_that_cannot_be_encoded_is_found_in_its_batch(tmp_path):
    def picky(examples):
        if any("!" in example["text"] for example in examples):
            raise UserError("no exclamations")
        return encode(examples)

    path = write(tmp_path / "rows.jsonl", ["fine", "not!", "fine again"])
    encoder = Encoder("picky", 257, picky)
    with pytest.raises(UserError, match="line 2: 'row' cannot be encoded: no excl"):
        make(path, encoder=encoder)
    dataset = make(path, encoder=encoder, config=dict(bad_rows="skip"))
    assert dataset.counts == {"row_cannot_be_encoded": 1} and dataset.sizes == [2]


def test_long_rows_are_cut_or_dropped_and_counted(tmp_path):
    path = write(tmp_path / "rows.jsonl", ["a" * 50, "b" * 32, "c" * 33])
    dataset = make(path)
    assert dataset.counts == {"truncated": 2} and dataset.sizes == [3]
    assert max(map(len, documents(rows_of(dataset, 0, 3)))) == LENGTH
    dataset = make(path, config=dict(too_long="drop"))
    assert dataset.counts == {"too_long_dropped": 2} and dataset.sizes == [1]


def test_nothing_usable_is_an_error_with_the_counts(tmp_path):
    path = write(tmp_path / "rows.jsonl", ["a", "b"])
    with pytest.raises(UserError, match=r"no row of the data can be used.*'empty': 2"):
        make(path)


def test_an_id_outside_of_the_vocabulary_names_row_and_id(file):
    with pytest.raises(UserError, match=r"line 1: token id \d+ is outside .* of 40"):
        make(file, encoder=Encoder("bytes", 40, encode))


def test_weights_repeat_and_subsample_after_the_cap(tmp_path):
    a = write(tmp_path / "a.jsonl", [f"a{i:03d}" for i in range(40)])
    b = write(tmp_path / "b.jsonl", [f"b{i:03d}" for i in range(40)])
    part = dict(format="text")
    dataset = make(
        dict(path=a, weight=2.5, max_rows=10, **part), dict(path=b, weight=0.25, **part)
    )
    epochs, first = [], 0
    for epoch in range(4):
        last = first + dataset.rows_per_epoch(epoch)
        epochs.append(documents(rows_of(dataset, first, last)))
        first = last
    for docs in epochs:
        counts = {doc: docs.count(doc) for doc in docs}
        from_a = {doc: n for doc, n in counts.items() if doc[0] == "a"}
        assert set(from_a) == {f"a{i:03d}" for i in range(10)}
        assert sorted(from_a.values()) == [2] * 5 + [3] * 5
        assert sum(doc[0] == "b" for doc in docs) == len(counts) - 10 == 10
    assert {doc for docs in epochs for doc in docs if doc[0] == "b"} == {
        f"b{i:03d}" for i in range(40)
    }


def test_evaluation_keeps_the_order_and_ends_with_empty_rows(file):
    dataset = make(file, evaluation=True, packing=False, batch_rows=32)
    assert dataset.one_pass() == 4
    seqs = rows_of(dataset, 0, 4 * 32)
    assert documents(seqs) == [text[:LENGTH] for text in texts(100)]
    assert not seqs.segments[100:].any() and not seqs.mask[100:].any()


def test_stats_by_hand(tmp_path):
    path = write(tmp_path / "rows.jsonl", ["a" * 20, "b" * 12, "c" * 8])
    stats = make(path).stats
    expected = dict(rows=2, items=3, tokens=40, scored_tokens=37, fill=40 / 64)
    assert stats == expected


@pytest.fixture
def counting():
    """An encoder that counts the examples it is given."""

    def encode_and_count(examples):
        encoder.seen += len(examples)
        return encode(examples)

    class Counting(Encoder):
        seen = 0

    encoder = Counting("bytes", 257, encode_and_count)
    return encoder


def test_the_index_is_kept_and_gives_the_same_rows(file, tmp_path, counting):
    cache = str(tmp_path / "cache")
    config = dict(bad_rows="skip")
    first = make(file, config=config, encoder=counting, cache_dir=cache)
    assert counting.seen == 100
    again = make(file, config=config, encoder=counting, cache_dir=cache)
    assert counting.seen == 100 and again.counts == first.counts
    assert_same(rows_of(first, 0, 50), rows_of(again, 0, 50))


def test_what_changes_the_index_makes_a_new_one(file, tmp_path, counting):
    cache = str(tmp_path / "cache")
    changes = [
        dict(length=LENGTH + 1),
        dict(config=dict(too_long="drop")),
        dict(config=dict(bad_rows="skip")),
        dict(encoder=counting._replace(name="other")),
    ]
    make(file, encoder=counting, cache_dir=cache)
    for k, change in enumerate(changes, 2):
        make(file, **(dict(encoder=counting, cache_dir=cache) | change))
        assert len(list((tmp_path / "cache").iterdir())) == k
    write(tmp_path / "rows.jsonl", texts(100, seed=1))
    before = counting.seen
    changed = make(file, encoder=counting, cache_dir=cache)
    assert counting.seen == before + 100
    expected = sorted(text[:LENGTH] for text in texts(100, seed=1))
    assert sorted(documents(rows_of(changed, 0, changed.rows_per_epoch(0)))) == expected


def test_a_damaged_index_is_never_trusted(file, tmp_path, counting):
    cache = tmp_path / "cache"
    make(file, encoder=counting, cache_dir=str(cache))
    (stored,) = cache.iterdir()
    whole = stored.read_bytes()
    flipped = whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]
    for damaged in (whole[:-40], b"", flipped):
        stored.write_bytes(damaged)
        before = counting.seen
        dataset = make(file, encoder=counting, cache_dir=str(cache))
        assert counting.seen == before + 100
        assert_same(rows_of(dataset, 0, 10), rows_of(make(file), 0, 10))
        assert stored.read_bytes() == whole and len(list(cache.iterdir())) == 1


def test_an_index_that_cannot_be_written_says_where_and_what_to_do(file, tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"taken: cannot write the index: .* cache_dir"):
        make(file, cache_dir=str(tmp_path / "taken"))


def test_a_file_that_changes_under_a_run_is_noticed(file, tmp_path):
    dataset = make(file)
    write(tmp_path / "rows.jsonl", texts(100, seed=1))
    with pytest.raises(UserError, match="not what it was when the data was indexed"):
        rows_of(dataset, 0, 40)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(), "data.mixture is empty"),
        (dict(mixtures=[]), "no key 'mixtures'; did you mean 'mixture'"),
        (dict(mixture=[dict(path="a")]), "has no 'format'"),
        (dict(mixture=[dict(path="a", wieght=1)]), "did you mean 'weight'"),
        (dict(mixture=[dict(path="a", format="text", weight=-1)]), "0 or more"),
        (dict(mixture=[dict(path="a", format="text", max_rows=0)]), "at least 1"),
        (dict(mixture=[dict(path="no.jsonl", format="text")]), "no.jsonl: no such"),
        (dict(mixture=[dict(path="no.jsonl", format="test")]), "did you mean 'text'"),
        (dict(bad_rows="ignore"), "data.bad_rows='ignore': use one of"),
    ],
)
def test_config_errors_name_the_key_and_the_fix(config, message):
    with pytest.raises(UserError, match=message):
        build(config, encoder=BYTES, batch_rows=1, length=8, seed=0)


def test_a_config_dict_works_and_weights_that_take_nothing_are_an_error(file):
    config = ConfigDict(dict(mixture=[dict(path=file, format="text", weight=1.0)]))
    options = dict(encoder=BYTES, batch_rows=1, length=LENGTH, seed=0)
    assert build(config, **options).stats["items"] == 100
    config = ConfigDict(dict(mixture=[dict(path=file, format="text", weight=0.001)]))
    with pytest.raises(UserError, match=r"weights .* are too small"):
        build(config, **options)


@pytest.mark.parametrize(
    "spec", [("data",), (None, "context"), ("data", "context"), (("data", "context"),)]
)
def test_place_on_8_devices_equals_the_rows_and_encodes_each_once(file, spec, counting):
    dataset = make(file, encoder=counting, batch_rows=8)
    devices = np.array(jax.devices()[:8]).reshape(4, 2)
    mesh = Mesh(devices, ("data", "context"))
    before = counting.seen
    batch = place(dataset, 1, NamedSharding(mesh, PartitionSpec(*spec)))
    in_batch = len(documents(jax.tree.map(np.asarray, batch)))
    assert counting.seen - before == in_batch
    expected = dataset.rows(1, range(8))
    assert_same(jax.tree.map(np.asarray, batch), expected)
    assert batch.tokens.sharding.spec == PartitionSpec(*spec)
    assert batch.mask.dtype == np.float32 and batch.positions.dtype == np.int32


def test_prefetch_gives_values_in_order_and_runs_ahead_by_its_depth():
    done = []
    ahead = Prefetch(lambda i: done.append(i) or i * i, 3, 20, depth=2)
    for i, value in ahead:
        assert value == i * i
        time.sleep(0.005)
        assert len(done) <= i - 3 + 1 + 2 + 1  # taken, ready, and one at the door
    assert done == list(range(3, 20)) and not ahead._thread.is_alive()


def test_prefetch_raises_where_the_value_would_have_come():
    def fn(i):
        if i == 2:
            raise UserError("row 2 is bad")
        return i

    ahead, got = Prefetch(fn, 0, 5), []
    with pytest.raises(UserError, match="row 2 is bad"):
        for i, _ in ahead:
            got.append(i)
    assert got == [0, 1] and not ahead._thread.is_alive()


def test_prefetch_ends_its_thread_when_the_consumer_leaves_early():
    ahead = Prefetch(lambda i: i, 0, 10**9)
    for i, _ in ahead:
        if i == 3:
            break
    assert not ahead._thread.is_alive()
    ahead.close()


def test_prefetch_measures_how_long_the_consumer_waited():
    slow = Prefetch(lambda i: time.sleep(0.03), 0, 4)
    list(slow)
    assert 0.08 < slow.waited < 1.0
    fast = Prefetch(lambda i: i, 0, 4)
    for _ in fast:
        time.sleep(0.02)
    assert fast.waited < 0.05
