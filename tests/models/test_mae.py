"""MAE's network against recorded activations, and what must hold for any weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.models.mae import (
    MAESettings,
    from_patches,
    mae_default_taps,
    mae_taps,
    position_table,
    to_patches,
)
from diffseg_jax.models.taps import stack
from mae_case import TINY, filled, mae_case, network_for

# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def exact_products():
    """Accelerators multiply float32 with fewer digits unless they are told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


@pytest.mark.golden
def test_recorded_features(golden):
    for path in golden("baselines/mae_*.json"):
        network, params, arrays, record = mae_case(path)
        settings = network.bind(params, {}).settings

        @quick
        def run(params, image, network=network):
            model = network.bind(params, {})
            return model(image, mae_taps(model.settings)), model.encode(image)

        image = nhwc(arrays["input"])
        found, latent = run(params, image)
        near = functools.partial(np.testing.assert_allclose, **record["tolerance"]["features"])
        assert settings.depth == record["config"]["depth"]
        for i in range(settings.depth):
            near(found[f"block{i}"], nhwc(arrays[f"block{i:02d}"]), err_msg=f"{path} {i}")
        near(latent, arrays["latent_after_norm"])
        last = mae_taps(settings)[-record["num_tapped_blocks"] :]
        size = image.shape[1:3]
        pixels = stack([found[tap][:1] for tap in last], size)
        y, x = np.divmod(arrays["pixel_idx"], size[1])
        near(pixels.gather(jnp.zeros_like(y), jnp.asarray(y), jnp.asarray(x)),
             arrays["pixel_feats"])  # fmt: skip


@pytest.mark.golden
def test_recorded_positions(golden):
    """The rows of a large table, whose grid and width stand in the recorded name."""
    for path in golden("baselines/mae_*.npz"):
        arrays = np.load(path)
        names = [name for name in arrays if name.startswith("pos_embed_rows_")]
        assert names
        for name in names:
            width, side = map(int, name.split("_")[-2:])
            rows = position_table(side, side, width)[arrays["pos_embed_row_ids"]]
            np.testing.assert_allclose(rows, arrays[name], rtol=0, atol=1e-6)


def test_positions_of_a_row_and_of_a_column_are_those_of_their_own_index():
    """The first half depends on the column alone, the second on the row alone."""
    table = position_table(3, 5, 8)
    assert not table[0].any()
    grid = table[1:].reshape(3, 5, 8)
    assert np.array_equal(grid[..., :4], np.broadcast_to(grid[:1, :, :4], (3, 5, 4)))
    assert np.array_equal(grid[..., 4:], np.broadcast_to(grid[:, :1, 4:], (3, 5, 4)))
    assert np.array_equal(grid[:, 0, 4:], grid[0, :3, :4])
    angle = 2 * np.array([1.0, 0.01])
    np.testing.assert_allclose(grid[0, 2, :4], [*np.sin(angle), *np.cos(angle)], rtol=1e-6)


def test_patches_return_to_their_images():
    image = np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)
    patches = to_patches(image, 4)
    assert np.array_equal(patches[1, 4].reshape(4, 4, 3), image[1, 4:8, 4:8])
    assert np.array_equal(from_patches(patches, (8, 12), 4), image)


# --- for any weights ------------------------------------------------------------------------------


@functools.cache
def tiny():
    network = network_for(TINY)
    return network, filled(network)


@functools.cache
def encoder():
    network, _ = tiny()
    return quick(lambda params, image, keep: network.bind(params, {}).encode(image, keep))


def images(seed=0):
    return np.random.default_rng(seed).standard_normal((2, 8, 16, 3)).astype(np.float32)


KEEP = np.array([[5, 0, 2], [1, 7, 6]])


def test_the_encoder_sees_the_kept_patches_alone_and_in_any_order():
    _, params = tiny()
    first = encoder()(params, images(), KEEP)
    patches, others = (np.array(to_patches(image, 4)) for image in (images(), images(seed=1)))
    seen = np.zeros((2, 8, 1), bool)
    np.put_along_axis(seen, KEEP[..., None], True, 1)
    changed = from_patches(np.where(seen, patches, others), (8, 16), 4)
    assert np.array_equal(encoder()(params, changed, KEEP), first)
    turned = encoder()(params, images(), KEEP[:, ::-1])
    np.testing.assert_allclose(turned[:, 1:][:, ::-1], first[:, 1:], atol=1e-5)
    np.testing.assert_allclose(turned[:, 0], first[:, 0], atol=1e-5)
    unlike = encoder()(params, from_patches(others, (8, 16), 4), KEEP)
    assert np.abs(unlike - first).max() > 0.1


def test_with_all_patches_kept_the_last_block_leads_to_the_latent():
    network, params = tiny()
    every = np.broadcast_to(np.arange(8), (2, 8))

    def last(params, image):
        model = network.bind(params, {})
        return model.norm(model(image, ["block1"])["block1"])

    latent = encoder()(params, images(), every)[:, 1:]
    np.testing.assert_allclose(
        quick(last)(params, images()).reshape(latent.shape), latent, atol=1e-5
    )


def test_blocks_after_the_last_tap_are_not_computed():
    network, params = tiny()
    trace = lambda *taps: jax.make_jaxpr(lambda p, x: network.bind(p, {})(x, taps))
    choices = (), ("block0",), ("block0", "block1")
    lengths = [len(trace(*taps)(params, images()).eqns) for taps in choices]
    assert lengths[0] < lengths[1] < lengths[2]
    with pytest.raises(UserError, match='unknown feature "block2". Known: block0, block1'):
        trace("block2")(params, images())


def test_the_last_half_of_the_blocks_is_tapped_by_default():
    taps = mae_default_taps(MAESettings())
    assert (len(taps), taps[0], taps[-1]) == (12, "block12", "block23")


def test_published_networks_have_their_number_of_parameters():
    """ViT-L/8 of the paper: 303.6 and 26.4 million, counting position tables of a 32x32 grid."""
    params = network_for(MAESettings(patch=8)).abstract["params"]
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    decoder = count(params.pop("decoder")) + 1025 * 512
    assert (round((count(params) + 1025 * 1024) / 1e5), round(decoder / 1e5)) == (3036, 264)


def test_a_fresh_network_is_drawn_as_published():
    """Xavier's bound for matrices, that of the patches among them; biases of zero."""
    params = quick(tiny()[0].init)(jax.random.key(0))["params"]
    for layer, fans in (
        (params["patch_embedding"], (48, 16)), (params["decoder"]["prediction"], (8, 48)),
        (params["block1"]["attention"]["qkv"], (16, 48)),
    ):  # fmt: skip
        bound = (6 / sum(fans)) ** 0.5
        assert layer["kernel"].shape == fans and not layer["bias"].any()
        assert 0.9 * bound < np.abs(layer["kernel"]).max() <= bound
    assert 0.005 < np.std(params["class_token"]) < 0.04
