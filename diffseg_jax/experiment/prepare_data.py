"""Writes the configured data as sharded TFDS folders, which every host reads back identically.

<workdir>/data and <workdir>/unlabelled, as far as the config names them, each with
  prepared.json                                what is written from what; the first file
  data-train.array_record-00000-of-00008       encoded pictures and label maps, in order
  names-train.json                             the names of the examples, in order
  features.json, metadata.json, dataset_info.json   TFDS's own description; the last files
A folder may be copied or moved whole: no file holds the path of another.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffseg_jax.config.schema import differing_lines
from diffseg_jax.data.folder_source import FolderSource
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.data.prepared import NAMES_FILE, NO_SPLIT, PREPARED_FILE, non_empty
from diffseg_jax.data.tfds import TfdsSource, encode_depth
from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.plan import check_config, open_data
from diffseg_jax.storage.paths import in_bucket, read_bytes
from diffseg_jax.storage.workdir import as_json, make_workdir
from diffseg_jax.training.log import duration

SHARD_BYTES = 128 * 2**20  # of a file of examples, about: what a kill can cost, and one upload
LEAST_SHARDS = 8  # of a split that has so many examples; at least two for each host that writes
SAMPLED = 16  # examples that tell how large the others are
FILE = "{part}-{split}.array_record-{place:05d}-of-{count:05d}"
ONE_BY_ONE = "group_size:1"  # of array_record: each example is read without its neighbours
KEPT = ("JPEG", "PNG")  # files of pictures that are stored as they are


def prepare(config: ConfigDict, workdir: Path):
    """Writes each part of the data to <workdir>/<part>; goes on where it was stopped.

    Afterwards --config.<part>.source=tfds:<workdir>/<part> reads the same examples. With several
    processes each writes its share of the shards. Raises UserError for an example that cannot be
    used, and for a folder that was prepared from something else.
    """
    check_config(config)
    parts = {}
    if "data" in config:
        parts["data"] = (config.data.train, config.data.val)
    if "unlabelled" in config and config.unlabelled.source:
        parts["unlabelled"] = (config.unlabelled.split,)
    sources = {part: open_splits(config, part, splits) for part, splits in parts.items()}
    make_workdir(workdir)
    for part, splits in sources.items():
        prepare_part(config, part, splits, workdir / part)


def open_splits(config: ConfigDict, part: str, splits: Sequence[str]) -> dict[str, Sequence]:
    """{name of the split in the prepared folder: source}."""
    opened = {}
    for split in splits:
        name = split or NO_SPLIT
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "all":
            raise UserError(
                f'split "{split}" of {part} cannot be the name of a prepared split. Give one of '
                "letters, digits and _, whole and other than all."
            )
        source = open_data(config, part, split)
        opened[name] = source.source if isinstance(source, Cached) else source
    return opened


def prepare_part(config: ConfigDict, part: str, sources: dict[str, Sequence], folder: Path):
    """Writes the splits of one part, then what makes the folder one that opens."""
    plan = describe(config, part, sources)
    make_workdir(folder)
    whole = (folder / "dataset_info.json").exists()
    if processes.is_first() and not (folder / PREPARED_FILE).exists():
        with scratch(folder) as place:
            shards = {split: shards_of(source) for split, source in sources.items()}
            publish_json(plan | {"shards": shards}, place / PREPARED_FILE, folder / PREPARED_FILE)
    processes.barrier(f"{part} planned")
    plan = same_plan(plan, folder)
    written, problem = 0, None
    try:
        for split, source in sources.items():
            count = plan["shards"][split]
            written += write_split(part, split, source, folder, count, config[part].threads)
    except UserError as error:
        problem = error
    if not processes.true_in_all(problem is None):
        raise problem or UserError(f"another process could not write its share of {folder}.")
    if processes.is_first() and not whole:
        finish(part, sources, folder, plan)
    processes.barrier(f"{part} prepared")
    done = "is prepared already" if whole and not written else "is prepared"
    say(f"{part}: {folder} {done}; --config.{part}.source=tfds:{folder} reads it")


def describe(config: ConfigDict, part: str, sources: dict[str, Sequence]) -> dict:
    """What is written from what, as JSON gives it back.

    Raises UserError for splits that do not share their classes.
    """
    data = config[part]
    kinds = {split: _labels(source) for split, source in sources.items()}
    first, labels = next(iter(kinds.items()))
    for split, other in kinds.items():
        if other != labels:
            raise UserError(
                f"splits {first} and {split} of {part} have different classes, so they cannot "
                "share a prepared folder. Prepare them one by one."
            )
    names = {
        split: {"images": len(source), "sha256": _digest(source.names)}
        for split, source in sources.items()
    }
    return as_json(
        {
            "source": data.source,
            "path": data.path,
            "options": non_empty(data.options.to_dict()),
            "labels": labels,
            "splits": names,
        }
    )


def _labels(source):
    labels = dataclasses.asdict(source.labels) if source.labels else {}
    return {**labels, "classes": source.classes}


def _digest(names):
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def same_plan(plan: dict, folder: Path) -> dict:
    """The plan in the folder, which knows the shards; UserError if it is another than `plan`."""
    try:
        old = json.loads((folder / PREPARED_FILE).read_text())
        shards = old.pop("shards")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read {folder / PREPARED_FILE} ({error!r}), so what {folder} holds is unknown. "
            "Remove the folder, or take another --workdir."
        ) from None
    if lines := differing_lines(old, plan):
        raise UserError(
            f"{folder} holds other data; remove it, take another --workdir, or undo:\n  "
            + "\n  ".join(lines)
        )
    return plan | {"shards": shards}


def shards_of(source: Sequence) -> int:
    """How many files the examples of a source fill."""
    places = np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int))
    sizes = [len(_serializer(source)(encode(source, int(place)))) for place in places]
    files = int(np.ceil(np.mean(sizes) * len(source) / SHARD_BYTES))
    return min(len(source), max(files, LEAST_SHARDS, 2 * jax.process_count()))


# ---- examples ----------------------------------------------------------------------------------


def encode(source: Sequence, place: int) -> dict:
    """The example as it is stored: files in memory, and the class of the whole picture."""
    example = source[place]
    stored = {"image": own_file(source, place) or png(example["image"])}
    if "mask" in example:
        stored["mask"] = png(example["mask"].astype(np.uint8))
    if "depth" in example:
        stored["depth"] = encode_depth(example["depth"])
    if "class" in example:
        stored["class"] = int(example["class"])
    return stored


def own_file(source: Sequence, place: int) -> bytes:
    """The file of a picture that the source shows unchanged, if any reader can show it, or b""."""
    own = b""
    if type(source) is FolderSource:
        own = read_bytes(source.images[place])
    elif type(source) is TfdsSource:
        own = source.example(place)[source.image_key]
    if not own:
        return b""
    with Image.open(io.BytesIO(own)) as picture:
        return own if picture.format in KEPT and picture.mode == "RGB" else b""


def png(array: np.ndarray) -> bytes:
    """u8[H,W] or u8[H,W,3] as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def features_of(source: Sequence):
    """TFDS's description of what `encode` returns."""
    from tensorflow_datasets import features

    kinds = {"image": features.Image(shape=(None, None, 3))}
    if source.labels:
        kinds["mask"] = features.Image(shape=(None, None, 1), encoding_format="png")
    if "depth" in source[0]:
        kinds["depth"] = features.Image(
            shape=(None, None, 1), dtype=np.float32, encoding_format="png"
        )
    if source.classes:
        kinds["class"] = features.ClassLabel(names=list(source.classes))
    return features.FeaturesDict(kinds)


