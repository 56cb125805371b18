"""`--mode=prepare`: writes the configured data as sharded TFDS folders that every host can read.

Each of <workdir>/data and <workdir>/unlabelled that the config names holds
  prepared.json                                the manifest: its sources; written first
  data-train.array_record-00000-of-00008       encoded images and masks, in order
  names-train.json                             the names of the examples, in order
  features.json, metadata.json, dataset_info.json   the description by TFDS; written last
The folders can be moved and copied, since no file holds the path of another.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from diffseg_jax.config.schema import differing_lines
from diffseg_jax.data.depth_source import DepthSource
from diffseg_jax.data.fingerprint import digest_of_data, fingerprint
from diffseg_jax.data.folder_source import FolderSource
from diffseg_jax.data.label_checks import read_labels, require_sensible
from diffseg_jax.data.names import digest_of
from diffseg_jax.data.orientation import stored_orientation
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.data.prepared import NAMES_FILE, NO_SPLIT, PREPARED_FILE, non_empty
from diffseg_jax.data.sources import require_images
from diffseg_jax.data.tfds import TfdsSource, encode_depth
from diffseg_jax.devices import processes
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.data_notes import notes_of
from diffseg_jax.experiment.evaluate import spread
from diffseg_jax.experiment.label_target import READ_FIRST
from diffseg_jax.experiment.labelled_images import (
    has_validation_split,
    open_data,
    other_validation,
)
from diffseg_jax.experiment.plan import check_config
from diffseg_jax.storage.lock import locked_in_all, require_free
from diffseg_jax.storage.paths import in_bucket, read_bytes
from diffseg_jax.storage.workdir import as_json, make_workdir

SHARD_BYTES = 128 * 2**20  # approximate size of a shard: the unit of uploads and of lost work
MIN_SHARDS = 8  # of a split, if it has as many examples; also at least two for each process
SAMPLED = 16  # examples from which the size of a split is estimated
SHARD_FILE = "{part}-{split}.array_record-{index:05d}-of-{count:05d}"
CONTENT = "content"  # in the manifest: split -> digests of the files that shards are written from
ONE_PER_GROUP = "group_size:1"  # of array_record: reading an example does not read its neighbours
STORED_FORMATS = ("JPEG", "PNG")  # image files in these formats are stored unchanged


def prepare(config: ConfigDict, workdir: Path, display: Display | None = None):
    """Writes each part of the data to <workdir>/<part>; resumes where it was stopped.

    Afterwards --config.<part>.source=tfds:<workdir>/<part> reads the same examples. Of several
    processes each writes its share of the shards. Raises UserError for an example that cannot be
    used, for labels that are certainly wrong, and for a folder that was prepared from other data.
    """
    require_free(workdir, "prepare", "--workdir")
    check_config(config)
    display = display or Display(quiet=not processes.is_first())
    parts = {}
    if "data" in config:
        held = has_validation_split(config) and not other_validation(config)
        val = (config.data.val,) if held else ()
        parts["data"] = (config.data.train, *val)
    if "unlabelled" in config and config.unlabelled.source:
        parts["unlabelled"] = (config.unlabelled.split,)
    with display.progress("opens the data, and reads some labels"):
        sources = {part: open_splits(config, part, splits) for part, splits in parts.items()}
        judge_labels(sources.get("data", {}), display)
    make_workdir(workdir)
    with locked_in_all(workdir, "prepare", "--workdir"):
        for part, splits in sources.items():
            prepare_part(config, part, splits, workdir / part, display)


def judge_labels(sources: dict[str, Sequence], display: Display):
    """Says warnings about the labels of two splits; UserError if they are certainly wrong."""
    seen = [
        read_labels(split, source, range(len(source)), spread(range(len(source)), READ_FIRST))
        for split, source in sources.items()
        if source.labels
    ]
    for sentence in require_sensible(*seen) if len(seen) == 2 else ():
        display.say(f"warning: {sentence}")


def open_splits(config: ConfigDict, part: str, splits: Sequence[str]) -> dict[str, Sequence]:
    """{name of the split in the prepared folder: source}."""
    require_images(config[part].source, "--mode=prepare")
    opened = {}
    for split in splits:
        name = split or NO_SPLIT
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "all":
            raise UserError(
                f'split "{split}" of {part} cannot be the name of a prepared split. Give a '
                "complete split whose name consists of letters, digits and _, and is not all."
            )
        source = open_data(config, part, split)
        opened[name] = source.source if isinstance(source, Cached) else source
    return opened


def prepare_part(
    config: ConfigDict, part: str, sources: dict[str, Sequence], folder: Path, display: Display
):
    """Writes the splits of one part, then the description that makes the folder open."""
    manifest = make_manifest(config, part, sources)
    make_workdir(folder)
    was_complete = (folder / "dataset_info.json").exists()
    for source in sources.values():
        for note in notes_of(source, range(len(source))):
            display.say(f"note: {note}")
    problem = None
    if processes.is_first():
        try:
            with display.progress(f"{part}: reads and plans its files"):
                plan_shards(part, manifest, sources, folder)
        except UserError as error:
            problem = error
    if not processes.true_in_all(problem is None):
        raise problem or UserError(f"process 0 could not plan {folder}; see its log.")
    manifest = add_shards(manifest, folder)
    written = 0
    try:
        for split, source in sources.items():
            count = manifest["shards"][split]
            threads = config[part].threads
            written += write_split(part, split, source, folder, count, threads, display)
    except UserError as error:
        problem = error
    if not processes.true_in_all(problem is None):
        raise problem or UserError(f"another process could not write its share of {folder}.")
    if processes.is_first() and not was_complete:
        with display.progress(f"{part}: writes its description"):
            finish_part(part, sources, folder, manifest)
    processes.barrier(f"{part} prepared")
    state = "is prepared already" if was_complete and not written else "is prepared"
    display.say(f"{part}: {folder} {state}; --config.{part}.source=tfds:{folder} reads it")


def make_manifest(config: ConfigDict, part: str, sources: dict[str, Sequence]) -> dict:
    """The data, options and examples that a folder is made from, as plain JSON values.

    Raises UserError for splits that do not share their classes.
    """
    data = config[part]
    labels_of = {split: _labels(source) for split, source in sources.items()}
    first, labels = next(iter(labels_of.items()))
    for split, other in labels_of.items():
        if other != labels:
            raise UserError(
                f"splits {first} and {split} of {part} have different classes, so they cannot "
                "share a prepared folder. Prepare them in separate folders."
            )
    names = {
        split: {"images": len(source), "sha256": digest_of(source.names)}
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


def plan_shards(part: str, manifest: dict, sources: dict[str, Sequence], folder: Path):
    """Writes the manifest with the number of shards and a digest of the files behind each of them.

    Digests may change where shards are missing, as after the repair of a file. Raises UserError for
    a folder of other data, and for shards that were written from files that have changed since.
    """
    file = folder / PREPARED_FILE
    old = add_shards(manifest, folder) if file.exists() else {}
    if old and CONTENT not in old:  # of an older version: its shards are of unknown files
        return
    shards = old.get("shards") or {split: count_shards(each) for split, each in sources.items()}
    content = {split: digests_of_files(each, shards[split]) for split, each in sources.items()}
    planned = manifest | {"shards": shards, CONTENT: content}
    if planned == old:
        return
    for split, source in sources.items() if old else ():
        require_unchanged(part, split, source, folder, old[CONTENT][split], content[split])
    with scratch(folder) as drafts:
        publish_json(planned, drafts / PREPARED_FILE, file)


def digests_of_files(source: Sequence, count: int) -> list[str]:
    """One for each shard: of the files of its examples, or of all where a file holds several."""
    found = fingerprint(source, np.arange(len(source)))
    files, rules = found["files"], found["ids"][:1]  # by which what is stored becomes labels
    everything = digest_of_data(files).hex()
    each = [files.get(name, everything) for name in source.names]
    parts = [
        {"files": each[rows.start : rows.stop], "ids": rules}
        for rows in shard_ranges(len(source), count)
    ]
    return [digest_of_data(part).hex()[:16] for part in parts]


def require_unchanged(part, split, source, folder, before: list[str], now: list[str]):
    """UserError where a shard exists whose files have another digest than before."""
    for index, rows in enumerate(shard_ranges(len(source), len(now))):
        name = SHARD_FILE.format(part=part, split=split, index=index, count=len(now))
        if before[index] != now[index] and (folder / name).exists():
            first, last = source.names[rows[0]], source.names[rows[-1]]
            raise UserError(
                f"{folder} holds other data: of the images {first} to {last} of split {split}, or "
                f"of their labels, some have changed since {name} was written. Remove the folder, "
                "or give another --workdir."
            )


def add_shards(manifest: dict, folder: Path) -> dict:
    """The manifest with the shards of the one in the folder; UserError if the rest differs.

    With the digests of their files too, which folders of older versions lack.
    """
    try:
        stored = json.loads((folder / PREPARED_FILE).read_text())
        shards = {"shards": stored.pop("shards")}
        shards |= {CONTENT: stored.pop(CONTENT)} if CONTENT in stored else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"cannot read {folder / PREPARED_FILE} ({error!r}), so what {folder} holds is unknown. "
            "Remove the folder, or give another --workdir."
        ) from None
    if lines := differing_lines(stored, manifest):
        raise UserError(
            f"{folder} holds other data. Remove it, give another --workdir, or undo:\n  "
            + "\n  ".join(lines)
        )
    return manifest | shards


def count_shards(source: Sequence) -> int:
    """The number of files for the examples of a source."""
    sample = np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int))
    sizes = [len(_serializer(source)(encode(source, int(index)))) for index in sample]
    files = int(np.ceil(np.mean(sizes) * len(source) / SHARD_BYTES))
    return min(len(source), max(files, MIN_SHARDS, 2 * jax.process_count()))


# ---- examples ----------------------------------------------------------------------------------


def encode(source: Sequence, index: int) -> dict:
    """The example as it is stored: encoded image, mask and depth, and the class of the image."""
    example = source[index]
    stored = {"image": original_file(source, index) or png(example["image"])}
    stored |= {part: kind.file(example[part]) for part, kind in TRUTHS.items() if part in example}
    if "class" in example:
        stored["class"] = int(example["class"])
    return stored


def original_file(source: Sequence, index: int) -> bytes:
    """The file of an image if the source shows its stored pixels unchanged, or b""."""
    content = b""
    if type(source) is FolderSource or type(source) is DepthSource and not source.part:
        content = read_bytes(source.images[index])
        content = content if stored_orientation(content) == 1 else b""  # it is shown upright
    elif type(source) is TfdsSource:
        content = source.example(index)[source.image_key]
    if not content:
        return b""
    with Image.open(io.BytesIO(content)) as image:
        return content if image.format in STORED_FORMATS and image.mode == "RGB" else b""


def png(array: np.ndarray) -> bytes:
    """uint8[H,W] or uint8[H,W,3] as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


