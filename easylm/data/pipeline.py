"""The pipeline: a mixture of sources -> rows of tokens, by number, on any host.

`build` reads every row once to learn its length in tokens: the index, kept on disk. Bad
data shows there, before training starts. After that, what row g of the endless sequence
of epochs holds is a pure function of (lengths, seed, g), and iteration i is the rows
[i B, (i + 1) B): there is no state to save, and a host tokenises only rows it holds.
"""

import difflib
import hashlib
import inspect
import io
import json
import threading
import uuid
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

import fsspec
import jax
import numpy as np
from tqdm import tqdm

from easylm.data import formats, packing
from easylm.data.formats import Encoder, fit
from easylm.data.sequences import Item, Sequences, lay_out
from easylm.data.sources import BadRow, Source, open_source
from easylm.errors import UserError

SETTINGS = {
    "mixture": (),
    "bad_rows": ("error", "skip"),
    "too_long": ("truncate", "drop"),
}
CHUNK = 256  # rows that are tokenised together


def build(
    config,
    *,
    encoder: Encoder,
    batch_rows: int,
    length: int,
    seed: int,
    packing: bool = True,
    evaluation: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    gather: Callable[[np.ndarray], np.ndarray] = lambda array: array,
    cache_dir: str | None = None,
) -> "Dataset":
    """The data set that the config describes, indexed.

    config: mixture, a list of {path, format, weight=1.0, max_rows=None};
            bad_rows "error" or "skip"; too_long "truncate" or "drop".
    packing: several items to a row, or one. evaluation: file order, one pass, and then
    empty rows. gather: an int32[n] that has the same shape on all processes -> the
    arrays of all, one after the other.
    """
    mixture, bad_rows, too_long = _read_config(config)
    share = Share(process_index, process_count, gather)
    rules = Rules(encoder, length, bad_rows, too_long)
    indices = [_index(part, rules, share, cache_dir) for part in mixture]
    dataset = Dataset(mixture, indices, rules, batch_rows, seed, packing, evaluation)
    if not sum(dataset.sizes):
        raise UserError(f"no row of the data can be used: {dict(dataset.counts)}")
    if not dataset.rows_per_epoch(0):
        raise UserError(
            f"an epoch has no rows: weights {dataset.weights} are too small"
        )
    return dataset


