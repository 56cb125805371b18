"""Table rows of PyTorch layers, from the name of a layer there to its name here."""

from diffseg_jax.weights.tables import Row


def linear_rows(torch: str, ours: str) -> tuple[Row, ...]:
    """The rows of a linear layer, with or without a bias."""
    return ((torch + r"\.weight", ours + ".kernel", "oi->io"), _bias(torch, ours))


def conv(torch: str, ours: str) -> tuple[Row, ...]:
    """The rows of a convolution; a 1x1 kernel may become that of a linear layer."""
    return ((torch + r"\.weight", ours + ".kernel", "oihw->hwio"), _bias(torch, ours))


def norm(torch: str, ours: str) -> tuple[Row, ...]:
    """The rows of a normalisation layer's parameters."""
    return ((torch + r"\.weight", ours + ".scale", "c->c"), _bias(torch, ours))


def statistics(torch: str, ours: str) -> tuple[Row, ...]:
    """The rows of a batch norm's running averages."""
    return (
        (torch + r"\.running_mean", ours + ".mean", "c->c"),
        (torch + r"\.running_var", ours + ".var", "c->c"),
    )


def _bias(torch, ours):
    return (torch + r"\.bias", ours + ".bias", "c->c")
