"""The model that a run goes on from, opened as its config names it."""

from __future__ import annotations

from synthfactory.model.find import Opened, find_model
from synthfactory.spec.errors import InputError
from synthfactory.spec.model import Model


def open_base(named: Model) -> Opened:
    """InputError, of the field `base`, where it is not there, access is refused, or its form is unknown."""
    try:
        return find_model(named)
    except InputError as error:
        raise InputError(f"base: {str(error).removeprefix('model: ')}") from None
