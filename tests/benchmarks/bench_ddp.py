"""Our DDP with ConvNeXt on images of 512x1024, timed; torch_ddp.py is its plain PyTorch twin.

python tests/benchmarks/bench_ddp.py --what=steps_1|steps_3|train [--backbone=convnext_l]
python tests/benchmarks/bench_ddp.py --parts

steps_1, steps_3  from normalised pixels to logits of the image's size, in so many steps
train             a training step
--parts           prints seconds and GFLOP/s of every part alone, compiled and timed by itself, of
                  ConvNeXt-T in float32, and how often it runs; within the network the decoder is
                  faster, because it applies each layer to 1024 tokens at a time
"""

import functools
import sys
import timeit

from random_network import random_images, random_values, training_call
from timing import jax_program

SIZE, CLASSES = (512, 1024), 19
BACKBONES = dict(
    convnext_t=dict(channels=(96, 192, 384, 768), depths=(3, 3, 9, 3), drop_path=0.4),
    convnext_l=dict(channels=(192, 384, 768, 1536), depths=(3, 3, 27, 3), drop_path=0.4),
)
DIFFUSION = dict(schedule="cosine", high=0.999, auxiliary=0.4)
SAMPLING = dict(
    sampler="ddim", draws=1, time_difference=1, start=0.0, schedule="cosine", accumulate=False
)


def make(dtype="float32", backbone="convnext_t"):
    """(network, random values)."""
    from diffseg_jax.models.ddp_network import DDPSettings
    from diffseg_jax.systems.ddp_segmentation import make_network

    settings = DDPSettings(
        "convnext", heads=(), window=0, num_classes=CLASSES, **BACKBONES[backbone]
    )
    network = make_network(settings, "train", dtype, False)
    return network, random_values(network)


def normal_image(height, width):
    """A normalised image f32[1,H,W,3]."""
    import jax
    import numpy as np

    draw = np.random.default_rng(0)
    return jax.device_put(draw.standard_normal((1, height, width, 3), np.float32))


def logits_of(network, steps, values, image):
    """Logits f32[1,H,W,K] after so many steps."""
    import jax

    from diffseg_jax.layers.resize import resize_bilinear
    from diffseg_jax.systems.ddp import denoise_map
    from diffseg_jax.systems.ddp_segmentation import SEGMENTATION

    model = network.bind_eval(**values)
    x, _ = model.encode(image)
    noise = jax.random.normal(jax.random.key(0), (1, 1, *x.shape[1:]))
    found = denoise_map(SEGMENTATION, model, x, noise, SAMPLING | {"steps": steps}, None)
    return resize_bilinear(found["scores"], image.shape[1:3])


def make_step(args):
    """Our prediction or train step."""
    import jax

    from diffseg_jax.systems.ddp import diffusion_loss
    from diffseg_jax.systems.ddp_segmentation import SEGMENTATION

    network, values = make(args.dtype, args.backbone)
    height, width = args.size, 2 * args.size
    if args.what == "train":
        loss = functools.partial(diffusion_loss, SEGMENTATION, network, DIFFUSION)
        return training_call(loss, values, random_images(args.batch, height, width))
    image = normal_image(height, width)
    run = jax.jit(functools.partial(logits_of, network, int(args.what.removeprefix("steps_"))))
    return functools.partial(run, values, image)


def time_parts():
    """Prints a line for every part."""
    import jax
    import jax.numpy as jnp

    from diffseg_jax.layers.resize import resize_bilinear
    from diffseg_jax.models.map_decoder import reference_points

    (network, values), image = make(), normal_image(*SIZE)
    bind = lambda values: network.bind_eval(**values)
    h, w = (side // 4 for side in SIZE)
    query = jax.random.normal(jax.random.key(1), (1, h * w, 256))
    maps, _ = jax.jit(lambda values, image: bind(values).backbone(image))(values, image)
    constants = jax.jit(lambda values: bind(values).decoder.constants((h, w)))(values)[0]
    layer = lambda values: bind(values).decoder.layer0

    def attention(values, query):
        reference = jnp.asarray(reference_points((h, w)))
        return layer(values).attention(query, constants, reference, ((h, w),))

    logits = jnp.zeros((1, h, w, CLASSES))
    parts = {  # name: (function, inputs, GFLOP of one run, runs)
        "backbone": (lambda v, x: bind(v).backbone(x)[0], (values, image), 93.1, "once"),
        "neck": (lambda v, maps: bind(v).neck(maps)[0], (values, maps), 71.5, "once"),
        "attention": (attention, (values, query), 10.2, "6 a step"),
        "feed-forward": (lambda v, q: layer(v).mlp(q), (values, query), 34.4, "6 a step"),
        "resizing": (lambda x: resize_bilinear(x, SIZE), (logits,), 0.2, "once"),
    }  # fmt: skip
    print("part          seconds  GFLOP/s  runs")
    for name, (function, inputs, gflop, runs) in parts.items():
        run = jax.jit(function)
        call = lambda run=run, inputs=inputs: jax.block_until_ready(run(*inputs))
        call()
        seconds = min(timeit.repeat(call, number=1, repeat=3))
        print(f"{name:12} {seconds:8.3f} {gflop / seconds:8.0f}  {runs}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--parts"]:
        time_parts()
    else:
        whats = ("steps_1", "steps_3", "train")
        jax_program(__doc__, whats, make_step, backbone="convnext_t", batch=2, size=SIZE[0])
