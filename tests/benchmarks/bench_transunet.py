"""Our TransUNet of the published size, timed; torch_transunet.py is its plain PyTorch twin.

python tests/benchmarks/bench_transunet.py --what=forward|train|ddep [--batch=4] [--size=224]

forward   evaluation, from pixels to probabilities
train     a training step of the entire network
ddep      the decoder learns the noise; the encoder is frozen, without gradients or moments

Measured 2026-11-21 with PyTorch 2.13.0 and jax 0.10.2 on 2 cores (Intel Xeon of family 6, model
207, with AVX-512), nothing else running, seconds of ours and torch: forward 1.25 and 1.14, train
5.21 and 3.76, ddep 2.24 and 1.75; ddep / train 0.43.
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

    from diffseg_jax.models.network import Network
    from diffseg_jax.models.transunet import STRIDE, TransUNet
    from diffseg_jax.systems import ddep

    frozen = args.what == "ddep"
    options = dict(grid=(args.size // STRIDE,) * 2, dtype=jnp.dtype(args.dtype))
    network = Network(lambda rngs: TransUNet(3 if frozen else 19, **options, rngs=rngs))
    values, batch = random_values(network), random_images(args.batch, args.size, args.size)
    if args.what == "forward":
        predict = jax.jit(functools.partial(ddep.class_probabilities, network))
        return lambda: predict(values, batch["image"], batch["valid"])
    loss = functools.partial(ddep.segmentation_loss, network)
    if frozen:
        loss = functools.partial(ddep.denoising_loss, network, NOISE, False)
    return training_call(
        loss, values, batch, "adam", lambda path: not (frozen and path[0] == "encoder")
    )  # fmt: skip


if __name__ == "__main__":
    jax_program(__doc__, ("forward", "train", "ddep"), make_step, batch=4, size=224)
