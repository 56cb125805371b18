"""Writes a state dict like a published ADM checkpoint, full size, with random numbers.

python tests/benchmarks/lsun_checkpoint.py --name=lsun_bedroom --output=X.pt

The PyTorch .pt file is written without torch: a zip with one pickle and one uncompressed entry per
tensor, drawn and written one after another to limit memory. The same name and
seed give the same bytes. Kernels are normal with variance 1 / fan_in, scales of norms near 1 and
biases near 0, so activations stay moderate.

Names and shapes follow from the settings by `official_shapes`, which is independent of the
converter of the package and therefore tests it.
"""

import argparse
import json
import math
import resource
import struct
import timeit
import zipfile

import numpy as np

LSUN = dict(
    channels=256,  # of the first level
    channel_mult=(1, 1, 2, 2, 4, 4),
    res_blocks=2,
    attention_factors=(8, 16, 32),  # attention where features are this many times smaller
    heads=4,  # used where head_channels is -1
    head_channels=64,
    resample_in_blocks=True,
    scale_shift=True,
    num_classes=0,
    learn_sigma=True,
    dropout=0.1,
)
PUBLISHED = dict(
    lsun_bedroom=LSUN,
    lsun_cat=LSUN,
    lsun_horse=LSUN,
    ffhq=LSUN,
    lsun_horse_nodropout=LSUN | dict(dropout=0.0),
    imagenet256_uncond=LSUN | dict(dropout=0.0),
    imagenet256=LSUN | dict(dropout=0.0, num_classes=1000),
    imagenet64=LSUN | dict(
        channels=192, channel_mult=(1, 2, 3, 4), res_blocks=3, attention_factors=(2, 4, 8),
        num_classes=1000,
    ),
    imagenet128=LSUN | dict(
        channel_mult=(1, 1, 2, 3, 4), attention_factors=(4, 8, 16), head_channels=-1,
        dropout=0.0, num_classes=1000,
    ),
    imagenet512=LSUN | dict(
        channel_mult=(0.5, 1, 1, 2, 2, 4, 4), attention_factors=(16, 32, 64), dropout=0.0,
        num_classes=1000,
    ),
)  # fmt: skip
COUNTS = dict(  # parameters, tensors
    lsun_bedroom=(552_814_086, 566),
    lsun_cat=(552_814_086, 566),
    lsun_horse=(552_814_086, 566),
    ffhq=(552_814_086, 566),
    lsun_horse_nodropout=(552_814_086, 566),
    imagenet256_uncond=(552_814_086, 566),
    imagenet256=(553_838_086, 567),
    imagenet64=(295_904_454, 541),
    imagenet128=(421_529_606, 493),
    imagenet512=(558_997_638, 645),
)


# --- names and shapes -----------------------------------------------------------------------------