def _serializer(source) -> Callable[[dict], bytes]:
    import tensorflow_datasets as tfds

    kinds = features_of(source).get_serialized_info()
    make = tfds.core.example_serializer.ExampleSerializer(kinds).get_tf_example
    # Otherwise the order of the features within an example is another in every process.
    return lambda example: make(example).SerializeToString(deterministic=True)


# ---- files -------------------------------------------------------------------------------------


def write_split(part, split, source, folder, count, threads):
    """Writes those of this process's shards that are not there yet; returns how many images.

    Raises UserError for an example that cannot be used and for files that cannot be written.
    """
    files = {
        folder / FILE.format(part=part, split=split, place=place, count=count): places
        for place, places in enumerate(bounds(len(source), count))
        if place % jax.process_count() == jax.process_index()
    }
    left = {file: places for file, places in files.items() if not holds(file, len(places))}
    total, done, start = sum(map(len, left.values())), 0, time.monotonic()
    there = sum(map(len, files.values())) - total
    say(f"{part}, {split}: {counted(len(source), 'image')} in {counted(count, 'shard')}")
    if there:
        say(f"  {counted(there, 'image')} are there already")
    store = _serializer(source)
    with scratch(folder) as place, ThreadPoolExecutor(threads) as pool:
        for file, places in left.items():
            records = pool.map(lambda at: store(encode(source, at)), places)
            write_shard(records, place / file.name, file)
            done += len(places)
            seconds = (time.monotonic() - start) * (total / done - 1)
            say(f"  {done:,} of {counted(total, 'image')}, {duration(seconds)} left")
    return total


