"""Broken and hostile files give a correct result or one sentence: no traceback, hang or code run.

The quick cases run by default. This runs thousands more with other seeds:

python -m pytest -m slow tests/test_hostile.py
"""

import io
import itertools
import json
import os
import pickle
import resource
import runpy
import stat
import struct
import time
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import EpsImagePlugin, Image
from safetensors.numpy import save

import mutate
from diffseg_jax.data.class_ids import MaskRules
from diffseg_jax.data.classes_json import read_classes
from diffseg_jax.data.files import list_files
from diffseg_jax.data.images import read_image
from diffseg_jax.data.masks import read_ids
from diffseg_jax.data.subsets import subset
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.plan import check_config
from diffseg_jax.inference.converted import convert_adm, convert_ddp
from diffseg_jax.systems.ddpm_seg_config import read_noise
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.weights import formats, pickles
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.pixel_mlp import load_ensemble
from pickle_writer import (
    WEIGHT,
    Code,
    call,
    code,
    pickled,
    storage,
    tensor,
    whole,
    write_legacy,
    write_zip,
)
from pickle_writer import name as name_of

HERE = Path(__file__).parent
LEGACY = HERE / "recorded" / "legacy_state.pt"
DEEP = [pytest.param(seed, 400, marks=pytest.mark.slow) for seed in range(1, 6)]
SEEDS = pytest.mark.parametrize("seed, count", [pytest.param(0, 40), *DEEP])
SECONDS, MEMORY = 5, 2**29  # limits of a case; the memory is beyond that of the process


@pytest.fixture(scope="module", autouse=True)
def backend():
    """Starts jax, which maps more memory than a case may."""
    return jax.devices()


@contextmanager
def bounded(memory=MEMORY, seconds=SECONDS):
    """Refuses more than `memory` additional bytes; more than `seconds` fail the test."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, before[1]))
    start = time.monotonic()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.monotonic() - start < seconds


def result_of(read, *arguments, **limits):
    """The result of `read`, or the message of its UserError."""
    try:
        with bounded(**limits):
            return read(*arguments)
    except UserError as error:
        sentence = str(error)
        assert sentence.isprintable() and len(sentence) < 2000 and sentence[-1] in ".?", sentence
        return sentence


def encoded(mode, size=(24, 20), form="PNG", **options):
    """An image of smooth noise in a file format."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (5, 6, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR).convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# ---- images --------------------------------------------------------------------------------------

IMAGES = {
    "png": encoded("RGB"),
    "palette": encoded("P"),
    "grey png": encoded("LA"),
    "jpeg": encoded("RGB", form="JPEG"),
    "progressive": encoded("CMYK", form="JPEG", progressive=True),
    "gif": encoded("P", form="GIF"),
    "bmp": encoded("RGB", form="BMP"),
    "webp": encoded("RGB", form="WEBP"),
    "lossless webp": encoded("RGBA", form="WEBP", lossless=True),
    "tiff": encoded("RGB", form="TIFF"),
    "packed tiff": encoded("RGB", form="TIFF", compression="tiff_deflate"),
    "lzw tiff": encoded("RGB", form="TIFF", compression="tiff_lzw"),
}
CHECKED = ("png", "palette", "grey png")  # all parts have checksums


@pytest.mark.parametrize("name", IMAGES)
@SEEDS
def test_damaged_images_are_refused_or_complete(name, seed, count):
    """Every part of a PNG has a checksum, which reveals damage. Other formats decode to a complete
    image, in which a changed pixel stays unnoticed.
    """
    original = read_image(name, IMAGES[name])
    for content in mutate.damaged(IMAGES[name], seed, count):
        found = result_of(read_image, name, content)
        if isinstance(found, str):
            continue
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
        if name in CHECKED:
            np.testing.assert_array_equal(found, original)


