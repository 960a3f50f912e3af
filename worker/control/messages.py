"""What the fleet should serve: one immutable value, from the settings or the control channel."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from worker.errors import SettingsError
from worker.types import ModelRef


class DesiredState(NamedTuple):
    """Which version of each model should be active. Made by `desired`, which checks it."""

    generation: int | None
    """Its number on the control channel; None when it comes from the settings."""
    models: Mapping[str, str]
    """Model name -> version."""
    default: str
    """Serves a record that names no model."""

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        return tuple(ModelRef(name, version) for name, version in self.models.items())


def desired(
    models: Mapping[str, str], default: str, *, generation: int | None = None
) -> DesiredState:
    """Return the desired state of these models, which nobody can change afterwards.

    Raises SettingsError when the default is not one of them.
    """
    if default not in models:
        names = ", ".join(sorted(models)) or "none"
        raise SettingsError(
            f"models.default: {default!r} has no active version; models.active names: {names}"
        )
    return DesiredState(generation, MappingProxyType(dict(models)), default)