class Dataset:
    """Rows by number. `counts`: how many were dropped or cut, by the reason."""

    def __init__(self, mixture, indices, rules, batch_rows, seed, packed, evaluation):
        self.mixture, self.rules, self.seed = mixture, rules, seed
        self.batch_rows, self.length = batch_rows, rules.length
        self.packed, self.evaluation = packed, evaluation
        self.sizes = [len(index.table) for index in indices]
        self.weights = [part.weight for part in mixture]
        self.counts = sum((index.counts for index in indices), Counter())
        self.table = np.concatenate([index.table for index in indices])
        self.source = np.repeat(np.arange(len(mixture)), self.sizes)
        self._plans, self._ends, self._lock = {}, [], threading.RLock()

    def rows_per_epoch(self, epoch: int) -> int:
        """Packed rows of that epoch; it varies a little with the order."""
        with self._lock:
            while len(self._ends) <= epoch:
                rows = self._plan(len(self._ends)).count
                self._ends.append(rows + (self._ends[-1] if self._ends else 0))
            return self._ends[epoch] - (self._ends[epoch - 1] if epoch else 0)

    def batches(self, epochs: int) -> int:
        """Iterations after which `epochs` epochs have been seen."""
        rows = sum(self.rows_per_epoch(epoch) for epoch in range(epochs))
        return -(-rows // self.batch_rows)

    def one_pass(self) -> int:
        """Batches of an evaluation; the last one is filled up with empty rows."""
        return self.batches(1)

    @property
    def stats(self) -> dict[str, float]:
        """What the first epoch holds; `fill` is the part of its positions in use."""
        plan, (lengths, scored) = self._plan(0), self.table[:, 2:].T
        tokens = int(lengths[plan.items].sum())
        return {
            "rows": plan.count,
            "items": len(plan.items),
            "tokens": tokens,
            "scored_tokens": int(scored[plan.items].sum()),
            "fill": tokens / max(plan.count * self.length, 1),
        }

    def rows(self, iteration: int, which: Sequence[int]) -> Sequences:
        """Rows of the batch of the iteration, by number in it. [len(which), T]"""
        return lay_out(self.items(iteration, which), self.length)

    def items(self, iteration: int, which: Sequence[int]) -> list[list[Item]]:
        """The same, before it is laid out: the items of each row."""
        first = iteration * self.batch_rows
        rows = [self._items_of(first + row) for row in which]
        wanted = sorted({item for row in rows for item in row})
        ready = dict(zip(wanted, self._encode(wanted), strict=True))
        return [[ready[item] for item in row] for row in rows]

    def _items_of(self, row: int) -> list[int]:
        """Row of the endless sequence -> numbers of its items."""
        with self._lock:
            if self.evaluation and row >= self.rows_per_epoch(0):
                return []
            while not self._ends or self._ends[-1] <= row:
                self.rows_per_epoch(len(self._ends))
            epoch = bisect_right(self._ends, row)
            first = self._ends[epoch - 1] if epoch else 0
            return self._plan(epoch)[row - first].tolist()

    def _plan(self, epoch: int) -> packing.Rows:
        with self._lock:
            if epoch not in self._plans:
                if len(self._plans) == 2:
                    del self._plans[next(iter(self._plans))]
                self._plans[epoch] = self._make_plan(epoch)
            return self._plans[epoch]

    def _make_plan(self, epoch):
        taken = packing.draw(self.sizes, self.weights, self.seed, epoch)
        if not self.evaluation:
            taken = taken[packing.permutation(len(taken), self.seed, epoch)]
        assign = packing.pack if self.packed else packing.pad
        rows = assign(self.table[taken, 2], self.length)
        return packing.Rows(taken[rows.items], rows.starts)

    def _encode(self, wanted: list[int]) -> list[Item]:
        """Item numbers, ascending, to items."""
        done = []
        for source, part in enumerate(self.mixture):
            mine = [item for item in wanted if self.source[item] == source]
            numbers = sorted({int(self.table[item, 0]) for item in mine})
            try:
                found = _encode_rows(part, self.rules, numbers)
            except UserError as e:
                raise _changed(str(e)) from e
            found = dict(zip(numbers, found, strict=True))
            done += [self._pick(item, part, found) for item in mine]
        return done

    def _pick(self, item, part, found):
        row, piece, length, _ = map(int, self.table[item])
        ready = None
        if piece < len(found[row]):
            ready, _ = fit(found[row][piece], self.length, self.rules.too_long)
        if ready is None or sum(len(ids) for ids, _ in ready) != length:
            raise _changed(part.source.where(row))
        return ready


def _changed(what: str) -> UserError:
    return UserError(
        f"{what}: not what it was when the data was indexed; restore the file, or start"
        " again with an empty cache_dir"
    )


def place(dataset: Dataset, iteration: int, sharding) -> Sequences:
    """The batch of the iteration as global arrays [B, T], split as `sharding` says.

    Only rows that devices of this process hold are tokenised, each of them once.
    """
    shape = (dataset.batch_rows, dataset.length)
    parts = sharding.addressable_devices_indices_map(shape).values()
    held = sorted({r for part in parts for r in range(*part[0].indices(shape[0]))})
    local = dataset.rows(iteration, held)

    def spread(array):
        def cut(index):
            rows = np.searchsorted(held, range(*index[0].indices(shape[0])))
            return array[rows, index[1]]

        return jax.make_array_from_callback(shape, sharding, cut)

    return jax.tree.map(spread, local)


class Prefetch:
    """(i, fn(i)) for i in start .. stop - 1, computed ahead in a background thread.

    An exception of `fn` is raised where its value would have come. Leaving the loop
    ends the thread. `waited`: seconds for which the consumer had to wait.
    """

    def __init__(self, fn, start: int, stop: int, depth: int = 2):
        self.waited = 0.0
        self._fn, self._range, self._depth = fn, range(start, stop), depth
        self._ready, self._closed = deque(), False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __iter__(self):
        try:
            for i in self._range:
                value, error = self._take()
                if error is not None:
                    raise error
                yield i, value
        finally:
            self.close()

    def close(self):
        """Ends the thread after the value that it is at. May be called twice."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def _take(self):
        began = perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed)
            self.waited += perf_counter() - began
            if not self._ready:
                raise RuntimeError("this Prefetch was closed")
            self._changed.notify_all()
            return self._ready.popleft()

    def _work(self):
        for i in self._range:
            try:
                out = self._fn(i), None
            except BaseException as e:  # raised again by the consumer
                out = None, e
            with self._changed:
                self._changed.wait_for(
                    lambda: len(self._ready) < self._depth or self._closed
                )
                if self._closed:
                    return
                self._ready.append(out)
                self._changed.notify_all()
            if out[1] is not None:
                return


class Part(NamedTuple):
    """One source of the mixture."""

    source: Source
    format: Callable
    weight: float
    rows: int  # of the source, after the cap


class Rules(NamedTuple):
    encoder: Encoder
    length: int
    bad_rows: str
    too_long: str


class Share(NamedTuple):
    index: int
    count: int
    gather: Callable


class Index(NamedTuple):
    """The usable items of a source, in its order, and what happened to the others."""

    table: np.ndarray  # int32[n, 4]: source row, item within it, tokens, scored tokens
    counts: Counter


def _read_config(config):
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    _check_keys(config, SETTINGS, "data")
    choices = []
    for name in ("bad_rows", "too_long"):
        choices.append(config.get(name, SETTINGS[name][0]))
        if choices[-1] not in SETTINGS[name]:
            raise UserError(f"data.{name}={choices[-1]!r}: use one of {SETTINGS[name]}")
    if not config.get("mixture"):
        raise UserError("data.mixture is empty; give a list of {path, format}")
    return [_open_part(dict(part)) for part in config["mixture"]], *choices


def _open_part(part: dict) -> Part:
    _check_keys(part, ("path", "format", "weight", "max_rows"), "data.mixture")
    for name in ("path", "format"):
        if not part.get(name):
            raise UserError(f"data.mixture: {part} has no {name!r}")
    weight, cap = part.get("weight", 1.0), part.get("max_rows")
    if not weight >= 0 or (cap is not None and cap < 1):
        raise UserError(
            f"data.mixture: {part}: weight is 0 or more, max_rows None or at least 1"
        )
    format = formats.get(part["format"])
    source = open_source(part["path"])
    rows = len(source) if cap is None else min(cap, len(source))
    return Part(source, format, float(weight), rows)


def _check_keys(given, known, where):
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; use {list(known)}"
            raise UserError(f"{where} has no key {key!r}{hint}")


def _index(part: Part, rules: Rules, share: Share, cache_dir) -> Index:
    """From the cache if all processes have it, else each scans its share of rows."""
    key = _cache_key(part, rules)
    index = _load(cache_dir, key, part, rules) if cache_dir else None
    state = np.array([index is not None, len(part.source)], np.int32)
    hits, sizes = share.gather(state).reshape(-1, 2).T
    if (sizes != len(part.source)).any():
        raise UserError(
            f"{part.source.path}: the processes see {sorted(set(sizes.tolist()))} rows;"
            " give all hosts the same files"
        )
    if hits.all():
        return index
    table, counts, error = np.zeros((0, 4), np.int32), Counter(), ""
    try:
        table, counts = _scan(part, rules, range(share.index, part.rows, share.count))
    except UserError as e:
        if share.count == 1:
            raise
        error = str(e)
    # every process gets here, also the one with the bad row: none waits for another
    tables = np.concatenate(_gather(share, table.ravel())).reshape(-1, 4)
    reports = _gather(share, np.frombuffer(_to_json([error, counts]), np.uint8))
    errors, counts = zip(
        *(json.loads(bytes(r.astype(np.uint8))) for r in reports), strict=True
    )
    if any(errors):
        raise UserError(next(filter(None, errors)))
    order = np.lexsort((tables[:, 1], tables[:, 0]))
    index = Index(tables[order], sum(map(Counter, counts), Counter()))
    if cache_dir:
        _save(cache_dir, key, index)
    return index


def _scan(part: Part, rules: Rules, rows: range):
    """Tokenises the rows; keeps only what their items measure."""
    found, counts = [], Counter()
    quiet = rows.start != 0  # process 0 reports for all
    bar = tqdm(
        total=len(rows),
        desc=f"tokens in {part.source.path}",
        unit=" rows",
        delay=3,
        mininterval=1,
        disable=quiet,
        leave=False,
    )
    with bar:
        for at in range(0, len(rows), CHUNK):
            chunk = rows[at : at + CHUNK]
            for row, items in _encode_checked(part, rules, chunk, counts):
                for number, item in enumerate(items):
                    _check_ids(item, rules.encoder, part.source.where(row))
                    item, reason = fit(item, rules.length, rules.too_long)
                    counts.update([reason] if reason else [])
                    if item is not None:
                        tokens = sum(len(ids) for ids, _ in item)
                        scored = sum(int((mask != 0).sum()) for _, mask in item)
                        found.append((row, number, tokens, scored))
            bar.update(len(chunk))
    return np.array(found, np.int32).reshape(-1, 4), counts


def _encode_rows(part: Part, rules: Rules, rows) -> list[list[Item]]:
    return rules.encoder.encode([part.format(part.source[row]) for row in rows])


def _encode_checked(part: Part, rules: Rules, rows, counts: Counter):
    """(row, items) of the rows that are good; the others are an error, or counted."""

    def attempt(row, step, *args):
        try:
            return [(row, step(*args))]
        except BadRow as e:
            _refuse(e, part.source.where(row), rules.bad_rows, counts)
        return []

    def encode_one(example):
        try:
            return rules.encoder.encode([example])[0]
        except UserError as e:
            raise BadRow("row", "cannot be encoded", str(e)) from e

    def read(row):
        return part.format(part.source[row])

    good = [pair for row in rows for pair in attempt(row, read, row)]
    examples = [example for _, example in good]
    try:
        items = rules.encoder.encode(examples)
        return [(row, found) for (row, _), found in zip(good, items, strict=True)]
    except UserError:  # one of them; alone each shows whether it is the one
        return [
            pair for row, example in good for pair in attempt(row, encode_one, example)
        ]


def _refuse(bad: BadRow, where: str, bad_rows: str, counts: Counter):
    if bad_rows == "error":
        place = "" if bad.where else f"{where}: "
        fix = "fix the row, or set data.bad_rows='skip'"
        raise UserError(f"{place}{bad}; {fix}") from bad
    counts[bad.name] += 1


def _check_ids(item: Item, encoder: Encoder, where: str):
    for ids, _ in item:
        if len(ids) and not 0 <= ids.min() <= ids.max() < encoder.vocab_size:
            bad = ids.max() if ids.min() >= 0 else ids.min()
            raise UserError(
                f"{where}: token id {bad} is outside the vocabulary of"
                f" {encoder.vocab_size}; the tokenizer does not belong to this model"
            )


def _gather(share: Share, array: np.ndarray) -> list[np.ndarray]:
    """One-dimensional arrays of different sizes from all processes."""
    array = array.astype(np.int32)
    sizes = share.gather(np.array([len(array)], np.int32))
    padded = np.zeros(max(int(sizes.max()), 1), np.int32)
    padded[: len(array)] = array
    parts = share.gather(padded).reshape(len(sizes), -1)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def _to_json(value) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _cache_key(part: Part, rules: Rules) -> str:
    """Changes with everything that the index depends on."""
    facts = [
        part.source.identity,
        part.rows,
        inspect.getsource(inspect.getmodule(part.format)),
        rules.encoder.name,
        rules.encoder.vocab_size,
        rules.length,
        rules.bad_rows,
        rules.too_long,
    ]
    return hashlib.sha256(_to_json(facts)).hexdigest()[:32]


def _load(cache_dir, key: str, part: Part, rules: Rules) -> Index | None:
    """The index, or None when it is absent, damaged or not for this key."""
    fs, root = fsspec.core.url_to_fs(str(cache_dir))
    try:
        stored = np.load(io.BytesIO(fs.cat_file(f"{root}/{key}.npz")))
        table, counts = stored["table"], json.loads(str(stored["counts"]))
        if str(stored["key"]) != key or table.dtype != np.int32:
            return None
    except Exception:  # whatever is wrong with the file: it is made anew
        return None
    rows, _, tokens, _ = table.T
    inside = (rows >= 0) & (rows < part.rows) & (tokens > 0) & (tokens <= rules.length)
    return Index(table, Counter(counts)) if inside.all() else None


def _save(cache_dir, key: str, index: Index):
    """Written beside its place and moved there: it is whole or not there."""
    fs, root = fsspec.core.url_to_fs(str(cache_dir))
    data, beside = io.BytesIO(), f"{root}/{key}.{uuid.uuid4().hex}.tmp"
    counts = json.dumps(index.counts)
    np.savez_compressed(data, table=index.table, counts=counts, key=key)
    try:
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(beside, data.getvalue())
        fs.mv(beside, f"{root}/{key}.npz")
    except OSError as e:
        raise UserError(
            f"{cache_dir}: cannot write the index: {e}; free some space there, or"
            " choose another cache_dir"
        ) from e
