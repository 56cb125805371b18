"""The query of a request for a prediction, with one sentence for whatever is wrong with it."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from diffseg_jax.cli import factors, number, truth
from diffseg_jax.errors import LONGEST_VALUE, UserError, require_known, shortened
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.server.predict_formats import CONTENT_TYPES
from diffseg_jax.server.served_network import ServedNetwork

QUERY_OPTIONS = {  # of `Segmenter.predict` -> how its text is read
    "steps": number(int), "samples": number(int), "scales": factors, "flip": truth,
    "seed": number(int),
}  # fmt: skip
OTHERS = ("format", "uncertainty")  # of the response
LONGEST_QUERY = 1000  # characters of a query


@dataclass(frozen=True)
class Wanted:
    """What a request asks for.

    format  one of CONTENT_TYPES;  uncertainty  whether JSON holds the map of the uncertainty
    """

    options: PredictOptions
    format: str = "png"
    uncertainty: bool = False


def read_query(pairs: Iterable[tuple[str, str]], network: ServedNetwork) -> Wanted:
    """What the parameters of an address ask for; UserError for unknown and wrong ones."""
    given = {}
    for name, text in pairs:
        require_known(name, (*QUERY_OPTIONS, *OTHERS), "parameter")
        if name in given:
            raise UserError(f"{name} is given twice. Give it once.")
        given[name] = text
    if sum(map(len, given.values())) > LONGEST_QUERY:
        raise UserError(f"the parameters have more than {LONGEST_QUERY:,} characters. Give fewer.")
    format = given.pop("format", "png")
    require_known(format, CONTENT_TYPES, "format")
    uncertainty = _parsed("uncertainty", given.pop("uncertainty", "False"), truth)
    if uncertainty and format != "json":
        raise UserError(
            f"uncertainty=True asks for a map inside JSON, but format is {format}. Try "
            "format=json, or format=probs, which always holds it."
        )
    options = {name: _parsed(name, text, QUERY_OPTIONS[name]) for name, text in given.items()}
    return Wanted(network.options(**options), format, uncertainty)


def _parsed(name: str, text: str, read: Callable):
    try:
        return read(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{name} {shortened(str(error), LONGEST_VALUE)}.") from None
