from pathlib import Path

import pytest

from worker.cli.paths import expand
from worker.errors import CommandError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg", "sub/c.png", ".hidden.png", "sub/.git/d.png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


def names(tree: Path, *paths: str) -> list[str]:
    return [str(file.relative_to(tree)) for file in expand([str(tree / path) for path in paths])]


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["b.png", "a.jpg"], ["b.png", "a.jpg"]),
        ([""], ["a.jpg", "b.png", "sub/c.png"]),
        (["sub"], ["sub/c.png"]),
        (["*.png"], ["b.png"]),
        (["**/*.png"], ["b.png", "sub/c.png"]),
        ([".hidden.png"], [".hidden.png"]),
        (["b.png", "*"], ["b.png", "a.jpg"]),
    ],
)
def test_paths_are_files_folders_and_globs(tree: Path, paths: list[str], found: list[str]) -> None:
    assert names(tree, *paths) == found


def test_every_path_without_a_file_is_named(tree: Path) -> None:
    (tree / "empty").mkdir()

    with pytest.raises(CommandError) as raised:
        names(tree, "a.jpg", "absent.png", "empty", "*.gif")

    for name in ("absent.png", "empty", "*.gif"):
        assert name in str(raised.value)
    assert "a.jpg" not in str(raised.value)
