"""Data sets prepared by tensorflow_datasets (TFDS), read without TensorFlow."""

import io
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from diffseg_jax.data.class_ids import MaskRules, id_table
from diffseg_jax.data.images import read_image, require_same_size
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.masks import read_ids
from diffseg_jax.data.named_sets import CITYSCAPES, cityscapes_table
from diffseg_jax.data.palette import distinct_colours, numbered_labels
from diffseg_jax.data.prepared import NO_SPLIT, PREPARED_FILE, listed_names
from diffseg_jax.errors import UserError, choose, require_known
from diffseg_jax.storage.paths import in_bucket, open_path, reachable

IMAGE_KEYS = ("image", "image_left")
MASK_KEYS = ("mask", "segmentation_mask", "segmentation_label", "label_map", "label map")


def _pets():
    """Oxford pets trimaps hold 1 pet, 2 background, 3 outline; the classes are 0..2."""
    table = id_table(3, zero_is_ignored=True)
    table[0] = -1
    colours = (220, 60, 40), (60, 90, 160), (240, 200, 60)
    return Labels(("pet", "background", "outline"), colours), table


RAW_ID_SETS = {  # data sets of TFDS whose masks hold raw ids: name -> () -> (Labels, id table)
    "oxford_iiit_pet": _pets,
    "cityscapes": lambda: (CITYSCAPES, cityscapes_table()),
}


@dataclass(frozen=True, eq=False)
class TfdsSource:
    """One split of a prepared TFDS folder, random access; decodes and checks as FolderSource.

    Images are not turned by EXIF orientations, as TFDS itself does not; those that --mode=prepare
    wrote are upright.
    """

    examples: object
    image_key: str
    mask_key: str
    names: tuple[str, ...] = field(repr=False)
    labels: Labels | None
    rules: MaskRules | None = field(repr=False)
    label_key: str = ""
    classes: tuple[str, ...] = ()
    depth_key: str = ""
    report: tuple[str, ...] = ()

    def __len__(self):
        return len(self.names)

    def files(self):
        """The paths of the files that hold the split, or the slice of it."""
        from tensorflow_datasets.core.data_sources.base import file_instructions

        found = file_instructions(self.examples.dataset_info, self.examples.split)
        return sorted({str(instruction.filename) for instruction in found})

    def example(self, index):
        """The example as stored, with encoded images; UserError for a damaged file."""
        index = range(len(self))[index]
        try:
            return self.examples[index]
        except (RuntimeError, ValueError, IndexError) as error:
            folder = self.examples.dataset_info.data_dir
            remedy = "Copy or prepare the folder again."
            if in_bucket(folder):
                remedy = f"Or read it from a local disk: gcloud storage cp -r {folder} ."
            raise UserError(
                f"cannot read example {self.names[index]} of {folder}: "
                f"{str(error).splitlines()[0]}. {remedy}"
            ) from None

    def __getitem__(self, index):
        example, name = self.example(index), self.names[index]
        item = {"image": read_image(name, example[self.image_key], as_stored=True)}
        item["name"] = name
        if self.mask_key:
            ids = read_ids(name, example[self.mask_key], self.rules)
            require_same_size(item["image"], ids, name, name)
            item["mask"] = self.rules.to_classes(ids, name)
        if self.label_key:
            item["class"] = np.int32(example[self.label_key])
            if item["class"] < 0:  # TFDS stores -1 for unlabelled examples
                raise UserError(
                    f"{name} has no class in {self.label_key}. Take another split, or give "
                    "label_key=''."
                )
        if self.depth_key:
            item["depth"] = decode_depth(example[self.depth_key])
        return item


