"""From a config to trained stages and their results."""


def __getattr__(name):
    """Imports `train` at its first use, so that the parts of the room do not import it."""
    if name == "train":
        from diffseg_jax.experiment.stages import train

        return train
    raise AttributeError(f"module diffseg_jax.experiment has no attribute {name}")