@dataclasses.dataclass(frozen=True)
class StoredTruth:
    """How the truth of an example is stored: array[H,W] -> bytes of a PNG, and TFDS's dtype."""

    file: Callable
    dtype: type


TRUTHS = {  # a part of an example
    "mask": StoredTruth(lambda mask: png(mask.astype(np.uint8)), np.uint8),
    "depth": StoredTruth(encode_depth, np.float32),
}


def features_of(source: Sequence):
    """The description, in TFDS's terms, of what `encode` returns."""
    from tensorflow_datasets import features

    described, example = {"image": features.Image(shape=(None, None, 3))}, source[0]
    described |= {
        part: features.Image(shape=(None, None, 1), dtype=kind.dtype, encoding_format="png")
        for part, kind in TRUTHS.items() if part in example
    }  # fmt: skip
    if source.classes:
        described["class"] = features.ClassLabel(names=list(source.classes))
    return features.FeaturesDict(described)


def _serializer(source) -> Callable[[dict], bytes]:
    import tensorflow_datasets as tfds

    info = features_of(source).get_serialized_info()
    to_message = tfds.core.example_serializer.ExampleSerializer(info).get_tf_example
    # Without `deterministic` the order of the features in an example differs between processes.
    return lambda example: to_message(example).SerializeToString(deterministic=True)


