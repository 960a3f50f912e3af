import json
import shutil
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Darkroom
from tests.unit.models.shelves import serving
from worker.config_sections import EngineSettings
from worker.inference.devices import devices_of
from worker.models.repository import demo_repository
from worker.protocol.survey import Gpu, Survey


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return the demo's models, where a test may break them."""
    folder = tmp_path / "models"
    shutil.copytree(demo_repository(), folder)
    return folder


def test_without_a_target_every_version_of_the_demo_is_told(darkroom: Darkroom) -> None:
    facts = json.loads(darkroom("models", "inspect", "--json").stdout)

    assert [fact["version"] for fact in facts] == ["digits/1", "digits/2"]
    assert all(
        fact["ok"] and fact["heads"] and len(fact["manifest_sha256"]) == 64 for fact in facts
    )


@pytest.mark.parametrize(
    ("target", "versions"),
    [("digits", ["digits/1", "digits/2"]), ("digits/2", ["digits/2"]), ("PATH", ["digits/1"])],
)
def test_a_target_is_a_model_a_version_or_a_folder(
    target: str, versions: list[str], darkroom: Darkroom, repository: Path
) -> None:
    named = target.replace("PATH", str(repository / "digits/1"))

    result = darkroom("models", "inspect", named)

    assert result.exit_code == 0
    assert [line[11:] for line in result.stdout.splitlines() if line[0] == "-"] == versions


def test_an_unknown_target_is_refused_with_what_there_is(darkroom: Darkroom) -> None:
    result = darkroom("models", "inspect", "cats")

    assert result.exit_code == 1
    assert "'cats' is no model, version or folder" in result.stderr
    assert "digits/1, digits/2" in result.stderr


