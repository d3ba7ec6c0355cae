"""Sources: the same rows from every kind of file, and errors that name the place."""

import gzip
import importlib
import json
import sys

import fsspec
import pytest

from easylm.data.sources import BadRow, open_source
from easylm.errors import UserError

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"how old is house {i}? é"},
            {"role": "assistant", "content": "x" * i},
        ],
        "prompt": f"p{i}",
        "scores": [0.5 * i, 1.0],
        "n": i,
    }
    for i in range(20)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same rows as jsonl, jsonl.gz, parquet and a tfds data set."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path_factory.mktemp("rows")
    (path / "rows.jsonl").write_text(LINES)
    (path / "rows.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, path / "rows.parquet", row_group_size=7)
    _write_tfds(path / "tfds")
    return path


def _write_tfds(data_dir):
    import numpy as np
    import tensorflow_datasets as tfds

    text = tfds.features.Text()

    class Houses(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            turn = {"role": text, "content": text}
            features = {
                "messages": tfds.features.Sequence(turn),
                "prompt": text,
                "scores": tfds.features.Sequence(np.float64),
                "n": np.int64,
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(ROWS)

    builder = Houses(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_every_kind_of_file_gives_the_same_rows(folder, name):
    source = open_source(folder / name)
    assert [source[i] for i in reversed(range(20))] == ROWS[::-1]


def test_tfds_gives_the_same_rows_without_tensorflow(folder):
    source = open_source(f"tfds:houses:train@{folder}/tfds")
    rows = sorted((source[i] for i in range(len(source))), key=lambda row: row["n"])
    assert rows == ROWS
    assert len(open_source(f"tfds:houses:train[:25%]@{folder}/tfds")) == 5


def test_nothing_here_needs_tensorflow(folder):
    import subprocess
    import sys

    code = (
        "import sys; from easylm.data.sources import open_source;"
        f"print(len(open_source('tfds:houses@{folder}/tfds')), "
        "'tensorflow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "20 False", out.stderr


def test_shards_follow_each_other_and_keep_their_own_line_numbers(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n\n \r\n{"n": 3}')
    (tmp_path / "a.jsonl").write_text('{"n": 0}\r\n{"n": 1}\n')
    by_glob, by_folder = open_source(f"{tmp_path}/*.jsonl"), open_source(tmp_path)
    by_list = open_source([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    for source in (by_glob, by_folder, by_list):
        assert [source[i]["n"] for i in range(len(source))] == [0, 1, 2, 3]
        assert source.where(3) == f"{tmp_path}/b.jsonl:line 4"
        with pytest.raises(IndexError):
            source[4]


def test_parquet_reads_only_the_columns_that_are_asked_for(folder):
    source = open_source(folder / "rows.parquet")
    assert source[19]["prompt"] == "p19" and "scores" in source[3]
    assert list(source.shards[0].columns) == ["prompt"]
    with pytest.raises(KeyError):
        source[0]["answer"]


def test_remote_files_are_read_like_local_ones():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/rows-0.jsonl", LINES.encode())
    fs.pipe_file("/bucket/rows-1.jsonl.gz", gzip.compress(LINES.encode()))
    source = open_source("memory://bucket/*.jsonl*")
    assert len(source) == 40 and source[25] == ROWS[5]
    assert source.where(20) == "memory:///bucket/rows-1.jsonl.gz:line 1"
    assert open_source("memory://bucket")[39] == ROWS[19]


def test_identity_changes_with_the_file(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 0}\n')
    before = open_source(file).identity
    assert open_source(file).identity == before
    file.write_text('{"n": 1}\n')
    assert open_source(file).identity != before


def test_malformed_line_names_file_line_and_problem(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"n": 0}\n{"n": 1,}\n[3]\n"\xff"\n')
    source = open_source(file)
    expected = {
        1: f"{file}:line 2: 'line' is not valid JSON: .* at character 9 of",
        2: f"{file}:line 3: .* expected one {{...}} per line, found '\\[3\\]'",
        3: f"{file}:line 4: .* not UTF-8 at byte 2",
    }
    for row, message in expected.items():
        with pytest.raises(BadRow, match=message) as error:
            source[row]
        assert error.value.name == "line_is_not_valid_json"


def test_missing_empty_damaged_and_unknown_files_are_one_line_errors(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b"x" * 99)[:-9])
    (tmp_path / "none").mkdir()
    expected = {
        f"{tmp_path}/no.jsonl": "no such file",
        f"{tmp_path}/no.parquet": "no such file",
        f"{tmp_path}/x*.jsonl": "no such data",
        f"{tmp_path}/none": "no such data",
        f"{tmp_path}/empty.jsonl": "has no rows",
        f"{tmp_path}/bad.parquet": "damaged Parquet file",
        f"{tmp_path}/bad.jsonl.gz": "damaged gzip file",
        f"{tmp_path}/rows.csv": "unknown kind of file",
        "tfds:": "expected tfds:NAME",
        f"tfds:no_such_set@{tmp_path}": "no data set 'no_such_set'",
        f"tfds:mnist@{tmp_path}": "download_and_prepare",
        "nothing://a/b.jsonl": "Protocol not known",
    }
    for path, message in expected.items():
        with pytest.raises(UserError, match=message) as error:
            open_source(path)
        assert "\n" not in str(error.value) and path.rstrip("*") in str(error.value)


def test_gs_without_gcsfs_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(known, "gs", raising=False)
    with pytest.raises(UserError, match="pip install gcsfs"):
        open_source("gs://bucket/rows.jsonl")


def test_unknown_tfds_split_lists_the_splits(folder):
    with pytest.raises(UserError, match=r"Unknown split 'dev'.*\['train'\]"):
        open_source(f"tfds:houses:dev@{folder}/tfds")