# ---- files -------------------------------------------------------------------------------------


def write_split(part, split, source, folder, count, threads, display):
    """Writes the missing ones of this process's shards; returns the number of images written.

    Raises UserError for an example that cannot be used and for files that cannot be written.
    """
    shards = {
        folder / SHARD_FILE.format(part=part, split=split, index=index, count=count): examples
        for index, examples in enumerate(shard_ranges(len(source), count))
        if index % jax.process_count() == jax.process_index()
    }
    missing = {file: rows for file, rows in shards.items() if not is_complete(file, len(rows))}
    total = sum(map(len, missing.values()))
    existing = sum(map(len, shards.values())) - total
    display.say(f"{part}, {split}: {counted(len(source), 'image')} in {counted(count, 'shard')}")
    if existing:
        display.say(f"  {counted(existing, 'image')} are there already")
    serialize = _serializer(source)
    shown = display.progress(f"  writes {split}", total, unit="images")
    with scratch(folder) as drafts, ThreadPoolExecutor(threads) as pool, shown as progress:
        for file, examples in missing.items():
            records = pool.map(lambda index: serialize(encode(source, index)), examples)
            records = progress.each_of(records)
            write_shard(records, drafts / file.name, file)
    return total


def shard_ranges(examples: int, shards: int) -> list[range]:
    """The indices of the examples in each shard: in order, and of nearly equal number."""
    edges = [examples * index // shards for index in range(shards + 1)]
    return [range(*pair) for pair in zip(edges, edges[1:])]


def is_complete(file: Path, examples: int) -> bool:
    """Whether a shard exists with that many examples; in a bucket no file is ever partial."""
    from array_record.python import array_record_module as array_record

    if in_bucket(file) or not file.exists():
        return file.exists()
    reader = array_record.ArrayRecordReader(str(file), "readahead_buffer_size:0")
    found = reader.num_records()
    with contextlib.suppress(RuntimeError):  # close() reports damage found at opening
        reader.close()
    return found == examples


def write_shard(records: Iterator[bytes], draft: Path, file: Path):
    """Writes records to a draft, then moves it to `file`."""
    from array_record.python import array_record_module as array_record

    try:
        writer = array_record.ArrayRecordWriter(str(draft), ONE_PER_GROUP)
        try:
            for record in records:
                writer.write(record)
        finally:
            records.close()  # cancels pending encoding if writing failed
            writer.close()
        publish(draft, file)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"cannot write {file}: {str(error).splitlines()[0]}. Free disk space or repair the "
            "folder; the same command resumes with the shards that are missing."
        ) from None


