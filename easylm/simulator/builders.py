"""Data sets that are made rather than downloaded, as tensorflow-datasets builders.

A class here is known to `tfds:NAME` paths by its name in snake case (WorldTalk is
tfds:world_talk), and its data is written when it is first opened. That happens in the
default data_dir of tensorflow-datasets, ~/tensorflow_datasets or $TFDS_DATA_DIR, unless
the path names another after "@".
"""

import contextlib
import io

import tensorflow_datasets as tfds

from easylm.errors import UserError
from easylm.simulator import world

Text = tfds.features.Text


class WorldText(tfds.core.GeneratorBasedBuilder):
    """Text of simulator/world.py to make a base model from."""

    # Data on disk is found by its version: raise it whenever the rows change.
    VERSION = tfds.core.Version("1.3.0")
    url_infos = None  # nothing is downloaded

    def _info(self):
        return _features(self, text=Text())

    def _split_generators(self, dl_manager):
        rows = {"train": world.documents(20_000), "dev": world.documents(100, seed=1)}
        return {name: self._generate_examples(rows[name]) for name in rows}

    def _generate_examples(self, rows):
        yield from enumerate(rows)


class WorldTalk(WorldText):
    """Demonstrations of simulator/world.py, in conversations."""

    def _info(self):
        return _features(self, family=Text(), messages=TURNS)

    def _split_generators(self, dl_manager):
        sizes = {"train": 500, "dev": 40}
        make = lambda name: world.demonstrations(name, sizes[name])
        return {name: self._generate_examples(make(name)) for name in sizes}


class WorldPrompts(WorldText):
    """Prompts of simulator/world.py, with what the gold reward is computed from."""

    def _info(self):
        return _features(
            self, **dict.fromkeys(("family", "prompt", "fact", "check"), Text())
        )

    def _split_generators(self, dl_manager):
        sizes = {"train": 1000, "dev": 50, "test": 100}
        make = lambda name: world.prompts(name, sizes[name])
        return {name: self._generate_examples(make(name)) for name in sizes}


TURNS = tfds.features.Sequence({"role": Text(), "content": Text()})


def _features(builder, **features):
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(features),
        description=builder.__doc__,
    )


def prepare(builder) -> None:
    """Writes the data of a builder of this file, if nobody has done it yet.

    Every process writes beside the final name and renames at the end: one wins, and the
    others find that the data is there.
    """
    if type(builder).__module__ != __name__ or builder.data_path.exists():
        return
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloads
            builder.download_and_prepare(
                download_config=offline, file_format="array_record"
            )
    except OSError as e:
        if not builder.data_path.exists():
            raise UserError(
                f"the data set {builder.name} cannot be written to {builder.data_path}:"
                f" {e.strerror or e}; name another folder with $TFDS_DATA_DIR"
            ) from e