def official_shapes(settings: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape in the order of the file; linear (out, in), convolutions (out, in, h, w).

    With L levels and R residual blocks: block r of level l is input block 1 + l (R + 1) + r, the
    level ends with input block (l + 1)(R + 1); on the way up block r is output block
    (L - 1 - l)(R + 1) + r, and output block j reads what input block L (R + 1) - 1 - j has left.
    """
    s = settings
    widths = [int(multiple * s["channels"]) for multiple in s["channel_mult"]]
    count, per_level = len(widths), s["res_blocks"] + 1
    attends = [2**level in s["attention_factors"] for level in range(count)]
    embedding = 4 * s["channels"]
    shapes = _affine("time_embed.0", (embedding, s["channels"]))
    shapes |= _affine("time_embed.2", (embedding, embedding))
    if s["num_classes"]:
        shapes["label_emb.weight"] = (s["num_classes"], embedding)

    shapes |= _affine("input_blocks.0.0", (widths[0], 3, 3, 3))
    left, c = [widths[0]], widths[0]  # channels that input block i leaves
    for level, width in enumerate(widths):
        for r in range(s["res_blocks"]):
            prefix = f"input_blocks.{1 + level * per_level + r}"
            shapes |= _level_block(s, prefix, c, width, attends[level])
            c = width
            left.append(c)
        if level < count - 1:
            prefix = f"input_blocks.{(level + 1) * per_level}.0"
            shapes |= _resampling(s, prefix, "op", c)
            left.append(c)

    shapes |= _residual(s, "middle_block.0", c, c)
    shapes |= _attention("middle_block.1", c)
    shapes |= _residual(s, "middle_block.2", c, c)

    for level in reversed(range(count)):
        for r in range(per_level):
            j = (count - 1 - level) * per_level + r
            prefix = f"output_blocks.{j}"
            inputs = c + left[count * per_level - 1 - j]
            c = widths[level]
            shapes |= _level_block(s, prefix, inputs, c, attends[level])
            if level and r == per_level - 1:
                shapes |= _resampling(s, f"{prefix}.{2 if attends[level] else 1}", "conv", c)

    shapes |= _affine("out.0", (widths[0],))
    return shapes | _affine("out.2", (6 if s["learn_sigma"] else 3, widths[0], 3, 3))


def _affine(prefix, weight):
    """A weight, and a bias of as many entries as the weight has outputs."""
    return {f"{prefix}.weight": weight, f"{prefix}.bias": weight[:1]}


def _residual(settings, prefix, c_in, c_out):
    modulation = (2 * c_out if settings["scale_shift"] else c_out, 4 * settings["channels"])
    shapes = _affine(f"{prefix}.in_layers.0", (c_in,))
    shapes |= _affine(f"{prefix}.in_layers.2", (c_out, c_in, 3, 3))
    shapes |= _affine(f"{prefix}.emb_layers.1", modulation)
    shapes |= _affine(f"{prefix}.out_layers.0", (c_out,))
    shapes |= _affine(f"{prefix}.out_layers.3", (c_out, c_out, 3, 3))
    if c_in != c_out:
        shapes |= _affine(f"{prefix}.skip_connection", (c_out, c_in, 1, 1))
    return shapes


def _attention(prefix, c):
    shapes = _affine(f"{prefix}.norm", (c,)) | _affine(f"{prefix}.qkv", (3 * c, c, 1))
    return shapes | _affine(f"{prefix}.proj_out", (c, c, 1))


def _level_block(settings, prefix, c_in, c_out, attends):
    shapes = _residual(settings, f"{prefix}.0", c_in, c_out)
    return shapes | (_attention(f"{prefix}.1", c_out) if attends else {})


def _resampling(settings, prefix, convolution, c):
    if settings["resample_in_blocks"]:
        return _residual(settings, prefix, c, c)
    return _affine(f"{prefix}.{convolution}", (c, c, 3, 3))


def check_counts():
    """Ends the program if the shapes of any published network do not add up as they should."""
    for name, settings in PUBLISHED.items():
        shapes = official_shapes(settings)
        counted = sum(map(math.prod, shapes.values())), len(shapes)
        if counted != COUNTS[name]:
            raise SystemExit(f"{name} has {counted} parameters and tensors, not {COUNTS[name]}.")


# --- the pickle, one instruction at a time --------------------------------------------------------


def _global(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def _text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _int(value):
    return b"J" + struct.pack("<i", value)


def _ints(values):
    return b"(" + b"".join(map(_int, values)) + b"t"


EMPTY_ORDERED_DICT = _global("collections", "OrderedDict") + b")R"


def _tensor(key, shape):
    """Calls _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    storage = b"(" + _text("storage") + _global("torch", "FloatStorage") + _text(key)
    storage += _text("cpu") + _int(math.prod(shape)) + b"tQ"  # Q: a persistent id
    arguments = storage + _int(0) + _ints(shape) + _ints(strides) + b"\x89" + EMPTY_ORDERED_DICT
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def pickled(shapes: dict) -> bytes:
    """Protocol 2: an OrderedDict name -> tensor, whose storages are called 0, 1, 2, ..."""
    items = (_text(name) + _tensor(str(i), shape) for i, (name, shape) in enumerate(shapes.items()))
    return b"\x80\x02" + EMPTY_ORDERED_DICT + b"(" + b"".join(items) + b"u."


# --- numbers and file -----------------------------------------------------------------------------


def random_array(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """f32[shape]: kernels of variance 1 / fan_in, scales 1 +- 0.1, biases 0 +- 0.1."""
    array = draw.standard_normal(shape, np.float32)
    if len(shape) > 1:
        array *= 1 / math.sqrt(math.prod(shape[1:]))
    else:
        array *= 0.1
        if name.endswith(".weight"):
            array += 1
    return array


def write_state_dict(path: str, shapes: dict[str, tuple[int, ...]], seed: int = 0):
    """Writes random tensors of these names and shapes; one of them is in memory at a time."""
    draw = np.random.default_rng(seed)
    entry = lambda name: zipfile.ZipInfo(f"archive/{name}")  # stored as it is, without a date
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(entry("data.pkl"), pickled(shapes))
        for i, (name, shape) in enumerate(shapes.items()):
            array = random_array(name, shape, draw).astype("<f4", copy=False)
            file.writestr(entry(f"data/{i}"), memoryview(array).cast("B"))
        file.writestr(entry("version"), b"3\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", choices=PUBLISHED, required=True)
    parser.add_argument("--output", required=True, help="the .pt file to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    check_counts()
    shapes = official_shapes(PUBLISHED[args.name])
    write = lambda: write_state_dict(args.output, shapes, args.seed)
    line = dict(name=args.name, seconds=timeit.timeit(write, number=1))
    line["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from KiB
    line["parameters"] = sum(map(math.prod, shapes.values()))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
