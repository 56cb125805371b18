"""The packaged network on a drawn scene of 96x128, from an image to a Prediction, timed.

python tests/benchmarks/bench_scenes.py

The first call is the first image of `predict --checkpoint=scenes`, without imports and loading.
"""

from timing import jax_program


def make_step(args):
    """The probabilities of a scene."""
    import diffseg_jax
    from diffseg_jax.data.scenes import draw_scene

    segmenter, image = diffseg_jax.load("scenes"), draw_scene(7, 0, 96, 128)["image"]
    return lambda: segmenter.predict(image).probs


if __name__ == "__main__":
    jax_program(__doc__, ("image",), make_step)
