import pytest

from tests.unit.test_config import problems
from worker.config import load_settings


def test_a_profile_is_filled_in_by_the_environment_too_and_settings_beat_it() -> None:
    environ = {"DARKROOM_BATCH__PROFILE": "latency", "DARKROOM_BATCH__SLO_MS": "40"}

    settings, origins = load_settings(environ=environ)

    assert (settings.batch.slo_ms, settings.batch.max_wait_ms) == (40.0, 1.0)
    assert origins["batch.slo_ms"] == "DARKROOM_BATCH__SLO_MS"
    assert origins["batch.max_wait_ms"] == "profile latency"


def test_the_profile_that_is_the_default_is_what_the_defaults_are() -> None:
    asked = load_settings(environ={"DARKROOM_BATCH__PROFILE": "balanced"}).settings

    assert asked == load_settings(environ={}).settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"BATCH__PROFILE": "fast"}, '"fast" given; expected one of latency, balanced, throughput'),
        ({"BATCH__SLO_MS": "0"}, "expected a number >= 1 and <= 60000"),
        (
            {"KAFKA__TOPIC_PRIORITIES": '{"images": "high"}'},
            "expected a map of names to numbers, each an integer >= 1 and <= 1000",
        ),
        (
            {"KAFKA__TOPIC_PRIORITIES": '{"images": 2, "image": 3}'},
            "kafka.input_topics (default): image: no input topic",
        ),
    ],
)
def test_wrong_settings_of_batches_and_priorities_are_told(
    given: dict[str, str], said: str
) -> None:
    assert said in problems(**{f"DARKROOM_{name}": text for name, text in given.items()})
