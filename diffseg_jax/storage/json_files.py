"""Objects in JSON files that must be there."""

import json
from pathlib import Path

from diffseg_jax.errors import UserError


def read_json_object(file: Path, advice: str) -> dict:
    """The object in a JSON file as a dict; UserError, which ends with the advice, if it is none."""
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it does not hold an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}){advice}") from None
    return content
