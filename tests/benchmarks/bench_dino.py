"""Our DINOv2 ViT-S/14, timed; torch_dino.py is its plain PyTorch twin. Random weights.

python tests/benchmarks/bench_dino.py --what=one|eight|large

one     an image of 224x224: the normalised outputs of blocks 2, 5, 8 and 11
eight   eight of them in one batch
large   an image of 518x518, for which the table of positions was made
"""

from random_network import random_values
from timing import jax_program

TIMED = dict(one=(1, 224), eight=(8, 224), large=(1, 518))  # batch, size; as in torch_dino.py


def make_step(args):
    """The features of a batch."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffseg_jax.models.dino import Dino, DinoSettings, dino_default_taps
    from diffseg_jax.models.network import Network

    settings, (batch, size) = DinoSettings(), TIMED[args.what]
    network = Network(lambda rngs: Dino(settings, dtype=jnp.dtype(args.dtype), rngs=rngs))
    values, taps = random_values(network), dino_default_taps(settings)
    draw = np.random.default_rng(0)
    images = jax.device_put(draw.standard_normal((batch, size, size, 3), np.float32))
    run = jax.jit(lambda values, images: network.bind_eval(**values)(images, taps))
    return lambda: run(values, images)


if __name__ == "__main__":
    jax_program(__doc__, TIMED, make_step)