def bounds(examples: int, shards: int) -> list[range]:
    """The places of the examples of each shard, in order, as even as they can be."""
    edges = [examples * place // shards for place in range(shards + 1)]
    return [range(*pair) for pair in zip(edges, edges[1:])]


def holds(file: Path, examples: int) -> bool:
    """Whether a shard is there with so many examples; in a bucket files are whole or absent."""
    from array_record.python import array_record_module as array_record

    if in_bucket(file) or not file.exists():
        return file.exists()
    reader = array_record.ArrayRecordReader(str(file), "readahead_buffer_size:0")
    found = reader.num_records()
    with contextlib.suppress(RuntimeError):  # what it found damaged when it was opened
        reader.close()
    return found == examples


def write_shard(records: Iterator[bytes], draft: Path, file: Path):
    """Writes a file of records under another name, then gives it its own."""
    from array_record.python import array_record_module as array_record

    try:
        writer = array_record.ArrayRecordWriter(str(draft), ONE_BY_ONE)
        try:
            for record in records:
                writer.write(record)
        finally:
            records.close()  # drops what is not encoded yet, where this did not come to its end
            writer.close()
        publish(draft, file)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"cannot write {file}: {str(error).splitlines()[0]}. Make room or mend the folder; the "
            "same command goes on with the shards that are not written yet."
        ) from None


@contextlib.contextmanager
def scratch(folder: Path):
    """`with scratch(...) as place`: a local folder for drafts, beside their places if it can be."""
    if not in_bucket(folder):
        place = folder / f".partial-{jax.process_index()}"
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
        place.mkdir()
    else:
        place = Path(tempfile.mkdtemp())
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def publish(draft: Path, file: Path):
    """Gives a finished draft its place; whoever looks there sees all of it or nothing."""
    if not in_bucket(file):
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    else:
        file.write_bytes(draft.read_bytes())
        draft.unlink()


def publish_json(content, draft: Path, file: Path):
    """Writes a JSON file whole."""
    draft.write_text(json.dumps(content, indent=1) + "\n")
    publish(draft, file)


def finish(part, sources, folder, plan):
    """Writes names and TFDS's description; what makes the folder one that opens comes last."""
    if not in_bucket(folder):
        for left in folder.glob(".partial-*"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)
    with scratch(folder) as place:
        for split, source in sources.items():
            name = NAMES_FILE.format(split=split)
            publish_json(list(source.names), place / name, folder / name)
        description = place / "description"
        description.mkdir()
        dataset_info(part, sources, folder, plan).write_to_directory(description)
        last = description / "dataset_info.json"
        for file in [*(file for file in description.iterdir() if file != last), last]:
            publish(file, folder / file.name)


def dataset_info(part, sources, folder, plan):
    """TFDS's description of the shards that lie in the folder."""
    import tensorflow_datasets as tfds

    labels = {name: plan["labels"][name] for name in plan["labels"] if name != "classes"}
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=part, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
        ),
        features=features_of(next(iter(sources.values()))),
        metadata=tfds.core.MetadataDict(prepared=True, **labels),
    )
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=part, filetype_suffix="array_record"
    )
    sized = [(split, source, plan["shards"][split]) for split, source in sources.items()]
    info.set_splits(
        tfds.core.splits.SplitDict(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(places) for places in bounds(len(source), count)],
                num_bytes=_bytes(folder, part, split, count),
                filename_template=template,
            )
            for split, source, count in sized
        )
    )
    return info


def _bytes(folder, part, split, count):
    names = (FILE.format(part=part, split=split, place=i, count=count) for i in range(count))
    stats = [(folder / name).stat() for name in names]
    return sum(stat.length if in_bucket(folder) else stat.st_size for stat in stats)


def say(text: str):
    """A line for the reader, from the first process."""
    if processes.is_first():
        print(text, flush=True)