@pytest.mark.parametrize("name", IMAGES)
def test_a_truncated_image_is_never_filled_with_grey(name):
    content = IMAGES[name]
    original = read_image(name, content)
    for length in {*range(0, 60, 7), *range(60, len(content), max(1, len(content) // 40))}:
        found = result_of(read_image, name, content[:length])
        assert isinstance(found, str) or np.array_equal(found, original), length


ROWS = (bytes(1) + bytes(range(24))) * 6  # 8 x 6 RGB pixels without a filter
BOMB = zlib.compress(bytes(200_000_000), 9)
REFUSED = {  # name -> content, part of the error
    "empty": (b"", "not a complete image"),
    "text": (b"<html>not found</html>", "not a complete image"),
    "too large": (mutate.png(20000, 20000, ROWS), "too large"),
    "2**31 wide": (mutate.png(2**31, 6, ROWS), "too large"),
    "2**31 - 1 twice": (mutate.png(2**31 - 1, 2**31 - 1, ROWS), "too large"),
    "taller than its rows": (mutate.png(8, 7, ROWS), "fewer rows"),
    "wider than its rows": (mutate.png(9, 6, ROWS), "cannot read"),
    "no height": (mutate.png(8, 0, ROWS), "not a complete image"),
    "3 bits": (mutate.png(8, 6, ROWS, depth=3), "not a complete image"),
    "wrong checksum": (mutate.png(8, 6, ROWS, checksum=1), "checksum"),
    "two headers": (
        mutate.png(8, 6, ROWS, extra=mutate.png(30000, 20000, ROWS)[8:33]), "too large"
    ),
    "zTXt bomb": (
        mutate.png(8, 6, ROWS, extra=mutate.chunk(b"zTXt", b"a\0\0" + BOMB)), "too large"
    ),
    "iTXt bomb": (
        mutate.png(8, 6, ROWS, extra=mutate.chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)), "too large"
    ),
    "iCCP bomb": (
        mutate.png(8, 6, ROWS, extra=mutate.chunk(b"iCCP", b"a\0\0" + BOMB)), "too large"
    ),
    "XBM as PNG": (encoded("1", form="XBM"), "not a complete image"),
    "16 bit": (encoded("I;16"), "more than 8 bits"),
    "float": (encoded("F", form="TIFF"), "more than 8 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_image_with_a_false_header_is_refused(name):
    content, part = REFUSED[name]
    assert part in result_of(read_image, f"{name}.png", content, memory=2**27)


def test_data_besides_the_pixels_of_an_image_changes_nothing():
    """Decoders skip rows beyond the height in the header, and invalid profiles."""
    expected = np.frombuffer(ROWS, np.uint8).reshape(6, 25)[:, 1:].reshape(6, 8, 3)
    profile = mutate.chunk(b"iCCP", b"a\0\0garbage")
    for content in (
        mutate.png(8, 6, ROWS),
        mutate.png(8, 6, ROWS + bytes(200_000_000)),
        mutate.png(8, 6, ROWS, extra=profile),
        mutate.png(8, 6, ROWS, extra=mutate.chunk(b"tEXt", b"a\0b") * 10_000),
    ):
        np.testing.assert_array_equal(result_of(read_image, "a", content, memory=2**27), expected)
    plain = read_image("a", encoded("RGB", form="JPEG"))
    for garbage in (dict(exif=b"Exif\0\0" + bytes(range(256))), dict(icc_profile=bytes(300))):
        found = result_of(read_image, "a", encoded("RGB", form="JPEG", **garbage))
        np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize(
    "mode, form", [("CMYK", "JPEG"), ("LA", "PNG"), ("PA", "TIFF"), ("1", "PNG"), ("LAB", "TIFF"),
                   ("YCbCr", "TIFF"), ("RGBA", "WEBP"), ("1", "GIF"), ("L", "BMP")],
)  # fmt: skip
def test_images_of_other_modes_become_rgb(mode, form):
    grey = Image.new("RGB", (8, 6), (204, 204, 204))  # a colour of Pillow's palette
    image = Image.new("LAB", (8, 6), (210, 128, 128)) if mode == "LAB" else grey.convert(mode)
    file = io.BytesIO()
    image.save(file, form)
    found = result_of(read_image, mode, file.getvalue())
    assert found.shape == (6, 8, 3)
    assert mode == "1" or np.abs(found.astype(int) - 204).max() < 12


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_read(form):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    file = io.BytesIO()
    options = dict(lossless=True) if form == "WEBP" else {}
    frames[0].save(file, form, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read_image("a", file.getvalue()), np.asarray(frames[0]))


def test_reading_an_image_starts_no_program(tmp_path, monkeypatch):
    """Pillow passes PostScript to Ghostscript; an .eps named .png must be refused before that."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(eps)
    for read in (read_image, read_ids):
        assert "not a complete image" in result_of(read, str(tmp_path / "a.png"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.png", "a.npy"])
def test_folders_pipes_and_loops_are_refused_without_waiting(tmp_path, name):
    read = read_ids if name == "a.npy" else read_image
    path = tmp_path / name
    path.mkdir()
    assert "is not a file" in result_of(read, str(path))
    path.rmdir()
    os.mkfifo(path)  # would wait for a writer
    assert "is not a file" in result_of(read, str(path))
    path.unlink()
    assert "cannot read" in result_of(read, str(path))
    path.symlink_to(path)
    assert "cannot read" in result_of(read, str(path))
    path.unlink()
    path.write_bytes(b"")
    path.chmod(0)  # root may read it nevertheless, so it is empty too
    assert "cannot read" in result_of(read, str(path))


def test_cyclic_links_are_not_followed(tmp_path):
    """Two of them would give 2**40 paths."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/p.png").touch()
    (tmp_path / "b/q.png").touch()
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    (tmp_path / "b/over").symlink_to(tmp_path / "a")
    found = result_of(list_files, tmp_path, (".png",))
    assert found == ["a/p.png", "b/over/p.png", "b/q.png"]


# ---- label maps ----------------------------------------------------------------------------------

IDS = (np.arange(20 * 24) % 11).astype(np.uint8).reshape(20, 24)
RULES = MaskRules(np.r_[np.arange(11), np.full(245, -1)].astype(np.int32))


def mask_file(form="PNG", mode="L", **options):
    image = Image.fromarray(IDS).convert("I;16") if mode == "I;16" else Image.fromarray(IDS)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def mask_of(path, content=None):
    return RULES.to_classes(read_ids(path, content), path)


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
@SEEDS
def test_damaged_masks_are_refused_or_unchanged(mode, seed, count):
    content = mask_file(mode=mode)
    np.testing.assert_array_equal(mask_of("a.png", content), IDS)
    for changed in mutate.damaged(content, seed, count):
        found = result_of(mask_of, "a.png", changed)
        assert isinstance(found, str) or np.array_equal(found, IDS)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_mask_of_colours_is_refused(mode):
    form = "TIFF" if mode == "CMYK" else "PNG"
    assert "colours" in result_of(read_ids, "a.png", encoded(mode, form=form))


OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([[{}]], object), allow_pickle=True)
CODE = "__import__('os').system('touch ran')"
NPY = {
    "objects": OBJECTS.getvalue(),
    "an archive": mutate.zipped([("a.npy", mutate.npy())]),
    "a pickle": pickle.dumps([1]),
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "2**40 numbers": mutate.npy(shape="(1048576, 1048576)"),
    "2**35 numbers": mutate.npy(shape="(131072, 262144)"),
    "2**124 numbers": mutate.npy(shape="(4611686018427387904, 4611686018427387904)"),
    "no number": mutate.npy(b"", shape="(0, 5)"),
    "negative": mutate.npy(shape="(-1, 20)"),
    "twice negative": mutate.npy(shape="(-4, -5)"),
    "many digits": mutate.npy(shape=f"(-{'9' * 4000}, 5)"),
    "a truth as size": mutate.npy(shape="(True, 20)"),
    "a fraction as size": mutate.npy(shape="(4.0, 5)"),
    "cut": mutate.npy(bytes(3)),
    "too long": mutate.npy(bytes(30)),
    "float": mutate.npy(np.full(20, 0.5, np.float32).tobytes(), "'<f4'"),
    "fields": mutate.npy(bytes(80), "[('a', '<i4')]"),
    "dates": mutate.npy(bytes(160), "'<M8[ns]'"),
    "three axes": mutate.npy(shape="(2, 2, 5)"),
    "no axes": mutate.npy(bytes(1), shape="()"),
    "code": mutate.npy(header=CODE),
    "code inside": mutate.npy(descr=CODE),
    "objects by name": mutate.npy(descr="'O'"),
    "brackets": mutate.npy(header="(" * 9000),
    "deep": mutate.npy(descr="[" * 3000 + "]" * 3000),
    "long header": mutate.npy(header="(" * 90000, version=2),
    "unknown version": mutate.npy(version=9),
    "zeros for a header": mutate.npy(header="\0\0\0"),
    "a key missing": mutate.npy(header="{'descr': '|u1', 'shape': (4, 5)}"),
}


@pytest.mark.parametrize("name", NPY)
def test_an_array_that_is_not_a_mask_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npy"
    path.write_bytes(NPY[name])
    assert isinstance(result_of(mask_of, str(path)), str)
    assert isinstance(result_of(read_noise, str(path), (1, 4, 5, 3)), str)  # the same format
    assert not (tmp_path / "ran").exists()


def test_arrays_of_ids_are_masks(tmp_path):
    path = tmp_path / "a.npy"
    for ids in (IDS, np.asfortranarray(IDS), IDS.astype(">i4"), IDS.astype(np.uint64), IDS % 2 > 0):
        np.save(path, ids)
        np.testing.assert_array_equal(result_of(mask_of, str(path)), ids.astype(np.int32))
    for wrong in (IDS.astype(np.int8) - 3, IDS.astype(np.uint64) + 2**63):
        np.save(path, wrong)
        assert "has class id" in result_of(mask_of, str(path))


@SEEDS
def test_damaged_arrays_are_refused_or_read_as_numpy_reads_them(tmp_path, seed, count):
    """The format has no checksum, so damage may stay unnoticed."""
    noise = np.random.default_rng(0).normal(size=(1, 4, 5, 3)).astype(np.float32)
    path = tmp_path / "a.npy"
    for array, read in ((IDS, read_ids), (noise, lambda path: read_noise(path, noise.shape))):
        file = io.BytesIO()
        np.save(file, array)
        for content in mutate.damaged(file.getvalue(), seed, count):
            path.write_bytes(content)
            found = result_of(read, str(path))
            if not isinstance(found, str):
                expected = np.load(path, allow_pickle=False).reshape(found.shape)
                np.testing.assert_array_equal(found, expected)


def test_noise_that_is_not_finite_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full((1, 4, 5, 3), np.nan, np.float32))
    assert "NaN" in result_of(read_noise, str(tmp_path / "a.npy"), (1, 4, 5, 3))


# ---- classes.json and lists ----------------------------------------------------------------------

CLASSES = {
    "empty": "", "null": "null", "a list": "[]", "cut": '{"names": ["a"',
    "numbers": '{"names": [1]}',
    "deep": "[" * 200_000 + "]" * 200_000, "deep object": '{"names":' * 100_000,
    "NaN": '{"names": NaN}', "NaN colour": '{"names": ["a"], "palette": [[NaN, 0, 0]]}',
    "infinity": '{"names": ["a"], "ignore": [1e999]}',
    "huge": f'{{"names": ["a"], "ignore": [{"9" * 4000}]}}',
    "too many digits": f'{{"names": ["a"], "ignore": [{"9" * 5000}]}}',
    "twice": '{"names": ["a"], "names": ["b", "c"]}', "one name twice": '{"names": ["a", "a"]}',
    "UTF-16": '{"names": ["a"]}'.encode("utf-16"), "Latin-1": b'{"names": ["\xe9"]}',
    "byte order mark": b'\xef\xbb\xbf{"names": ["a"]}', "half a pair": '{"names": ["\\ud800"]}',
    "NUL": '{"names": ["a\\u0000"]}', "line break": '{"names": ["a\\nb"]}',
    "escape": '{"names": ["\\u001b[2J"]}', "no characters": '{"names": [""]}',
    "long name": json.dumps({"names": ["x" * 10**6]}),
    "long key": json.dumps({"n" * 100_000: 1}),
    "300 names": json.dumps({"names": [str(k) for k in range(300)]}),
    "text for colours": '{"names": ["a"], "palette": "abc"}',
    "a number for truth": '{"names": ["a"], "zero_is_ignored": 1}',
    "negative": '{"names": ["a"], "ignore": [-1]}',
    "truth for an id": '{"names": ["a"], "ignore": [true]}',
    "unknown key": '{"nmaes": ["a"]}',
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_a_list_of_classes_is_read_or_refused(tmp_path, name):
    content = CLASSES[name]
    (tmp_path / "classes.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    found = result_of(read_classes, tmp_path / "classes.json", 0)
    if name in ("UTF-16", "byte order mark"):
        assert "classes.json" not in found
    else:
        assert "classes.json" in found


@SEEDS
def test_damaged_lists_are_refused_or_read_as_python_reads_them(tmp_path, seed, count):
    """What is accepted is what Python's own reader makes of the bytes."""
    entries = {"names": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": [7]}
    file = tmp_path / "classes.json"
    for content in mutate.damaged(json.dumps(entries).encode(), seed, 3 * count):
        file.write_bytes(content)
        found = result_of(read_classes, file, 0)
        if not isinstance(found, str):
            assert list(found[0].names) == json.loads(content)["names"]
    names = tuple(f"a/p{k}" for k in range(5))
    for content in mutate.damaged(b"a/p1.png b/p1.png\np2\nimages/a/p4\n", seed, 3 * count):
        file.write_bytes(content)
        found = result_of(lambda: subset(names, list_path=str(file)))
        assert isinstance(found, str) or set(found) <= set(range(5))


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, ".", "\ud800"])
def test_a_list_that_cannot_be_opened_is_refused(path):
    assert "cannot read the list" in result_of(lambda: subset(("a",), list_path=path))


# ---- configs -------------------------------------------------------------------------------------


def config_of(file):
    return runpy.run_path(str(file))["get_config"]().to_dict()


TINY = sorted((HERE / "configs").glob("*.py"))
PUBLISHED = sorted((HERE.parent / "configs").glob("*.py"))


def checked(values):
    with bounded():
        config = ConfigDict(values)
    try:
        with bounded():
            check_config(config)
    except UserError as error:
        sentence = str(error)
        assert sentence.isprintable() and len(sentence) < 3000, sentence[:3000]
        return None
    return config


@pytest.mark.parametrize("file", [
    *TINY, *(pytest.param(file, marks=pytest.mark.slow) for file in PUBLISHED)
], ids=lambda file: file.stem)  # fmt: skip
def test_absurd_options_raise_no_other_error_than_a_user_error(file):
    """Every option of a config gets every absurd value; in the quick run, a few of them each."""
    base = {**config_of(file), "weights": "a.pt"}  # some stages start from this file
    assert checked(base) is not None
    rng = np.random.default_rng(0)
    for path, _ in mutate.options(base):
        every = len(mutate.BAD_VALUES)
        for index in rng.choice(every, 6 if file in TINY else every, replace=False):
            value = mutate.BAD_VALUES[index]
            config = checked(mutate.changed(base, path, value))
            if config is not None and isinstance(value, (int, float)):
                assert isinstance(value, bool) or abs(value) <= 3e38, path


ALLOWED = (  # valid values of an option that give an invalid or a very large network
    ("tiny_ddep", "model.decoder_width", 0.01),
    ("tiny_ddep", "model.hidden", 16384),
    ("tiny_ddep", "model.resnet_units", (1, 1, 4)),
    ("tiny_ddp", "model.width", 16384),
    ("tiny_ddp", "model.channels", (16384, 4, 7, 33)),
    ("tiny_ddpm", "model.channel_mult", (1.0,) * 7),
    ("tiny_ddpm_seg", "ensemble.widths", (16384, 16384)),
    ("tiny_ddpm_seg", "features.short", 16384),
)


def built(values):
    """Builds the shapes of the last stage's network, if the config is valid."""
    config = checked(values)
    if config is None:
        return
    system, stage = SYSTEMS[config.system], config.stages[config.run[-1]]
    num_classes = 2 if system.stages[stage.kind] == "labelled" else 0
    try:
        with bounded(memory=2**31, seconds=120):
            task = system.make_task(config, stage.kind, tuple(stage.augment.crop), num_classes)
            jax.eval_shape(task.init, jax.random.key(0))
    except UserError:
        pass


@pytest.mark.parametrize("name, path, value", ALLOWED)
def test_networks_at_the_limits_of_options_are_built_or_refused(name, path, value):
    built(mutate.changed(config_of(HERE / f"configs/{name}.py"), path.split("."), value))


NETWORK = ("model", "noise", "diffusion", "features", "ensemble", "samples", "sampling", "pretrain")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", TINY, ids=lambda file: file.stem)
def test_every_network_within_the_limits_is_built_or_refused(file):
    base = config_of(file)
    for path, value in mutate.options(base):
        if path[0] in NETWORK or path[-1] == "crop":
            for other in mutate.neighbours(value):
                built(mutate.changed(base, path, other))


def test_values_too_large_for_any_computer_are_refused():
    base = config_of(HERE / "configs/tiny_ddpm_seg.py")
    for path, value in (
        ("diffusion.steps", 10**12), ("stages.pretrain.steps", 2**31), ("features.draws", 10**9),
        ("stages.pretrain.batch_size", 10**9), ("data.options.images", 10**12),
        ("data.workers", 10**6), ("ensemble.members", 10**9), ("model.res_blocks", 10**6),
        ("model.channel_mult", (1.0,) * 40), ("stages.pretrain.ema", (0.5,) * 1000),
        ("evaluate.scales", (1.0,) * 10**6), ("weights", "a\0b"), ("data.path", "x" * 5000),
        ("stages.pretrain.optim.peak_lr", 1e300), ("stages.pretrain.optim.no_decay", ("(" * 5000,)),
        ("stages", {"a/b": base["stages"]["fit"]}), ("stages.fit", 3), ("system", ["ddp"]),
    ):  # fmt: skip
        with pytest.raises(UserError):
            check_config(ConfigDict(mutate.changed(base, path.split("."), value)))


# ---- weights -------------------------------------------------------------------------------------

BASE = storage("0", np.float32, 12)


def doubled(times):
    """Nested pairs with 2**times leaves, written out."""
    return Code(b"Nq\x00" + b"h\x00\x86q\x00" * times)


def touch(folder):
    return f"touch {folder / 'ran'}"


TREES = {
    "a bomb as an entry": lambda folder: doubled(60),
    "a bomb as a kind of storage": lambda folder: Code(
        b"(" + doubled(60) + name_of("torch", "FloatStorage") + code("0") + code("cpu") + b"K\x0ctQ"
    ),
    "a bomb as a key": lambda folder: Code(b"}(" + doubled(60) + b"Nu"),
    "a bomb as an argument": lambda folder: Code(name_of("numpy", "dtype") + doubled(60) + b"R"),
    "a tuple inside tuples": lambda folder: Code(b"N" + b"\x85" * 30_000),
    "marks": lambda folder: Code(b"(" * 30_000),
    "a list inside itself": lambda folder: Code(b"]q\x00h\x00a"),
    "a long key": lambda folder: Code(code({"k" * 10**6: [1]})),
    "a long module": lambda folder: Code(b"c" + b"x" * 10**6 + b"\ny\n"),
    "an escape for a module": lambda folder: Code(b"cos\x1b[2J\nsystem\n"),
    "not ASCII": lambda folder: Code(b"c\xff\xfe\ny\n"),
    "LONG4": lambda folder: Code(b"\x8b\xff\xff\xff\x7f"),
    "negative LONG4": lambda folder: Code(b"\x8b\xff\xff\xff\xff"),
    "BINUNICODE8": lambda folder: Code(b"\x8d" + b"\xff" * 8),
    "BINBYTES8": lambda folder: Code(b"\x8e" + b"\xff" * 7 + b"\x7f"),
    "FRAME": lambda folder: Code(b"\x95" + b"\xff" * 8 + b"}"),
    "digits": lambda folder: Code(b"L" + b"9" * 100_000 + b"L\n"),
    "2**63": lambda folder: 2**63,
    "60000 axes": lambda folder: tensor(BASE, (2**100,) * 60_000, (1,) * 60_000),
    "sizes of 2000 bits": lambda folder: tensor(BASE, (10**600,) * 60, (0,) * 60),
    "2**40 numbers of one": lambda folder: tensor(BASE, (2**20, 2**20), (0, 0)),
    "2**62 numbers of one": lambda folder: tensor(BASE, (2,) * 62, (0,) * 62),
    "a storage elsewhere": lambda folder: tensor(
        storage("../../../etc/passwd", np.float32, 12), (12,), (1,)
    ),
    "os.system": lambda folder: call(name_of("os", "system"), touch(folder)),
    "builtins.exec": lambda folder: call(name_of("builtins", "exec"), "import os"),
    "INST": lambda folder: Code(b"(" + code(touch(folder)) + b"ios\nsystem\n"),
    "OBJ": lambda folder: Code(b"(" + name_of("os", "system") + code(touch(folder)) + b"o"),
    "STACK_GLOBAL": lambda folder: Code(
        code("os") + code("system") + b"\x93" + code((touch(folder),)) + b"R"
    ),
    "NEWOBJ_EX": lambda folder: Code(
        name_of("os", "system") + code((touch(folder),)) + b"}\x92"
    ),
    "BUILD": lambda folder: Code(
        name_of("argparse", "Namespace") + b")\x81" + code({"__setstate__": 1}) + b"b" + b"0"
        + call(name_of("os", "system"), touch(folder))
    ),
    "PERSID": lambda folder: Code(b"P" + b"x" * 10**6 + b"\n"),
    "EXT4": lambda folder: Code(b"\x84\x01\x00\x00\x00"),
    "BYTEARRAY8": lambda folder: Code(b"\x96" + struct.pack("<Q", 10**6) + b"\n" * 10**6),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_hostile_pickles_are_refused(name, tmp_path):
    (tmp_path / "ran").unlink(missing_ok=True)
    for write in (write_zip, write_legacy):
        tree = {"w": whole("0", WEIGHT), "x": TREES[name](tmp_path)}
        path = write(tmp_path / "a.pt", tree, {"0": WEIGHT})
        assert isinstance(result_of(read_arrays, path), str)
        with pytest.raises(UserError):
            convert_ddp(path, tmp_path / "out")
        assert {file.name for file in tmp_path.iterdir()} == {"a.pt"}  # neither a marker nor output


def test_an_endless_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    path = write_zip(tmp_path / "a.pt", {"x": Code(b"]" + b"N0" * 2000)}, {})
    assert "more than 1000 steps" in result_of(read_arrays, path)


def header(dtype="F32", shape=(12,), offsets=(0, 48), **more):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}, **more}


def weights_of(array, name="a.npy", **options):
    return mutate.zipped([(name, mutate.npy(**array))], **options)


OBJECT_ZIP = mutate.zipped([("a.npy", OBJECTS.getvalue())])
TREE = pickled({"w": whole("0", WEIGHT)})
FILES = {
    "empty": b"",
    "one byte": b"\x80",
    "no entries": b"PK\5\6" + bytes(18),
    "safetensors beyond the end": mutate.safetensors(header(shape=(15,), offsets=(0, 60))),
    "safetensors that overlap": mutate.safetensors(header(b=header()["a"])),
    "safetensors with a hole": mutate.safetensors(header(shape=(4,), offsets=(32, 48))),
    "safetensors of negative size": mutate.safetensors(header(shape=(-3, 4))),
    "safetensors of 2**124": mutate.safetensors(header(shape=(2**62, 2**62))),
    "safetensors backwards": mutate.safetensors(header(offsets=(48, 0))),
    "safetensors of no type": mutate.safetensors(header("F99")),
    "safetensors of 8 bits": mutate.safetensors(header("F8_E4M3", (48,))),
    "safetensors of nothing": mutate.safetensors({}, b""),
    "safetensors not UTF-8": mutate.safetensors(b'{"\xff": 1}'),
    "safetensors deep": mutate.safetensors(b'{"a":' + b"[" * 100_000),
    "safetensors with a long header": struct.pack("<Q", 2**63) + b"{",
    "npz of 2**40": weights_of(dict(shape="(1048576, 1048576)")),
    "npz cut": weights_of(dict(data=b"")),
    "npz of objects": OBJECT_ZIP,
    "npz with code": weights_of(dict(header=CODE)),
    "npz with brackets": weights_of(dict(header="(" * 9000)),
    "npz of a pickle": mutate.zipped([("a.npy", pickle.dumps([1]))]),
    "npz with a name twice": mutate.zipped([("a.npy", mutate.npy()), ("a.npy", mutate.npy())]),
    "zip without storages": mutate.zipped([("a/data.pkl", TREE)]),
    "zip with a name twice": mutate.zipped([("a/data.pkl", TREE), ("a/data.pkl", TREE)]),
    "zip of a folder": mutate.zipped([("a/", b"")]),
    "packed zip": mutate.zipped(
        [("a/data.pkl", TREE), ("a/data/0", bytes(10**8))], zipfile.ZIP_DEFLATED
    ),
    "short storage": mutate.zipped([("a/data.pkl", TREE), ("a/data/0", bytes(44))]),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_weights_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(FILES[name])
    assert isinstance(result_of(read_arrays, tmp_path / "a", memory=2**28), str)
    assert not (tmp_path / "ran").exists()


def test_weights_that_would_unpack_to_gigabytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_UNPACKED", 10**6)
    entries = [("a.npy", mutate.npy(bytes(10**7), shape=f"({10**7},)"))]
    (tmp_path / "a").write_bytes(mutate.zipped(entries, zipfile.ZIP_DEFLATED))
    assert "would unpack to" in result_of(read_arrays, tmp_path / "a")


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    assert stat.S_ISFIFO((tmp_path / "a.pt").stat().st_mode)
    assert "is not a file" in result_of(read_arrays, tmp_path / "a.pt")


def weights(folder):
    """One file of each format: name -> (bytes, whether every array has a checksum)."""
    tree = {"a.weight": whole("0", WEIGHT), "b": whole("1", WEIGHT[0]), "n": 3}
    arrays = {"0": WEIGHT, "1": WEIGHT[0]}
    zipped = write_zip(folder / "a", tree, arrays).read_bytes()
    legacy = write_legacy(folder / "a", tree, arrays).read_bytes()
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, **{"a.weight": WEIGHT, "b": WEIGHT[0]})
    np.savez_compressed(packed, **{"a.weight": WEIGHT, "b": WEIGHT[0]})
    return {
        "zip": (zipped, True), "legacy": (legacy, False),
        "recorded": (LEGACY.read_bytes(), False),
        "npz": (plain.getvalue(), True), "packed npz": (packed.getvalue(), True),
        "safetensors": (save({"a.weight": WEIGHT, "b": WEIGHT[0]}), False),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy", "recorded", "npz", "packed npz", "safetensors"])
@SEEDS
def test_damaged_weights_are_refused_or_read_in_bounds(tmp_path, form, seed, count):
    """Zip files have a checksum of every array. The older format and safetensors have none: a
    changed number may stay unnoticed, and reads must stay within the file.
    """
    content, has_checksums = weights(tmp_path)[form]
    path = tmp_path / "a"
    path.write_bytes(content)
    original = {name: array.copy() for name, array in read_arrays(path).items()}
    for changed in mutate.damaged(content, seed, count):
        path.unlink()  # the old bytes stay mapped
        path.write_bytes(changed)
        found = result_of(read_arrays, path)
        if isinstance(found, str):
            continue
        for name, array in found.items():
            assert array.nbytes <= max(len(changed), 2**26)
            array.sum() if array.dtype.kind in "biuf" else array.copy()  # reads every byte
            if has_checksums and name in original:
                np.testing.assert_array_equal(array, original[name])


def classifier(rng, features=6, classes=3):
    widths = (features, 5, 4, classes)
    state = {}
    for layer, (wide, narrow) in zip((0, 3, 6), itertools.pairwise(widths)):
        state[f"layers.{layer}.weight"] = rng.normal(size=(narrow, wide)).astype(np.float32)
        state[f"layers.{layer}.bias"] = rng.normal(size=narrow).astype(np.float32)
    for layer, width in ((2, 5), (5, 4)):
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"layers.{layer}.{name}"] = np.ones(width, np.float32)
    return state


def test_other_state_dicts_are_refused(tmp_path):
    """Entries of a published classifier are dropped, renamed, reshaped, retyped or not finite."""
    state = classifier(np.random.default_rng(0))
    path = tmp_path / "model_0.pth"

    def read(**changes):
        path.write_bytes(save({**state, **changes}))
        return result_of(load_ensemble, tmp_path, 6, 3)

    assert not isinstance(read(), str)
    for name, array in state.items():
        rest = {other: value for other, value in state.items() if other != name}
        path.write_bytes(save(rest))
        assert isinstance(result_of(load_ensemble, tmp_path, 6, 3), str)
        path.write_bytes(save({**rest, f"{name}x": array}))
        assert isinstance(result_of(load_ensemble, tmp_path, 6, 3), str)
        for other in (
            array[..., None, None], array[:0], np.repeat(array, 2, -1), array.astype(np.int32),
            np.zeros((), np.float32), np.full_like(array, np.nan), np.full_like(array, np.inf),
        ):  # fmt: skip
            found = read(**{name: np.ascontiguousarray(other)})
            same = other.size == array.size and np.isfinite(other).all()  # unit axes may differ
            assert isinstance(found, str) or same, name


def test_a_failed_conversion_leaves_no_files(tmp_path):
    from diffseg_jax.weights.adm import PUBLISHED as KNOWN

    known = KNOWN["imagenet64"]
    path = write_zip(tmp_path / "a.pt", {"w": whole("0", WEIGHT)}, {"0": WEIGHT})
    for convert in (
        lambda: convert_adm(path, tmp_path / "out", known),
        lambda: convert_ddp(path, tmp_path / "out"),
    ):
        assert isinstance(result_of(convert, memory=2**32, seconds=60), str)
        assert not (tmp_path / "out").exists()