def test_a_changed_file_is_found_and_the_other_versions_are_told_too(
    darkroom: Darkroom, repository: Path
) -> None:
    with (repository / "digits/1/labels.txt").open("a") as labels:
        labels.write("ten\n")

    result = darkroom("models", "inspect", "--repository", str(repository), "--json")

    first, second = json.loads(result.stdout)
    assert result.exit_code == 3
    assert (first["ok"], second["ok"]) == (False, True)
    assert "labels.txt" in first["problem"]
    assert "1 of 2" in result.stderr


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_an_active_version_that_is_not_there_is_a_broken_one(
    command: str, darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_MODELS__ACTIVE", '{"digits": "5"}')

    result = darkroom("models", command, "--json")

    facts = {fact["version"]: fact for fact in json.loads(result.stdout)}
    assert result.exit_code == 3
    assert [name for name, fact in facts.items() if not fact["ok"]] == ["digits/5"]
    assert "digits/5" in facts["digits/5"]["problem"]


def test_several_problems_stand_on_a_line_each(darkroom: Darkroom, repository: Path) -> None:
    for name in ("labels.txt", "model.onnx"):
        (repository / "digits/1" / name).unlink()

    result = darkroom("models", "inspect", "digits/1", "--repository", str(repository))

    lines = [line.strip() for line in result.stdout.splitlines()]
    assert [line for line in lines if "labels.txt: cannot be opened" in line] == [
        f"{repository / 'digits/1/labels.txt'}: cannot be opened: No such file or directory"
    ]
    assert "problem: |" in "\n".join(lines)


def test_verify_loads_a_version_in_an_engine(darkroom: Darkroom) -> None:
    result = darkroom("models", "verify", "digits/1", "--json")

    [fact] = json.loads(result.stdout)
    assert result.exit_code == 0
    assert fact["provider"].endswith("ExecutionProvider")
    assert fact["row_bytes"] == 8 * 8 * 4


def test_verify_says_that_a_gpu_is_there_and_not_usable(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu("GPU-1", "GPU-1", "H100", problem="GPU is lost")
    devices = devices_of(EngineSettings(), found=lambda: True, look=lambda: Survey((gpu,)))
    monkeypatch.setattr("worker.cli.versions.devices_of", lambda _: devices)
    result = darkroom("models", "verify", "digits/1", "--json")
    assert json.loads(result.stdout)[0]["fallback"] is True


def test_verify_names_the_field_of_a_manifest_that_the_graph_contradicts(
    darkroom: Darkroom, repository: Path
) -> None:
    manifest = repository / "digits/1/manifest.yaml"
    manifest.write_text(manifest.read_text().replace("output: logits", "output: logit"))

    result = darkroom("models", "verify", "digits/1", "--repository", str(repository), "--json")

    [fact] = json.loads(result.stdout)
    assert result.exit_code == 3
    assert fact["field"] == "heads.digit.output"
    assert fact["file"].endswith("manifest.yaml")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DARKROOM_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_fetch_puts_the_active_versions_into_the_cache_and_remembers_them(
    darkroom: Darkroom, repository: Path, data: Path
) -> None:
    result = darkroom("models", "fetch", "--repository", str(repository), "--json")

    [fact] = json.loads(result.stdout)
    assert result.exit_code == 0
    assert fact["version"] == "digits/1"
    assert Path(fact["folder"]).parent == data / "cache/models"
    assert fact["bytes"] == sum(
        path.stat().st_size for path in (repository / "digits/1").rglob("*") if path.is_file()
    )
    assert json.loads((data / "seen.json").read_text())["versions"] == {
        "digits/1": fact["manifest_sha256"]
    }
    assert "fetching digits/1, " in result.stderr


@pytest.mark.parametrize("target", ["digits", "digits/2", "PATH"])
def test_fetch_takes_the_targets_of_the_other_commands(
    target: str, darkroom: Darkroom, repository: Path, data: Path
) -> None:
    named = target.replace("PATH", str(repository / "digits/2"))

    result = darkroom("models", "fetch", named, "--repository", str(repository), "--json")

    assert json.loads(result.stdout)[-1]["version"] == "digits/2"
    assert json.loads(result.stdout)[-1]["folder"].startswith(str(data))


@pytest.mark.usefixtures("data")
def test_fetch_repairs_what_has_changed_on_this_disk(darkroom: Darkroom) -> None:
    [fact] = json.loads(darkroom("models", "fetch", "digits/2", "--json").stdout)
    labels = Path(fact["folder"]) / "labels.txt"
    content = labels.read_bytes()
    labels.write_bytes(content[::-1])

    result = darkroom("models", "fetch", "digits/2")

    assert result.exit_code == 0
    assert labels.read_bytes() == content


@pytest.mark.usefixtures("data")
def test_what_cannot_be_fetched_is_told_with_the_others(darkroom: Darkroom) -> None:
    result = darkroom("models", "fetch", "digits/1", "digits/7", "--json")

    assert [fact["ok"] for fact in json.loads(result.stdout)] == [True, False]
    assert result.exit_code == 3
    assert "1 of 2 could not be fetched" in result.stderr


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_repository_may_be_a_url_whose_versions_are_fetched_first(
    command: str, darkroom: Darkroom, repository: Path
) -> None:
    with serving(repository) as web:
        result = darkroom("models", command, "digits/2", "--repository", web.url, "--json")

    [fact] = json.loads(result.stdout)
    assert result.exit_code == 0
    assert fact["ok"]
    assert "fetching digits/2" in result.stderr
    assert "GET /" not in web.asked


@pytest.mark.usefixtures("data")
def test_on_a_terminal_a_bar_shows_how_a_fetch_gets_on(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.models.for_people", lambda: True)

    result = darkroom("models", "fetch", "digits/2", "--json")

    assert json.loads(result.stdout)[0]["ok"]
    assert "20.4/20.4 kB" in result.stderr


def test_a_url_without_a_driver_is_a_wrong_setting(darkroom: Darkroom) -> None:
    result = darkroom("models", "inspect", "--repository", "lakefs://models")

    assert result.exit_code == 2
    assert "no driver for lakefs:// is installed" in result.stderr


def test_a_path_that_is_no_version_is_refused(darkroom: Darkroom, tmp_path: Path) -> None:
    result = darkroom("models", "inspect", str(tmp_path))

    assert result.exit_code == 1
    assert "is no model, version or folder" in result.stderr


def test_a_repository_without_versions_is_said_to_be_empty(
    darkroom: Darkroom, tmp_path: Path
) -> None:
    result = darkroom("models", "inspect", "--repository", str(tmp_path))

    assert result.exit_code == 1
    assert f"{tmp_path} holds no NAME/VERSION/manifest.yaml" in result.stderr
