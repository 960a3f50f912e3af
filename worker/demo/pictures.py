"""The demo's pictures: handwritten digits that its models have not seen, with their true labels."""

import io
import re
import zipfile
from importlib import resources
from typing import NamedTuple


class Picture(NamedTuple):
    name: str
    label: str
    """What is written on it, as the models call it."""
    png: bytes


def pictures() -> list[Picture]:
    """Read all pictures, in the order of their names."""
    data = resources.files("worker.demo").joinpath("pictures.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as pack:
        return [Picture(name, _label(name), pack.read(name)) for name in sorted(pack.namelist())]


def _label(name: str) -> str:
    """Read `7` out of `0001_label7.png`."""
    match = re.fullmatch(r"\d+_label(\d)\.png", name)
    if match is None:
        raise ValueError(f"pictures.zip: {name!r} does not say its label")
    return match[1]
