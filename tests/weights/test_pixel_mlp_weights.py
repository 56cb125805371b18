"""Published pixel classifiers: recorded logits, order of the members, and wrong files."""

import re
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffseg_jax.errors import UserError
from diffseg_jax.models.network import Network
from diffseg_jax.models.pixel_mlp import PixelMLP
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.pixel_mlp import load_ensemble

pytestmark = pytest.mark.quick

D, A, B, K = 12, 8, 5, 3


def official(seed=0, sizes=(D, A, B, K)):
    """A classifier under its published names."""
    draw = np.random.default_rng(seed)
    shapes = {}
    for place, (inputs, outputs) in zip((0, 3, 6), zip(sizes, sizes[1:])):
        shapes |= {f"{place}.weight": (outputs, inputs), f"{place}.bias": (outputs,)}
    for place, width in zip((2, 5), sizes[1:]):
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{place}.{entry}"] = (width,)
    return {
        f"module.layers.{name}": draw.uniform(0.5, 1.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    } | {f"module.layers.{place}.num_batches_tracked": np.int64(7) for place in (2, 5)}


def write(folder, number, arrays, suffix="pth"):
    """The reader goes by content, so a NumPy file stands for PyTorch's here."""
    folder.mkdir(exist_ok=True)
    with open(folder / f"model_{number}.{suffix}", "wb") as file:
        np.savez(file, **arrays)


def reference(arrays, x):
    """Logits of one published classifier, written down in float64."""
    get = lambda place, entry: np.asarray(arrays[f"layers.{place}.{entry}"], np.float64)
    for linear, norm in ((0, 2), (3, 5)):
        x = np.maximum(x @ get(linear, "weight").T + get(linear, "bias"), 0)
        x = (x - get(norm, "running_mean")) / np.sqrt(get(norm, "running_var") + 1e-5)
        x = x * get(norm, "weight") + get(norm, "bias")
    return x @ get(6, "weight").T + get(6, "bias")


def logits(ensemble, x):
    """f32[M, n, K] by our own network."""
    widths = tuple(ensemble["params"][name]["bias"].shape[1] for name in ("linear1", "linear2"))
    classes = ensemble["params"]["linear3"]["bias"].shape[1]
    network = Network(lambda rngs: PixelMLP(x.shape[1], classes, widths, rngs=rngs))

    answer = lambda params, stats: network.bind_eval(params, stats)(x)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.vmap(answer)(ensemble["params"], ensemble["stats"]))


# --- files that are right -------------------------------------------------------------------------


@pytest.mark.golden
def test_recorded_classifiers_give_the_recorded_logits(golden, tmp_path):
    cases = [path for path in golden("adm/pixel_classifier_*.npz") if "logits" in np.load(path)]
    assert cases
    for path in cases:
        case, folder = np.load(path), tmp_path / path.stem
        folder.mkdir()
        files = sorted(path.parent.glob(f"{path.stem}_model_*.pt"))
        for file in files:
            shutil.copy(file, folder / file.name.removeprefix(f"{path.stem}_"))
        assert len(files) == len(case["logits"])
        ensemble = load_ensemble(folder, case["features"].shape[1], int(case["number_class"]))
        ours = logits(ensemble, case["features"])
        np.testing.assert_allclose(ours, case["logits"], rtol=0, atol=2e-5)
        np.testing.assert_array_equal(ours.argmax(-1), case["votes"])
        for file, answer in zip(files, case["logits"], strict=True):  # the formula is theirs too
            theirs = reference(read_arrays(file), case["features"])
            np.testing.assert_allclose(theirs, answer, rtol=0, atol=2e-5)


def test_any_widths_give_the_logits_of_the_formula(tmp_path):
    x = np.random.default_rng(1).standard_normal((6, D)).astype(np.float32)
    files = [official(seed) for seed in range(3)]
    for number, arrays in enumerate(files):
        write(tmp_path, number, arrays)
    bare = [{k.removeprefix("module."): v for k, v in arrays.items()} for arrays in files]
    expected = np.stack([reference(arrays, x) for arrays in bare])
    found = logits(load_ensemble(tmp_path, D, K), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_every_leaf_is_float32_with_the_members_in_front(tmp_path):
    for number in range(2):
        write(tmp_path, number, official(number), "pt")
    leaves = flatten_dict(load_ensemble(tmp_path, D, K), sep=".")
    network = Network(lambda rngs: PixelMLP(D, K, (A, B), rngs=rngs))
    wanted = flatten_dict(dict(network.abstract), sep=".")
    assert {name: leaf.shape for name, leaf in leaves.items()} == {
        name: (2, *leaf.shape) for name, leaf in wanted.items()
    }
    assert all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in leaves.values())