def encode_depth(depth):
    """float32[H,W] as a PNG of its bytes, which is how TFDS stores float images."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(depth)[..., None].view(np.uint8), "RGBA").save(
        stream, "PNG"
    )
    return stream.getvalue()


def decode_depth(encoded):
    """float32[H,W] from the result of `encode_depth`."""
    return np.array(Image.open(io.BytesIO(encoded))).view(np.float32)[..., 0]


def open_tfds(name, split, *, path="", num_classes=0, image_key="", mask_key="", label_key=""):
    """TfdsSource over a data set prepared as array_record in the folder `name`, or below path.

    Nothing is downloaded or prepared. Without path, `name` is looked up in TFDS's default folder.
    Classes come from the first of these that exists: the metadata ("names", "palette"; such masks
    hold class ids), RAW_ID_SETS, the mask feature, num_classes. Examples are named by split and
    index, since stored names could only be read with everything else; folders of --mode=prepare
    list the names in a file.
    """
    builder = _open_builder(name, path)
    by_prepare = (builder.info.metadata or {}).get("prepared", False)
    base, bracket, rest = split.partition("[")
    if base == "val" and "val" not in builder.info.splits:
        base = "validation"
    if by_prepare:
        base = base or NO_SPLIT
    if base == "validation" and base not in builder.info.splits:
        raise UserError(
            f"{name} has no split {split} of validation images, only "
            f"{', '.join(sorted(builder.info.splits))}. Give --config.data.val= (nothing after =), "
            "and a part of the labelled images is held out instead."
        )
    require_known(base, builder.info.splits, f"split of {name}")
    features = builder.info.features
    image_key = _image_feature(features, image_key, IMAGE_KEYS, f"image of {name}")
    mask_key = _image_feature(features, mask_key, MASK_KEYS, f"mask of {name}")
    depth_key = "depth" if by_prepare and "depth" in features else ""
    if by_prepare and "class" in features:
        label_key = label_key or "class"
    if not image_key:
        raise UserError(
            f"{name} has the features {', '.join(sorted(features))}, and none of them is known to "
            "be the image. Give image_key."
        )
    labels, table = _mask_classes(builder, features, mask_key, num_classes)
    classes = _class_names(features, label_key, name)
    keys = [key for key in (image_key, mask_key, depth_key) if key]
    examples = _open_examples(builder, base + bracket + rest, keys, f"split {split} of {name}")
    names = tuple(f"{split}_{i:06d}" for i in range(len(examples)))
    rules = MaskRules(table, "Give num_classes as prepared.") if mask_key else None
    if by_prepare:
        names = listed_names(builder, base + bracket + rest, base)
    return TfdsSource(
        examples, image_key, mask_key, names, labels, rules, label_key, classes, depth_key
    )


def _open_examples(builder, split, encoded_keys, what):
    import tensorflow_datasets as tfds

    # TFDS returns encoded images, so that all sources share one decoder and its checks.
    decoders = {key: tfds.decode.SkipDecoding() for key in encoded_keys}
    try:
        return builder.as_data_source(split, decoders=decoders)
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"cannot open {what} for random access: {str(error).splitlines()[0]} "
            "Splits read like train or train[:10%], and file_format must be array_record."
        ) from None


def _open_builder(name, path):
    """The builder of a prepared data set, from its files, without the code that wrote them."""
    import tensorflow_datasets as tfds

    folder = open_path(name)
    with reachable(folder):
        complete, begun = (
            (folder / file).exists() for file in ("dataset_info.json", PREPARED_FILE)
        )
    if complete:
        try:
            builder = tfds.builder_from_directory(folder)
            _check_metadata(**(builder.info.metadata or {}))
            return builder
        except Exception as error:  # TFDS raises many types on damaged files
            raise UserError(
                f"cannot open the prepared data set {name} ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}). Copy or prepare the folder again."
            ) from None
    if begun:
        raise UserError(
            f"{name} is not completely prepared. Run its command with --mode=prepare again; it "
            "resumes where it stopped."
        )
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=path or None)
    except (tfds.core.DatasetNotFoundError, ValueError):  # ValueError: not a valid name
        raise UserError(
            f"no prepared TFDS data set {name} in {path or 'the default data folder'}, and nothing "
            "is downloaded here. Give the folder that holds dataset_info.json as tfds:<folder>, "
            "or its data_dir as path."
        ) from None


def _image_feature(features, given, usual, what):
    """The image feature `given`, or the first of the usual ones that exists, or "".

    Raises UserError if the given one is not an image feature.
    """
    import tensorflow_datasets as tfds

    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    if given:
        require_known(given, images, what)
        return given
    return next((key for key in usual if key in images), "")


def _class_names(features, label_key, name):
    """The class names of the feature that holds the class of an image, () for label_key = ""."""
    import tensorflow_datasets as tfds

    if not label_key:
        return ()
    known = {
        key: feature
        for key, feature in features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    }
    return tuple(choose(known, label_key, f"class label of {name}").names)


def _mask_classes(builder, features, mask_key, num_classes):
    """(Labels, id table) of the masks, (None, None) without masks."""
    if not mask_key:
        return None, None
    metadata, feature = builder.info.metadata or {}, features[mask_key]
    names = metadata.get("names")
    if not names and builder.name in RAW_ID_SETS:
        return RAW_ID_SETS[builder.name]()
    if not names and getattr(feature, "num_classes", None):
        names = feature.names
    if not names and num_classes < 1:
        raise UserError(
            f"{builder.name} does not tell how many classes its masks hold. Give "
            "--config.data.options.num_classes=N, with their number."
        )
    if names and num_classes not in (0, len(names)):
        raise UserError(
            f"{builder.name} names {len(names)} classes, but num_classes is {num_classes}. Leave "
            "num_classes at 0."
        )
    labels = (
        Labels(tuple(names), distinct_colours(len(names)))
        if names
        else numbered_labels(num_classes)
    )
    if metadata.get("palette"):
        labels = replace(labels, palette=tuple(tuple(colour) for colour in metadata["palette"]))
    labels = replace(labels, unscored=tuple(metadata.get("unscored", ())))
    return labels, id_table(len(labels.names))


def _check_metadata(names=(), palette=(), unscored=(), **_):
    """ValueError unless the metadata are names, colours and unscored ids of the same classes."""
    rows = [names, palette, unscored, *palette]
    if not all(isinstance(row, (list, tuple)) for row in rows):
        raise ValueError("names, palette and unscored must be lists")
    ids = [(part, 256) for row in palette for part in row] + [(k, len(names)) for k in unscored]
    if (
        not all(isinstance(name, str) and name for name in names)
        or len(set(names)) != len(names)
        or (palette and [len(row) for row in palette] != [3] * len(names))
        or not all(type(value) is int and 0 <= value < end for value, end in ids)
    ):
        raise ValueError("names, palette and unscored must describe the same classes")