@contextlib.contextmanager
def scratch(folder: Path):
    """`with scratch(folder) as drafts`: a temporary folder, inside `folder` if that is local."""
    if not in_bucket(folder):
        drafts = folder / f".partial-{jax.process_index()}"
        shutil.rmtree(drafts, ignore_errors=True)  # left by a run that was killed
        drafts.mkdir()
    else:
        drafts = Path(tempfile.mkdtemp())
    try:
        yield drafts
    finally:
        shutil.rmtree(drafts, ignore_errors=True)


def publish(draft: Path, file: Path):
    """Moves a finished draft to `file`, where readers see either all of it or nothing."""
    if not in_bucket(file):
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    else:
        file.write_bytes(draft.read_bytes())
        draft.unlink()


def publish_json(content, draft: Path, file: Path):
    """Writes a JSON file that readers never see in part."""
    draft.write_text(json.dumps(content, indent=1) + "\n")
    publish(draft, file)


def finish_part(part, sources, folder, manifest):
    """Writes the names and TFDS's description; its last file makes the folder one that opens."""
    for drafts in folder.glob(".partial-*"):  # left by processes that were killed; not in a bucket
        shutil.rmtree(drafts, ignore_errors=True)
    with scratch(folder) as drafts:
        for split, source in sources.items():
            name = NAMES_FILE.format(split=split)
            publish_json(list(source.names), drafts / name, folder / name)
        description = drafts / "description"
        description.mkdir()
        dataset_info(part, sources, folder, manifest).write_to_directory(description)
        last = description / "dataset_info.json"
        for file in [*(file for file in description.iterdir() if file != last), last]:
            publish(file, folder / file.name)


def dataset_info(part, sources, folder, manifest):
    """The description of the shards in the folder, in TFDS's terms."""
    import tensorflow_datasets as tfds

    labels = {key: value for key, value in manifest["labels"].items() if key != "classes"}
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
    counts = manifest["shards"]
    info.set_splits(
        tfds.core.splits.SplitDict(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(shard) for shard in shard_ranges(len(source), counts[split])],
                num_bytes=_bytes(folder, part, split, counts[split]),
                filename_template=template,
            )
            for split, source in sources.items()
        )
    )
    return info


def _bytes(folder, part, split, count):
    names = (SHARD_FILE.format(part=part, split=split, index=i, count=count) for i in range(count))
    return sum(epath.Path(folder / name).stat().length for name in names)
