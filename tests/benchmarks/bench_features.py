"""Features of a frozen EfficientNet-Lite0, timed; torch_features.py is its plain PyTorch twin.

python tests/benchmarks/bench_features.py

The default maps of one image of 480x360 in float32. Random weights.
"""

from random_network import random_values
from timing import jax_program

HEIGHT, WIDTH = 360, 480  # as in torch_features.py


def make_step(args):
    """The default maps of an image."""
    import jax
    import numpy as np

    from diffseg_jax.models import efficientnet_lite as models
    from diffseg_jax.models.network import Network

    settings = models.EfficientNetSettings()
    network = Network(lambda rngs: models.EfficientNetLite(settings, rngs=rngs))
    values, taps = random_values(network), models.efficientnet_default_taps(settings)
    image = np.random.default_rng(0).uniform(-1, 1, (1, HEIGHT, WIDTH, 3)).astype(np.float32)
    run, image = jax.jit(lambda v, x: network.bind_eval(**v)(x, taps)), jax.device_put(image)
    return lambda: run(values, image)


if __name__ == "__main__":
    jax_program(__doc__, ("maps",), make_step)
