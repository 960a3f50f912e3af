"""The connection of a command to the fleet of its settings, and who gives the command."""

import contextlib
import getpass
import os
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from worker.config import load_settings
from worker.config_sections import Settings
from worker.control.catalogue import Catalogue
from worker.control.channel import Channel
from worker.control.operator import Operator
from worker.errors import SettingsError
from worker.telemetry.logs import configure


class Fleet(NamedTuple):
    """A fleet to command."""

    name: str
    settings: Settings
    operator: Operator
    catalogue: Catalogue


@contextlib.asynccontextmanager
async def connected(config: Path | None) -> AsyncIterator[Fleet]:
    """Have the fleet of the settings for the length of a block. Raises SettingsError."""
    configure("error")
    settings = load_settings(config).settings
    control = settings.control
    if control.url is None:
        raise SettingsError(
            "control.url is not set, so there is no fleet to command: set it in the settings"
            " (--config FILE), or DARKROOM_CONTROL__URL=redis://HOST:PORT/DB"
        )
    catalogue = Catalogue(settings.models)
    async with contextlib.aclosing(Channel(control)) as channel:
        operator = Operator(channel, by=who(), first=partial(catalogue.first, control.fleet))
        yield Fleet(control.fleet, settings, operator, catalogue)


def who() -> str:
    """Return user@host, as the audit keeps it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user of a container need not have a name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
