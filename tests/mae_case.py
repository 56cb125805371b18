"""Recorded cases of MAE, for tests."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.models.mae import MAE, MAESettings
from diffseg_jax.models.network import Network
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.mae import MAE_ROWS, load_mae, mae_settings

TINY = MAESettings(
    patch=4, width=16, depth=2, heads=2, mlp=24, decoder_width=8, decoder_depth=1, decoder_heads=2,
    decoder_mlp=12,
)  # fmt: skip


def network_for(settings):
    return Network(lambda rngs: MAE(settings, rngs=rngs))


def filled(network, seed=0):
    """Random values for every parameter, as large as activations near 1 allow."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = generator.standard_normal(leaf.shape, np.float32)
        noise *= 0.3 if len(leaf.shape) == 1 else leaf.shape[0] ** -0.5
        return jnp.asarray(noise + (path[-1].key == "scale"))

    return jax.tree_util.tree_map_with_path(draw, network.abstract["params"])


def mae_case(path):
    """(network, params, arrays, record) of a recorded run, read from its checkpoint."""
    record = json.loads(path.read_text())
    file, config = path.with_name(record["checkpoint"]), record["config"]
    read = read_arrays(file)
    heads = config["num_heads"], config["decoder_num_heads"]
    settings = mae_settings(read, str(file), *heads)
    params = load_mae(read, settings, str(file))["params"]
    params = jax.tree.map(jnp.asarray, params)
    return network_for(settings), params, np.load(path.with_suffix(".npz")), record


def path_of(name):
    """Our path of an entry of the authors' files, by the table of the loader."""
    for pattern, path, _ in MAE_ROWS:
        if match := re.fullmatch(pattern, name):
            return tuple(path.format(*match.groups()).split("."))
    raise AssertionError(name)
