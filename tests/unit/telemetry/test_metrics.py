import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from worker.telemetry.metrics import Buckets, Metrics
from worker.telemetry.stages import Stages, Stop
from worker.types import Reason


def samples(metrics: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    found = [number for sample, has, number in samples(metrics) if (sample, has) == (name, labels)]
    return found[0] if found else None


def test_every_metric_of_our_own_starts_with_darkroom() -> None:
    libraries = ("process_", "python_info")

    names = {name for name, _, _ in samples(Metrics()) if not name.startswith(libraries)}

    assert {
        "darkroom_in_flight_records",
        "darkroom_in_flight_bytes",
        "darkroom_rebalances_total",
        "darkroom_ready",
        "darkroom_batch_rows_bucket",
        "darkroom_commit_seconds_count",
    } <= names
    assert all(name.startswith("darkroom_") for name in names)


def test_two_workers_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(), Metrics()

    first.dead_letters.labels(Reason.IMAGE_EMPTY).inc(3)

    assert value(first, "darkroom_dead_letters_total", reason="image.empty") == 3
    assert value(second, "darkroom_dead_letters_total", reason="image.empty") is None


def test_a_histogram_counts_values_up_to_and_including_its_bounds() -> None:
    metrics = Metrics()

    metrics.batch_rows.observe_many([1, 2, 3, 4, 600])

    counts = [value(metrics, "darkroom_batch_rows_bucket", le=le) for le in ("1.0", "2.0", "4.0")]
    assert counts == [1, 2, 4]
    assert value(metrics, "darkroom_batch_rows_bucket", le="+Inf") == 5
    assert value(metrics, "darkroom_batch_rows_count") == 5
    assert value(metrics, "darkroom_batch_rows_sum") == 610


@given(st.lists(st.floats(0, 100)))
def test_observing_many_is_observing_each(values: list[float]) -> None:
    one_by_one, together = Buckets((0.1, 1.0, 10.0)), Buckets((0.1, 1.0, 10.0))

    for number in values:
        one_by_one.observe(number)
    together.observe_many(values)

    counts, total = together.snapshot()
    assert counts == one_by_one.snapshot()[0]
    assert total == pytest.approx(one_by_one.snapshot()[1])
    assert dict(counts)["1.0"] == sum(number <= 1.0 for number in values)
    assert math.isclose(counts[-1][1], len(values))


def test_stages_are_told_apart_by_their_stop() -> None:
    metrics = Metrics()
    stages = Stages(metrics)

    stages.observe(Stop.DECODE, [0.002, 0.003])
    stages.observe(Stop.DELIVER, [])

    assert len(Stop) == 8
    assert value(metrics, "darkroom_stage_seconds_count", stop="decode") == 2
    assert value(metrics, "darkroom_stage_seconds_sum", stop="decode") == pytest.approx(0.005)
    assert value(metrics, "darkroom_stage_seconds_count", stop="deliver") == 0


def test_an_engine_is_shown_in_one_state_and_forgotten_when_it_is_gone() -> None:
    metrics = Metrics()

    def states() -> list[str]:
        return [
            labels["state"]
            for name, labels, _ in samples(metrics)
            if name == "darkroom_engine_state"
        ]

    metrics.set_engine_state("digits/1", "loading")
    metrics.set_engine_state("digits/1", "ready")
    assert states() == ["ready"]

    metrics.set_engine_state("digits/1", None)
    metrics.set_engine_state("digits/1", None)
    assert states() == []


def test_what_batches_take_is_shown_by_size_and_gone_with_the_version() -> None:
    metrics = Metrics()
    batches = metrics.batches

    batches.ran("digits/1", 4, 0.010, cap=8)
    batches.ran("digits/1", 4, 0.020, cap=16)
    batches.ran("digits/1", 23, 0.1, cap=32)
    batches.ran("digits/1", 32, 0.2, cap=32)

    name = "darkroom_batch_service_seconds"
    assert value(metrics, name, model="digits/1", rows="4") == pytest.approx(0.011)
    assert value(metrics, name, model="digits/1", rows="23") is None, "labels are bounded"
    assert value(metrics, name, model="digits/1", rows="32") == pytest.approx(0.2)
    assert value(metrics, "darkroom_batch_cap_rows", model="digits/1") == 32

    metrics.forget_engine("digits", "1")
    metrics.forget_engine("digits", "1")

    assert value(metrics, name, model="digits/1", rows="4") is None
    assert value(metrics, "darkroom_batch_cap_rows", model="digits/1") is None
