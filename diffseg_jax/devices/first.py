"""Work that process 0 does for all, whose failure ends all of them."""

from collections.abc import Callable
from typing import TypeVar

from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError

T = TypeVar("T")


def first_does(act: Callable[[], T], otherwise: str) -> T | None:
    """What `act` returns in process 0, None in the others; all of them raise if it raises there.

    otherwise  the text of the UserError of the other processes
    """
    result, problem = None, None
    if processes.is_first():
        try:
            result = act()
        except Exception as error:  # the others would wait for process 0
            problem = error
    if not processes.true_in_all(problem is None):
        raise problem or UserError(otherwise)
    return result
