"""Reading checkpoint files: every format gives the arrays back, and no file can run anything."""

import functools
import gzip
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import tarfile
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from diffseg_jax.errors import UserError
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.pixel_mlp import load_ensemble
from pickle_writer import (
    TYPE_NAMES,
    WEIGHT,
    Code,
    call,
    code,
    name,
    pickled,
    storage,
    tensor,
    whole,
    write_legacy,
    write_zip,
)

pytestmark = pytest.mark.quick

LEGACY = Path(__file__).parents[1] / "recorded" / "legacy_state.pt"


WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])


# --- what comes back ------------------------------------------------------------------------------


@WRITERS
@pytest.mark.parametrize("dtype", TYPE_NAMES, ids=str)
def test_every_dtype_comes_back(tmp_path, write, dtype):
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    path = write(tmp_path / "a.pt", {"w": whole("0", array)}, {"0": array})
    read = read_arrays(path)["w"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


@WRITERS
def test_views_of_one_storage(tmp_path, write):
    base = storage("0", np.float32, 12)
    tree = {
        "whole": tensor(base, (3, 4), (4, 1)),
        "transposed": tensor(base, (4, 3), (1, 4)),
        "window": tensor(base, (2, 2), (4, 1), offset=5),
        "expanded": tensor(base, (2, 3), (1, 0), offset=10),
        "single": tensor(base, (1, 2), (10**30, 1)),
        "scalar": tensor(base, (), (), offset=7),
        "empty": tensor(base, (0, 4), (4, 1)),
    }
    read = read_arrays(write(tmp_path / "a.pt", tree, {"0": WEIGHT}))
    expected = {
        "whole": WEIGHT, "transposed": WEIGHT.T, "window": WEIGHT[1:3, 1:3], "single": [[0, 1]],
        "expanded": [[10] * 3, [11] * 3], "scalar": 7, "empty": np.zeros((0, 4)),
    }
    assert read.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(read[key], value, err_msg=key)


def test_storage_that_is_a_view_of_another(tmp_path):
    view = storage("0", np.float32, 12, ("5", 4, 4))                  # files of PyTorch 0.3
    path = write_legacy(tmp_path / "a.pt", {"w": tensor(view, (3,), (1,), 1)}, {"0": WEIGHT})
    np.testing.assert_array_equal(read_arrays(path)["w"], WEIGHT.ravel()[5:8])


def test_recorded_legacy_file():
    """A training checkpoint written by PyTorch 2.13, _use_new_zipfile_serialization=False:
    state_dict of arange(24) in views, 0..3 in every dtype, a Parameter, beside meta and optimizer.
    """
    read = read_arrays(LEGACY)
    plain = np.arange(24, dtype=np.float32).reshape(4, 6)
    dtypes = {str(dtype): np.arange(4).astype(dtype) for dtype in TYPE_NAMES if dtype != np.float32}
    expected = dtypes | {
        "plain": plain, "transposed": plain.T, "window": plain[1:3, 2:5], "scalar": np.int64(7),
        "expanded": np.float32([[1] * 3, [2] * 3]), "parameter": np.float32([0.5, 0.5]),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert read.keys() == expected.keys()
    for key, value in expected.items():
        assert read[key].dtype == value.dtype, key
        np.testing.assert_array_equal(read[key], value, err_msg=key)


@pytest.mark.golden
@pytest.mark.parametrize("pattern", ["*/*.pt", "*/*.pth"])
def test_recorded_files_are_read(golden, pattern):
    """Arrays hold all bytes of the storages, which the zip format keeps as files of their own.

    The bytes are sorted, as an array may be a view with other axes, or of a part of a storage.
    """
    in_order = lambda data: np.sort(np.frombuffer(data, np.uint8)).tobytes()
    compared = 0
    for path in golden(pattern):
        arrays = read_arrays(path)
        assert arrays and not any(key.startswith("module.") for key in arrays), path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                names = [name for name in file.namelist() if "/data/" in name]
                storages = b"".join(map(file.read, names))
            assert in_order(b"".join(map(np.ndarray.tobytes, arrays.values()))) == in_order(
                storages
            ), path
            compared += 1
    assert compared


@pytest.mark.parametrize("outer", [(), ("state_dict",), ("model",), ("model_state_dict",),
                                   ("model", "state_dict")], ids="/".join)
def test_state_dict_is_found_inside_training_checkpoints(tmp_path, outer):
    tree = call(name("collections", "OrderedDict"), [["module.w", whole("0", WEIGHT)]])
    for key in outer:
        tree = {"optimizer": {"state": {}}, "epoch": 3, key: tree, "lr": 0.5, "best": None}
    path = write_zip(tmp_path / "a.pt", tree, {"0": WEIGHT})
    np.testing.assert_array_equal(read_arrays(path)["w"], WEIGHT)


def test_a_part_can_be_named(tmp_path):
    tree = {"model": {"w": whole("0", WEIGHT)}, "ema": {"w": whole("1", -WEIGHT)}, "epoch": 3}
    path = write_zip(tmp_path / "a.pt", tree, {"0": WEIGHT, "1": -WEIGHT})
    with pytest.warns(match="several networks; model is taken"):
        np.testing.assert_array_equal(read_arrays(path)["w"], WEIGHT)
    np.testing.assert_array_equal(read_arrays(path, part="ema")["w"], -WEIGHT)
    with pytest.raises(UserError, match="Known: ema, epoch, model. Did you mean .model."):
        read_arrays(path, part="modle")
    with pytest.raises(UserError, match="no state dict but an object of type int"):
        read_arrays(path, part="epoch")


WEIGHTS = whole("0", WEIGHT)
OTHERS = whole("1", -WEIGHT)
STORED = {"0": WEIGHT, "1": -WEIGHT}
WRAPPED = {  # what stands around a network, and the names that are read
    "any name": ({"epoch": 3, "generator": {"w": WEIGHTS}}, "w"),
    "random states": ({"rng_state": OTHERS, "model": {"w": WEIGHTS}}, "w"),
    "Lightning": ({"state_dict": {"model.w": WEIGHTS}, "callbacks": {
        name("pytorch_lightning.callbacks", "EarlyStopping"): {"best": OTHERS}},
        "hyper_parameters": call(name("lightning_fabric.utilities.data", "AttributeDict")),
        "optimizer_states": [{"state": {0: {"exp_avg": OTHERS}}}]}, "w"),
    "OpenMMLab": ({"meta": {"cfg": call(name("mmengine.config", "Config"))}, "state_dict": {
        "backbone.w": WEIGHTS}, "message_hub": {"log_scalars": {"loss": call(
            name("mmengine.logging.history_buffer", "HistoryBuffer"))}}}, "w"),
    "DeepSpeed": ({"module": {"module.w": WEIGHTS}, "optimizer": None}, "w"),
    "torch.compile": ({"_orig_mod.block._orig_mod.w": WEIGHTS}, "block.w"),
    "FSDP": ({"_fsdp_wrapped_module.layer._fsdp_wrapped_module.w": WEIGHTS}, "layer.w"),
    "an average": ({"n_averaged": 3, "module.w": WEIGHTS}, "w"),
    "defaultdict": ({"model": call(name("collections", "defaultdict"))}, None),
    "a parameter with state": ({"w": call(
        name("torch._utils", "_rebuild_parameter_with_state"), WEIGHTS, True, {}, {})}, "w"),
    "a text beside": ({"w": WEIGHTS, "version": "1.0", "scaler": None}, "w"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_networks_are_found_in_what_programs_save(tmp_path, case):
    tree, key = WRAPPED[case]
    path = write_zip(tmp_path / "a.pt", tree, STORED)
    if key is None:
        with pytest.raises(UserError, match="no tensor is among its entries"):
            read_arrays(path)
        return
    read = read_arrays(path)
    assert list(read) == [key]
    np.testing.assert_array_equal(read[key], WEIGHT)


def test_the_first_of_several_networks_is_taken_and_the_others_named(tmp_path):
    tree = {"state_dict": {"w": WEIGHTS}, "state_dict_ema": {"w": OTHERS}}
    path = write_zip(tmp_path / "a.pt", tree, STORED)
    said = r"state_dict is taken.*convert --part=\w+ writes .*--config.weights_part=\w+ reads it"
    with pytest.warns(match=said) as caught:
        np.testing.assert_array_equal(read_arrays(path)["w"], WEIGHT)
    (part,) = re.findall(r"--part=(\w+)", str(caught[0].message))
    np.testing.assert_array_equal(read_arrays(path, part)["w"], -WEIGHT)


def test_of_networks_without_a_usual_name_one_must_be_named(tmp_path):
    tree = {"student": {"w": WEIGHTS}, "teacher": {"w": OTHERS}, "optimizer": {"m": OTHERS}}
    path = write_zip(tmp_path / "a.pt", tree, STORED)
    with pytest.raises(UserError, match="several networks: student, teacher. Choose") as refusal:
        read_arrays(path)
    (part,) = re.findall(r"--part=(\w+)", str(refusal.value))
    np.testing.assert_array_equal(read_arrays(path, part)["w"], WEIGHT)


@pytest.mark.parametrize("form", ["pt", "npz", "safetensors"])
def test_a_part_may_be_what_names_begin_with(tmp_path, form):
    path = tmp_path / f"a.{form}"
    if form == "pt":
        write_zip(path, {"model": {"backbone.w": WEIGHTS, "head.w": OTHERS}}, STORED)
    elif form == "npz":
        np.savez(path, **{"backbone.w": WEIGHT, "head.w": -WEIGHT})
    else:
        save_file({"backbone.w": WEIGHT, "head.w": -WEIGHT}, path)
    assert list(read_arrays(path)) == ["backbone.w", "head.w"]
    np.testing.assert_array_equal(read_arrays(path, "head")["w"], -WEIGHT)
    with pytest.raises(UserError, match="part.*neck"):
        read_arrays(path, "neck")


def test_dictionaries_inside_each_other_are_visited_once(tmp_path):
    """A thousand names of a thousand names of ... would be 10**9 visits."""
    inner = Code(code({"w": WEIGHTS}) + b"q\x05")
    for memo in (b"q\x06", b"q\x07"):
        pairs = b"".join(code(f"{i}") + b"h" + inner[-1:] for i in range(1000))
        inner = Code(inner + b"0}(" + pairs + b"u" + memo)
    path = write_zip(tmp_path / "a.pt", {"model": inner}, STORED)
    assert list(read_arrays(path)) == ["w"]


def test_the_state_of_an_optimizer_is_no_network(tmp_path):
    tree = {"state": {0: {"exp_avg": WEIGHTS}}, "param_groups": [{"lr": 0.1}]}
    with pytest.raises(UserError, match="state of an optimizer and no network"):
        read_arrays(write_zip(tmp_path / "a.pt", tree, STORED))


def test_weights_are_found_in_folders_and_shares(tmp_path):
    save_file({"a": WEIGHT}, tmp_path / "model-1.safetensors")
    save_file({"b": -WEIGHT}, tmp_path / "model-2.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert sorted(read_arrays(path)) == ["a", "b"]
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="names model-2.safetensors, which is not beside it"):
        read_arrays(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "._model-1.safetensors").touch()                      # of macOS
    assert list(read_arrays(tmp_path)) == ["a"]                       # the only file
    np.savez(tmp_path / "other.npz", a=WEIGHT)
    with pytest.raises(UserError, match="several files: model-1.safetensors, other.npz. Give one"):
        read_arrays(tmp_path)


FOLDERS = {
    ".metadata": "dcp_to_torch", "zero_pp_rank_0_mp_rank_00_model_states.pt": "zero_to_fp32.py",
    "saved_model.pb": "a TensorFlow model", "model_0.pth": "--source=ddpm_seg",
    "_CHECKPOINT_METADATA": "start=", "readme.md": "a folder without weights",
}  # fmt: skip


@pytest.mark.parametrize("file", FOLDERS)
def test_folders_of_other_programs_are_named(tmp_path, file):
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=f"is a folder.*{FOLDERS[file]}|{FOLDERS[file]}"):
        read_arrays(tmp_path)


def test_the_advice_for_an_unpacked_file_works(tmp_path):
    write_zip(tmp_path / "a.pth", {"w": WEIGHTS}, STORED)
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        file.extractall(tmp_path)
    with pytest.raises(UserError, match="an unpacked PyTorch file") as refusal:
        read_arrays(tmp_path / "archive")
    (advice,) = re.findall(r"\((cd .*)\)", str(refusal.value))
    if shutil.which("zip"):
        subprocess.run(advice, shell=True, check=True, capture_output=True)
        np.testing.assert_array_equal(read_arrays(tmp_path / "weights.pth")["w"], WEIGHT)


def tar_of(names):
    """A tar file with empty members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for member in names:
            file.addfile(tarfile.TarInfo(member))
    return buffer.getvalue()


def zip_of(names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for member in names:
            file.writestr(member, "")
    return buffer.getvalue()


MISTAKES = {  # name of a file, its bytes, what is said
    "page.pth": (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
    "saved.pth": (b"\xef\xbb\xbf<!-- saved from a link --><html>", "a web page"),
    "old.pth": (b"<?xml version='1.0'?>\n<!DOCTYPE html PUBLIC>", "a web page"),
    "error.pth": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "the error of a server"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                    "Git LFS pointer.*/resolve/ in place of /raw/"),
    "a.pth.gz": (gzip.compress(b"x"), "gzip -dc"),
    "b.pth.tgz": (gzip.compress(tar_of(["swin.pth"])), "tar -xzf"),
    "a.bz2": (b"BZh91AY", "bzip2 -dc"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    "a.tar": (tar_of(["swin/swin.pth"]), "an archive that holds swin/swin.pth.*tar -xf"),
    "._a.pth": (b"\0\5\x16\7\0\2", "without ._"),
    "mac.zip": (zip_of(["__MACOSX/._swin.pth", "swin.pth"]), "an archive that holds swin.pth"),
    "a.zip": (zip_of(["swin.pth"]), "an archive that holds swin.pth.*unzip"),
    "b.zip": (zip_of(["photo.jpg"]), "an archive without weights; it holds photo.jpg"),
    "a.keras": (zip_of(["config.json", "model.weights.h5"]), "a file of Keras"),
    "a.pt2": (zip_of(["a/archive_format", "a/data/sample_inputs/model.pt"]), "torch.export.load"),
    "a.safetensors": (b"\x90\0\0\0\0\0\0\0{", "damaged or cut short"),
    "__0_0.distcp": (b"PK", "is a folder"),
    "old.pt": (tar_of(["sys_info", "pickle", "storages", "tensors"]), "tar format from before"),
    "a.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x051.8.1", "ONNX"),
    "b.pth": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "ONNX"),
    "a.h5": (b"\x89HDF\r\n\x1a\n", "HDF5"), "a.gguf": (b"GGUF\x03\0", "GGUF"),
    "a.npy": (b"\x93NUMPY\x01\x00", "one NumPy array"), "a.mat": (b"MATLAB 5.0", "MATLAB"),
    "config.json": (b'{"hidden_sizes": [96]}', "a JSON text"),
    "model.ckpt-1.data-00000-of-00001": (b"\0\1\2", "TensorFlow checkpoint"),
    "python2.pkl": (b"(dp0\nVw\np1\n", "a pickle of protocol 0"),
    "checkpoint": (b'model_checkpoint_path: "model.ckpt-1"', "TensorFlow checkpoint"),
    "flax_model.msgpack": (b"\x81\xa6params", "Flax"),
    "a.png": (b"\x89PNG\r\n", "a PNG image"), "log.txt": (b"2023 - INFO", "a text"),
}  # fmt: skip


@pytest.mark.parametrize("file", MISTAKES)
def test_what_is_no_checkpoint_is_named(tmp_path, file):
    content, said = MISTAKES[file]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_arrays(tmp_path / file)


@pytest.mark.parametrize(("asked", "said"), [
    (("__torch__.model", "Net"), "TorchScript.*state_dict"),
    (("torch.nn.modules.conv", "Conv2d"), r"a whole network with its code, or .*\[KEY\]\.state"),
    (("__main__", "Net"), "a whole network with its code"),
    (("torch.storage", "_load_from_bytes"), "written by pickle"),
    (("torch._utils", "_rebuild_tensor_v3"), r"8-bit floats.*tensor\.float\(\)"),
    (("torch._utils", "_rebuild_qtensor"), "quantised"),
    (("torch", "QInt8Storage"), "quantised"), (("torch", "qint8"), "quantised"),
])  # fmt: skip
def test_what_else_torch_saves_is_named(tmp_path, asked, said):
    with pytest.raises(UserError, match=said):
        read_arrays(write_zip(tmp_path / "a.pt", {"w": call(name(*asked))}, {}))


def test_a_network_with_its_code_is_named(tmp_path):
    with pytest.raises(UserError, match=r"It is a whole network .*False\)\.state_dict\(\)"):
        read_arrays(write_zip(tmp_path / "a.pt", call(name("__main__", "Net")), {}))


def test_a_negative_view_is_refused(tmp_path):
    ordered = call(name("collections", "OrderedDict"))
    arguments = (storage("0", np.float32, 12), 0, (3, 4), (4, 1), False, ordered, {"neg": True})
    tree = {"w": call(name("torch._utils", "_rebuild_tensor_v2"), *arguments)}
    with pytest.raises(UserError, match=r"negative .* view.*resolve_neg"):
        read_arrays(write_zip(tmp_path / "a.pt", tree, STORED))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {"model": a, "matching_heuristics": True}])
def test_the_advice_for_a_pickle_of_arrays_works(tmp_path, monkeypatch, protocol, wrap):
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(pickle.dumps(wrap({"w": WEIGHT, "b": WEIGHT}), protocol))
    with pytest.raises(UserError, match="If it holds NumPy arrays, and you trust") as refusal:
        read_arrays("a.pkl")
    (advice,) = re.findall(r"numpy\.savez.*\)", str(refusal.value))
    eval(advice, {"numpy": np, "pickle": pickle})
    np.testing.assert_array_equal(read_arrays("weights.npz")["w"], WEIGHT)


def test_numbers_that_are_not_read_are_named(tmp_path):
    for dtype, said in (("F8_E4M3", r"float8_e4m3fn.*tensor\.float\(\)"), ("F4", "quantisation")):
        entry = {"w": {"dtype": dtype, "shape": [2], "data_offsets": [0, 1 + (dtype != "F4")]}}
        header = json.dumps(entry).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(1 + (dtype != "F4"))
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=f"of a type that is not read here.*{said}"):
            read_arrays(tmp_path / "a.safetensors")


def test_a_share_of_split_parameters_is_no_network(tmp_path):
    empty = np.zeros(0, np.float32)
    path = write_zip(tmp_path / "a.pt", {"module": {"w": whole("0", empty)}}, {"0": empty})
    with pytest.raises(UserError, match="holds empty arrays only.*zero_to_fp32"):
        read_arrays(path)


def test_prefix_stays_unless_every_name_has_it(tmp_path):
    tree = {"module.w": whole("0", WEIGHT), "b": 2.5, "n": 3}
    read = read_arrays(write_zip(tmp_path / "a.pt", tree, {"0": WEIGHT}))
    assert {key: array.dtype for key, array in read.items()} == {
        "module.w": np.float32, "b": np.float64, "n": np.int64,
    }


def test_old_names_of_gpu_storages_and_parameters(tmp_path):
    kind = name("torch.cuda", "FloatStorage")
    gpu = Code(code(("storage", kind, "0", "cuda:0", 12, None)) + b"Q")
    parameter = call(name("torch._utils", "_rebuild_parameter"), tensor(gpu, (12,), (1,)), True, {})
    read = read_arrays(write_legacy(tmp_path / "a.pt", {"w": parameter}, {"0": WEIGHT}))
    np.testing.assert_array_equal(read["w"], WEIGHT.ravel())


def test_arguments_of_a_training_program_become_inert(tmp_path):
    namespace = Code(name("argparse", "Namespace") + b")\x81" + code({"lr": 0.1}) + b"b")
    tree = {"args": namespace, "dtype": name("torch", "float16"), "shape": call(
        name("torch", "Size"), [2, 3]), "model": {"w": whole("0", WEIGHT)}}
    assert list(read_arrays(write_zip(tmp_path / "a.pt", tree, {"0": WEIGHT}))) == ["w"]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_numpy_become_inert(tmp_path, module):
    """The best score that OpenMMLab's programs save with their checkpoints."""
    kind = call(name("numpy", "dtype"), "f8", False, True)
    score = call(name(module, "scalar"), kind, call(name("_codecs", "encode"), "x", "latin1"))
    tree = {"meta": {"hook_msgs": {"best_score": score}}, "state_dict": {"w": whole("0", WEIGHT)}}
    assert list(read_arrays(write_zip(tmp_path / "a.pth", tree, {"0": WEIGHT}))) == ["w"]


def test_npz_and_safetensors(tmp_path):
    arrays = {"a/b": WEIGHT, "c": np.float16([1, 2])}
    np.savez(tmp_path / "plain.weights", **arrays)                    # any suffix
    os.rename(tmp_path / "plain.weights.npz", tmp_path / "plain.weights")
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    save_file(arrays | {"d": WEIGHT.astype(ml_dtypes.bfloat16)}, tmp_path / "a.safetensors")
    for file in ("plain.weights", "packed.npz", "a.safetensors"):
        read = read_arrays(tmp_path / file)
        for key, value in arrays.items():
            assert read[key].dtype == value.dtype
            np.testing.assert_array_equal(read[key], value)
    assert read["d"].dtype == ml_dtypes.bfloat16
    with pytest.raises(UserError, match='flat and has no part "model"'):
        read_arrays(tmp_path / "packed.npz", part="model")


@WRITERS
def test_a_large_file_is_mapped_not_loaded(tmp_path, write):
    large = np.zeros(4_000_000, np.float32)
    path = write(tmp_path / "a.pt", {"w": whole("0", large)}, {"0": large})
    tracemalloc.start()
    read = read_arrays(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < large.nbytes / 10
    assert not read["w"].flags.writeable


# --- what is refused ------------------------------------------------------------------------------


def system(path):
    """Instructions that would create `path` if anything ran them."""
    return call(name("os", "system"), f"touch {path}")


HOSTILE = {
    "os.system": system,
    "posix.system": lambda path: call(name("posix", "system"), f"touch {path}"),
    "builtins.eval": lambda path: call(name("builtins", "eval"), f"open({str(path)!r}, 'w')"),
    "builtins.getattr": lambda path: name("builtins", "getattr"),
    "collections.OrderedDict.fromkeys": lambda path: name("collections", "OrderedDict.fromkeys"),
    "torch.load": lambda path: call(name("torch", "load"), str(path)),
    "numpy.load": lambda path: name("numpy", "load"),
    "INST os system": lambda path: Code(b"(" + code(f"touch {path}") + b"ios\nsystem\n"),
    "OBJ": lambda path: Code(b"(" + name("collections", "OrderedDict") + b"o"),
    "EXT1": lambda path: Code(b"\x82\x01"),
    "a call of torch.FloatStorage": lambda path: call(name("torch", "FloatStorage"), 3),
    "attributes on type int": lambda path: Code(code(3) + code({"a": 1}) + b"b"),
    "a storage of kind module": lambda path: Code(
        code(("module", name("torch", "FloatStorage"), "0", "cpu", 1)) + b"Q"),
    "PERSID": lambda path: Code(b"Pstorage\n"),
}


@pytest.mark.parametrize("wanted", HOSTILE)
@WRITERS
def test_names_other_than_tensors_are_refused(tmp_path, write, wanted):
    tree = {"w": whole("0", WEIGHT), "x": HOSTILE[wanted](tmp_path / "ran")}
    path = write(tmp_path / "a.pt", tree, {"0": WEIGHT})
    with pytest.raises(UserError, match="not tensors only: it asks for") as refusal:
        read_arrays(path)
    assert wanted in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_a_stacked_global_is_refused(tmp_path):
    evil = Code(code("os") + code("system") + b"\x93" + code((f"touch {tmp_path / 'ran'}",)) + b"R")
    with pytest.raises(UserError, match="os.system"):
        read_arrays(write_zip(tmp_path / "a.pt", evil, {}))
    assert not (tmp_path / "ran").exists()


BASE = storage("0", np.float32, 12)
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
MALFORMED = {
    "beyond the end": tensor(BASE, (13,), (1,)),
    "stride beyond the end": tensor(BASE, (3, 4), (5, 1)),
    "offset beyond the end": tensor(BASE, (1,), (1,), offset=12),
    "huge": tensor(BASE, (2**62, 2**62), (2**62, 1)),
    "huge and empty": tensor(BASE, (0, 2**62, 2**62), (1, 1, 1)),
    "negative offset": tensor(BASE, (2,), (1,), offset=-4),
    "negative stride": tensor(BASE, (2,), (-1,), offset=5),
    "negative size": tensor(BASE, (-1,), (1,)),
    "size of text": tensor(BASE, ("3",), (1,)),
    "size without stride": tensor(BASE, (3, 4), (1,)),
    "another length": tensor(storage("0", np.float32, 11), (2,), (1,)),
    "another dtype": tensor(storage("0", np.float64, 12), (2,), (1,)),
    "unknown storage": tensor(storage("7", np.float32, 12), (2,), (1,)),
    "view beyond the end": tensor(storage("0", np.float32, 12, ("1", 8, 5)), (1,), (1,)),
    "tensor beyond the view": tensor(storage("0", np.float32, 12, ("1", 0, 4)), (5,), (1,)),
    "tensor of no storage": tensor(3, (1,), (1,)),
    "no arguments": call(REBUILD),
    "arguments no tuple": Code(REBUILD + code([1]) + b"R"),
    "parameter of a number": call(name("torch._utils", "_rebuild_parameter"), 3),
    "pairs of one": call(name("collections", "OrderedDict"), [[1]]),
    "keys that are containers": call(name("collections", "OrderedDict"), [[(1,), 2]]),
    "call of a number": call(code(3), 3),
    "memo of nothing": Code(b"h\x09"),
    "empty stack": Code(b"00"),
    "no mark": Code(b"t"),
    "append to a number": Code(code(3) + code(3) + b"a"),
}


@pytest.mark.parametrize("case", MALFORMED)
@WRITERS
def test_malformed_tensors_are_refused(tmp_path, write, case):
    path = write(tmp_path / "a.pt", {"w": MALFORMED[case]}, {"0": WEIGHT})
    with pytest.raises(UserError, match=r"a\.pt is damaged or cut short"):
        read_arrays(path)


def test_a_dictionary_inside_itself_ends(tmp_path):
    loop = Code(b"}q\x00(" + code("model") + b"h\x00u")
    with pytest.raises(UserError, match="holds no state dict"):
        read_arrays(write_zip(tmp_path / "a.pt", loop, {}))


def test_a_large_memo_index_costs_nothing(tmp_path):
    tree = Code(b"}" + b"r\xff\xff\xff\x7f")                # a table of 2**31 entries in CPython
    with pytest.raises(UserError, match="holds no arrays"):
        read_arrays(write_zip(tmp_path / "a.pt", tree, {}))


def test_unreadable_files_end_in_a_sentence(tmp_path):
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    (tmp_path / "plain.pkl").write_bytes(pickled({"a": 1}))
    write_zip(tmp_path / "big.pt", {"w": whole("0", WEIGHT)}, {"0": WEIGHT}, order=b"big")
    write_zip(tmp_path / "list.pt", [whole("0", WEIGHT)], {"0": WEIGHT})
    write_zip(tmp_path / "packed.pt", {"w": whole("0", WEIGHT)}, {"0": WEIGHT},
              zipfile.ZIP_DEFLATED)
    np.savez(tmp_path / "object.npz", a=np.array([{}], dtype=object))
    np.savez(tmp_path / "none.npz")
    sentences = {
        "missing.pt": "there is no file", ".": "is a folder", "empty.pt": "damaged",
        "text.pt": "is a web page, not the file", "plain.pkl": "not one that torch.save wrote",
        "big.pt": "big-endian", "list.pt": "an object of type list", "packed.pt": "compressed",
        "object.npz": "a pickled object in a", "none.npz": "no",
    }
    for file, sentence in sentences.items():
        with pytest.raises(UserError, match=sentence):
            read_arrays(tmp_path / file)


# --- bytes at random ------------------------------------------------------------------------------


def samples(folder):
    """One small valid file of each format."""
    tree = {"a.weight": whole("0", WEIGHT), "b": whole("1", WEIGHT[0].astype(np.float16)), "n": 3}
    storages = {"0": WEIGHT, "1": WEIGHT[0].astype(np.float16)}
    arrays = {"a.weight": WEIGHT, "b": WEIGHT[0]}
    np.savez(folder / "a.npz", **arrays)
    save_file(arrays, folder / "a.safetensors")
    write_zip(folder / "a.pt", tree, storages)
    write_legacy(folder / "b.pt", tree, storages)
    return [folder / file for file in ("a.pt", "b.pt", "a.npz", "a.safetensors")] + [LEGACY]


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    paths = samples(tmp_path_factory.mktemp("valid"))
    return [(path.read_bytes(), read_arrays(path)) for path in paths]


def altered(content, positions, length):
    content = bytearray(content)
    for position, change in positions:
        content[position % len(content)] ^= change
    return bytes(content[:length % len(content) or None])


@settings(max_examples=250, deadline=None)
@given(
    which=st.integers(0, 4),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4),
    length=st.one_of(st.just(0), st.integers(0, 10**6)),
)
def test_altered_files_give_a_sentence_or_the_same_arrays(valid, which, flips, length):
    content, expected = valid[which]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(altered(content, flips, length))
        try:
            read = read_arrays(path)
        except UserError:
            return
        if which == 0:                          # the one format whose every array has a checksum
            assert read.keys() == expected.keys()
            for key, array in expected.items():
                np.testing.assert_array_equal(read[key], array)


CLASSIFIERS = functools.partial(load_ensemble, features=8, num_classes=2)


@pytest.mark.parametrize("read", [read_arrays, CLASSIFIERS], ids=["arrays", "classifiers"])
@pytest.mark.parametrize("path", ["gs://bucket/a", epath.Path("gs://bucket/a"), "hf://user/a"])
def test_addresses_of_weights_are_refused(read, path):
    how = r", as with gcloud storage cp -r gs://bucket/a \." if "gs:" in str(path) else r"\."
    with pytest.raises(UserError, match=f"is an address, .* machine. Give a local copy{how}$"):
        read(path)