def test_members_are_in_the_order_of_their_numbers(tmp_path):
    for number in range(12):
        write(tmp_path, number, official(number))
    (tmp_path / "model_best.pth").write_text("not read")
    (tmp_path / "log.txt").write_text("not read")
    bias = load_ensemble(tmp_path, D, K)["params"]["linear3"]["bias"]
    expected = [official(number)["module.layers.6.bias"] for number in range(12)]
    np.testing.assert_array_equal(bias, expected)


def test_files_from_before_batches_were_counted(tmp_path):
    arrays = {name: a for name, a in official().items() if "num_batches" not in name}
    write(tmp_path, 0, arrays)
    assert load_ensemble(tmp_path, D, K)["params"]["linear1"]["kernel"].shape == (1, D, A)


# --- files that are wrong -------------------------------------------------------------------------


def refusal(folder, features=D, num_classes=K):
    with pytest.raises(UserError) as caught:
        load_ensemble(folder, features, num_classes)
    return str(caught.value)


def test_folders_without_classifiers(tmp_path):
    assert f"{tmp_path / 'none'} does not exist. Give the folder that" in refusal(tmp_path / "none")
    assert "holds no classifier. Give the folder that holds model_0.pth" in refusal(tmp_path)
    write(tmp_path, 0, official())
    assert "model_0.pth is a file. Give the folder" in refusal(tmp_path / "model_0.pth")


@pytest.mark.parametrize(("numbers", "sentence"), [
    ((1, 2), r"has model_2\.pth but no model_0\.pth \(1 missing in all\)"),
    ((0, 2, 5), r"has model_5\.pth but no model_1\.pth \(3 missing in all\)"),
    ((0, 10**18), r"but no model_1\.pth \(999999999999999999 missing in all\)"),
])  # fmt: skip
def test_gaps_in_the_numbers(tmp_path, numbers, sentence):
    for number in numbers:
        write(tmp_path, number, official())
    assert re.search(sentence, refusal(tmp_path))


def test_one_number_twice(tmp_path):
    write(tmp_path, 0, official(), "pt")
    write(tmp_path, 0, official())
    assert "has both model_0.pt and model_0.pth. Remove one." in refusal(tmp_path)


def test_other_taps_are_recognised_by_the_features(tmp_path):
    write(tmp_path, 0, official())
    sentence = refusal(tmp_path, features=D + 4)
    assert f"model_0.pth is for other taps: it reads {D} features a pixel, these taps give " \
        f"{D + 4}. Set the steps and blocks" in sentence  # fmt: skip
    assert "the folder's name may tell, such as 50_150_250_5_6_7_8_12" in sentence


def test_other_number_of_classes(tmp_path):
    write(tmp_path, 0, official())
    sentence = refusal(tmp_path, num_classes=K + 1)
    assert f"model_0.pth tells {K} classes apart, but the data has {K + 1}." in sentence


def test_members_of_unequal_widths(tmp_path):
    write(tmp_path, 0, official())
    write(tmp_path, 1, official(sizes=(D, A, B + 1, K)))
    sentence = f"model_1.pth has hidden widths {(A, B + 1)}, but model_0.pth beside it {(A, B)}."
    assert sentence in refusal(tmp_path)


@pytest.mark.parametrize(("name", "shape", "sentence"), [
    ("7.weight", (K,), r"model_0\.pth has layers\.7\.weight, which has no counterpart in this"),
    ("2.running_var", None, r"has no entry for stats\.norm1\.var \(1 missing in all\)"),
    ("0.weight", None, r"has no entry for params\.linear1\.kernel"),
    ("0.weight", (A,), r"layers\.0\.weight has shape \(8,\), which does not fit params\.linear1"),
    ("3.weight", (B, A + 1), r"layers\.3\.weight has shape \(5, 9\), which does not fit"),
    ("5.bias", (B + 1,), r"layers\.5\.bias has shape \(6,\), which does not fit params\.norm2\.b"),
])  # fmt: skip
def test_files_of_another_network(tmp_path, name, shape, sentence):
    arrays = official()
    arrays.pop(f"module.layers.{name}", None)
    if shape:
        arrays[f"module.layers.{name}"] = np.zeros(shape, np.float32)
    write(tmp_path, 0, arrays)
    assert re.search(sentence, refusal(tmp_path))


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "model_0.pth").write_bytes(b"PK\x03\x04 and no more")
    assert re.search(r"model_0\.pth is damaged or cut short", refusal(tmp_path))
