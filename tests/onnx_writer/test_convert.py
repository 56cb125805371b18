"""Programs of jax that are written as ONNX compute the same in onnxruntime."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from diffseg_jax.layers.conv import Conv, convolve, convolve_enlarged
from diffseg_jax.layers.deformable import sample_points
from diffseg_jax.layers.depthwise import depthwise, depthwise_halved
from diffseg_jax.layers.resize import resize_bilinear, resize_nearest
from diffseg_jax.models.inputs import keys_of_images
from diffseg_jax.models.network import Network
from diffseg_jax.onnx_writer.convert import add_function
from diffseg_jax.onnx_writer.graph import Graph, UnsupportedError, symbolic_input
from diffseg_jax.onnx_writer.model_files import model_files

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 6, 10, 4), np.uint8)
MAPS = RNG.standard_normal((2, 6, 10, 4)).astype(np.float32)
ONE = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def written(function, array):
    """A session that computes function(array) for any number of rows."""
    graph = Graph()
    given = symbolic_input(graph, "x", array.dtype.name, ("rows", *array.shape[1:]))
    found = add_function(graph, function, given)
    files = model_files(graph, [given], {"y": found}, {}, ("test", "0"), "model.onnx")
    return onnxruntime.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])


def both(function, array):
    """The output of onnxruntime for all rows and for the first, and that of jax."""
    session = written(function, array)
    expected = np.asarray(jax.jit(function)(array))  # one program compiles sooner than its parts
    for count in (1, len(array)):
        (found,) = session.run(None, {"x": array[:count]})
        assert found.dtype == expected.dtype and found.shape == expected[:count].shape
        np.testing.assert_allclose(found, expected[:count], rtol=1e-5, atol=1e-5)


def each(function):
    """A function of one row, for all of them."""
    return jax.vmap(function)


KERNEL, GROUPED, SQUARE = normal(3, 3, 4, 8), normal(3, 3, 1, 4), normal(4, 5)
LEFT, LAST = normal(3, 10), normal(10, 4, 3)
POINTS = RNG.uniform(-0.2, 1.2, (1, 7, 2, 1, 3, 2)).astype(np.float32)
WEIGHTS = RNG.uniform(0, 1, (1, 7, 2, 1, 3)).astype(np.float32)
ENLARGED = Network(lambda rngs: Conv(4, 8, 3, rngs=rngs))
ENLARGED_VALUES = jax.tree.map(np.asarray, ENLARGED.init(jax.random.key(0)))
ROWS, COLUMNS = RNG.integers(-1, 3, (3, 20)), RNG.integers(-1, 7, (3, 20))  # some out of range
PROGRAMS = {
    "a product": lambda x: x @ SQUARE,
    "a product of batches": lambda x: jnp.einsum("bhwc,bhvc->bhwv", x, x),
    "a product with a constant on the left": lambda x: jnp.einsum("vw,bhwc->bhvc", LEFT, x),
    "a product over two axes": lambda x: jnp.tensordot(x, LAST, 2),
    "a convolution": each(lambda x: convolve(x[None], KERNEL)[0]),
    "a convolution at stride 2": lambda x: convolve(x, KERNEL, 2, [(1, 1), (0, 2)]),
    "a dilated one": lambda x: lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", rhs_dilation=(2, 2), **ONE),
    "a depthwise one": each(lambda x: depthwise(x[None], GROUPED)[0]),
    "a halving depthwise one": lambda x: depthwise_halved(x, GROUPED),
    "one of an enlarged map": each(lambda x: convolve_enlarged(
        x[None], ENLARGED.bind_eval(**ENLARGED_VALUES))[0]),
    "the largest of windows": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]),
    "sums of windows": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "samples at points": each(lambda x: sample_points(
        x.reshape(1, 60, 2, 2), [(6, 10)], POINTS, WEIGHTS)[0]),
    "a resized map": each(lambda x: resize_bilinear(x[None], (9, 7))[0]),
    "a map of nearest values": each(lambda x: resize_nearest(x[None], (9, 7))[0]),
    "a softmax": lambda x: jax.nn.softmax(x),
    "moments": lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1),
    "activations": lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.silu(x) + jnp.tanh(x),
    "rounding": lambda x: jnp.round(3 * x) + jnp.floor(x) + jnp.ceil(x) + jnp.sign(x),
    "powers": lambda x: x**3 + jnp.abs(x + 3) ** -2 + jnp.exp(-x) % 0.3,
    "differences from 1": lambda x: jnp.log1p(x**2) + 1000 * jnp.expm1(x / 1000),
    "the inverse error function": lambda x: lax.erf_inv(jnp.clip(x, -0.99, 0.99)),
    "labels": lambda x: jnp.argmax(x, -1).astype(jnp.int32),
    "rows of a table": lambda x: jnp.asarray(SQUARE)[jnp.argmax(x, -1)],
    "rows that may be missing": lambda x: jnp.nan_to_num(
        jnp.asarray(SQUARE).at[(3 * x[..., 0]).astype(jnp.int32)].get(mode="fill"), nan=7.0),
    "values of another map": lambda x: jnp.take_along_axis(
        x, jnp.argsort(SQUARE[:, :1].T)[None, None], -1),
    "rows added up": each(lambda x: jnp.ones((2, 5, 4)).at[ROWS, COLUMNS].add(
        x.reshape(3, 20, 4), mode="drop")),
    "choices": lambda x: jnp.where(x > 0.5, x, jnp.where((x < 0) | ~(x < -1), 0.0, 2.0)),
    "choices between truths": lambda x: jnp.where(x > 0, x > 1, x < -1),
    "clipped numbers": lambda x: jnp.clip(x, -0.5, 0.25),
    "slices": lambda x: jnp.concatenate([x[:, ::2, 1:-1], jnp.flip(x[:, 3:], 2)[:, :, :8]], 1),
    "repeated edges": lambda x: jnp.pad(x, ((0, 0), (0, 3), (1, 1), (0, 0)), mode="edge"),
    "zeros around": lambda x: jnp.pad(x, ((0, 0), (2, 0), (0, 1), (0, 0)))[:, 1:],
    "parts": lambda x: sum(jnp.split(x, 5, 2)),
    "a stack": lambda x: jnp.stack([x[:, :, :1]] * 2, 2).reshape(-1, 6, 2, 4),
    "tiles": lambda x: jnp.tile(x, (1, 2, 1, 1)).transpose(0, 2, 3, 1),
    "running sums": lambda x: jnp.cumsum(x, 1),
    "a loop": lambda x: lax.fori_loop(0, 3, lambda i, y: y * 0.5 + i, x),
    "a loop over the images": lambda x: lax.map(lambda image: image @ SQUARE, x),
    "a loop backwards": each(lambda x: lax.scan(
        lambda total, row: (total + row, total), jnp.zeros((10, 4)), x, reverse=True)[1]),
    "the branch for any platform": lambda x: lax.platform_dependent(
        x, cpu=lambda x: x + jnp.argsort(x), tpu=lambda x: -x, default=lambda x: x + 1) - 1,
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_computes_the_same_in_onnxruntime(name):
    if name == "the branch for any platform":
        (found,) = written(PROGRAMS[name], MAPS).run(None, {"x": MAPS})
        np.testing.assert_allclose(found, MAPS, atol=1e-6)
    else:
        both(PROGRAMS[name], MAPS)


def test_samples_of_all_points_are_one_operator_that_runtimes_have_fast():
    graph = Graph()
    given = symbolic_input(graph, "x", "float32", ("rows", 6, 10, 4))
    add_function(graph, PROGRAMS["samples at points"], given)
    operators = [node.op_type for node in graph.nodes]
    assert operators.count("GridSample") == 1 and "GatherND" not in operators


SIZES = np.float32(10) ** np.arange(-30, 1.6, 0.1, np.float32)  # to 35
BOTH_SIGNS = np.concatenate([-SIZES[::-1], [0], SIZES]).astype(np.float32)[:, None]


@pytest.mark.parametrize(("function", "truth", "given", "limits"), [
    (jnp.expm1, np.expm1, BOTH_SIGNS, {"rtol": 2e-6}),
    (jnp.log1p, np.log1p, BOTH_SIGNS[BOTH_SIGNS[:, 0] > -1], {"rtol": 5e-7}),
    (jax.nn.softplus, lambda x: np.logaddexp(0, x), BOTH_SIGNS, {"rtol": 2e-6}),
    (lax.erfc, lambda x: [[math.erfc(each)] for each in x[:, 0]], BOTH_SIGNS, {"atol": 2e-7}),
], ids=["expm1", "log1p", "softplus", "erfc"])  # fmt: skip
def test_small_and_large_numbers_keep_their_digits(function, truth, given, limits):
    """Of erfc, only the absolute error is small, see `elementwise`."""
    (found,) = written(function, given).run(None, {"x": given})
    limits = {"rtol": 0, "atol": 0} | limits
    np.testing.assert_allclose(found, truth(given.astype(np.float64)), **limits)


@pytest.mark.parametrize("x", [np.inf, -np.inf, np.nan, -1])
def test_limits_of_logarithms_and_exponentials_are_those_of_jax(x):
    both(lambda x: jnp.stack([jnp.expm1(x), jnp.log1p(x), jax.nn.softplus(x)], -1),
         np.full((2, 1), x, np.float32))  # fmt: skip


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "int32", "bool", "float32"])
def test_values_of_indices_out_of_range_are_those_of_jax(dtype):
    table = jnp.asarray(np.arange(4), dtype)
    both(lambda x: table.at[x].get(mode="fill"), np.int32([[0, 2], [4, 99]]))


@pytest.mark.parametrize("draw", [jax.random.bits, jax.random.normal], ids=["bits", "normal"])
def test_random_numbers_of_an_image_are_those_of_jax(draw):
    def noise(image):
        (key,) = keys_of_images(image[None], 5, "some noise")
        return draw(jax.random.fold_in(key, 3), (3, 5))

    both(each(noise), IMAGES)


def test_numbers_without_a_sign_are_computed_by_operators_that_browsers_have():
    """onnxruntime-web has no Where, Div, Max, Min or comparison of uint32."""
    graph = Graph()
    given = symbolic_input(graph, "x", "uint32", ("rows", 4))
    program = lambda x: jnp.where(x > 7, jnp.maximum(x // 3, x % 5), jnp.minimum(x * 3, x + 1))
    outputs = {"y": add_function(graph, program, given)}
    content = model_files(graph, [given], outputs, {}, ("test", "0"), "a.onnx")["a.onnx"]
    x = np.uint32([[0, 5, 7, 8], [2**31 + 5, 2**32 - 1, 99, 1]])
    (found,) = onnxruntime.InferenceSession(content).run(None, {"x": x})
    np.testing.assert_array_equal(found, program(x))
    made = onnx.shape_inference.infer_shapes(onnx.load_from_string(content)).graph
    described = [*made.value_info, *made.input, *made.output]
    dtypes = {each.name: each.type.tensor_type.elem_type for each in described}
    for node in made.node:
        if node.op_type in ("Add", "Div", "Greater", "Less", "Max", "Min", "Mod", "Mul", "Where"):
            assert onnx.TensorProto.UINT32 not in {dtypes.get(name) for name in node.input}, node


def test_what_is_not_known_is_named():
    with pytest.raises(UnsupportedError, match="sort"):
        written(lambda x: jnp.sort(x), MAPS)
    with pytest.raises(UnsupportedError, match="a branch that depends on the image"):
        written(lambda x: lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x), MAPS)


def test_equal_parts_are_written_once():
    graph = Graph()
    given = symbolic_input(graph, "x", "float32", ("rows", 4))
    before = len(graph.nodes)
    add_function(graph, lambda x: (jnp.exp(x) @ SQUARE) + (jnp.exp(x) @ SQUARE.copy()), given)
    assert sorted(node.op_type for node in graph.nodes[before:]) == ["Add", "Exp", "MatMul"]


def test_constants_beyond_the_limit_of_a_file_go_beside_it(tmp_path, monkeypatch):
    from diffseg_jax.onnx_writer import model_files as module

    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    large = normal(40, 30)
    graph = Graph()
    given = symbolic_input(graph, "x", "float32", ("rows", 40))
    outputs = {"y": add_function(graph, lambda x: x @ large, given)}
    files = model_files(graph, [given], outputs, {"a": "b"}, ("test", "0"), "model.onnx")
    assert sorted(files) == ["model.onnx", "model.onnx.data"] and len(files["model.onnx"]) < 1000
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    x = normal(3, 40)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ large, rtol=1e-4, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map == {"a": "b"}
