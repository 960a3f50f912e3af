import json
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.conftest import Darkroom
from worker.config import load_settings


def test_what_is_shown_is_a_settings_file_with_the_origin_of_every_value(
    darkroom: Darkroom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "darkroom.yaml"
    file.write_text("kafka: {output_topic: out}")
    monkeypatch.setenv("DARKROOM_KAFKA__GROUP_ID", "from-env")

    shown = darkroom("config", "show", "--config", str(file)).stdout

    lines = {line.split(":")[0].strip(): line.rpartition("# ")[2] for line in shown.splitlines()}
    assert lines["group_id"] == "DARKROOM_KAFKA__GROUP_ID"
    assert lines["output_topic"] == f"{file}:1"
    assert lines["data_dir"] == "default"
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert load_settings(again).settings == load_settings(file).settings


def test_secrets_are_masked_in_both_forms(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("DARKROOM_KAFKA__SASL_MECHANISM", "PLAIN")
    monkeypatch.setenv("DARKROOM_KAFKA__SASL_USERNAME", "alice")
    monkeypatch.setenv("DARKROOM_KAFKA__SASL_PASSWORD", "horse")

    for shown in (darkroom("config", "show"), darkroom("config", "show", "--json")):
        assert shown.exit_code == 0
        assert "alice" in shown.output
        assert "horse" not in shown.output


def test_as_json_it_is_one_document(darkroom: Darkroom) -> None:
    document = json.loads(darkroom("config", "show", "--json").stdout)

    assert document["settings"]["kafka"]["input_topics"] == ["images"]
    assert document["origins"]["kafka.input_topics"] == "default"
    memory = document["memory"]
    assert memory["together_bytes"] == memory["worker_bytes"] + memory["engines_bytes"]["digits/1"]
    assert memory["max_loaded_bytes"] > memory["together_bytes"]


def test_check_tells_all_that_is_wrong_and_exits_with_2(darkroom: Darkroom, tmp_path: Path) -> None:
    file = tmp_path / "darkroom.yaml"
    file.write_text(yaml.safe_dump({"kafka": {"input_topics": ["predictions"], "acks": 0}}))

    result = darkroom("config", "check", "--config", str(file))

    assert result.exit_code == 2
    assert "2 problems" in result.stderr
    assert "kafka.acks" in result.stderr
    assert "predictions is read and written" in result.stderr


def test_check_says_that_settings_are_usable(darkroom: Darkroom) -> None:
    result = darkroom("config", "check")

    assert result.exit_code == 0
    assert "usable" in result.stdout


def test_memory_is_shown_as_a_sum_and_refused_where_it_is_not_there(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.inference.budget.memory_bytes", lambda: 1_000_000_000)

    shown, checked = darkroom("config", "show"), darkroom("config", "check")

    assert shown.exit_code == 0
    sums = [line.split() for line in shown.stdout.splitlines() if line.startswith("#  ")]
    assert [words[1] for words in sums[:3]] == ["worker", "digits/1", "together"]
    assert "of 1,000 MB that there are" in shown.stdout
    assert checked.exit_code == 2
    assert "has 1,000 MB: lower limits.image_max_pixels" in checked.stderr


def test_check_warns_of_engines_that_memory_is_too_small_for(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.inference.budget.memory_bytes", lambda: 2_000_000_000)

    checked = darkroom("config", "check")

    assert checked.exit_code == 0
    assert "But 3 engines may need" in checked.stdout
