"""Our TransUNet of the published size, timed; torch_transunet.py is its plain PyTorch twin.

python tests/benchmarks/bench_transunet.py --what=forward|train|ddep [--batch=4] [--size=224] \
    [--remat]

forward   evaluation, from pixels to probabilities
train     a training step of the entire network
ddep      the decoder learns the noise; the encoder is frozen, without gradients or moments
--remat   residual units, transformer layers and stages of the decoder are computed again in the
          backward pass

The arithmetic is that of the PyTorch port (`model.arithmetic="port"`) on both sides.
"""

import functools

from random_network import random_images, random_values, training_call
from timing import jax_program

NOISE = dict(
    kind="scaled", low=0.22, high=0.22, uniform_in="sigma", target="noise", condition=False
)


def make_step(args):
    """Our forward pass or train step."""
    import jax
    import jax.numpy as jnp

    from diffseg_jax.layers.conv import Arithmetic
    from diffseg_jax.models.network import Network
    from diffseg_jax.models.transunet import STRIDE, TransUNet
    from diffseg_jax.systems import ddep

    frozen = args.what == "ddep"
    options = dict(
        grid=(args.size // STRIDE,) * 2, arithmetic=Arithmetic.PORT, dtype=jnp.dtype(args.dtype),
        remat=args.remat,
    )  # fmt: skip
    network = Network(lambda rngs: TransUNet(3 if frozen else 19, **options, rngs=rngs))
    values, batch = random_values(network), random_images(args.batch, args.size, args.size)
    if args.what == "forward":
        predict = jax.jit(lambda *given: ddep.class_probabilities(network, *given)["probs"])
        return functools.partial(predict, values, batch["image"], batch["valid"])
    loss = functools.partial(ddep.segmentation_loss, network)
    if frozen:
        loss = functools.partial(ddep.denoising_loss, network, NOISE, False)
    return training_call(
        loss, values, batch, "adam", lambda path: not (frozen and path[0] == "encoder")
    )  # fmt: skip


if __name__ == "__main__":
    jax_program(__doc__, ("forward", "train", "ddep"), make_step, batch=4, size=224, remat=False)
