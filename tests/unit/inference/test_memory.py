import pytest

from worker.config_sections import (
    BatchSettings,
    EngineSettings,
    LimitsSettings,
    ModelsSettings,
    Settings,
)
from worker.errors import SettingsError
from worker.inference import budget
from worker.inference.budget import Share
from worker.inference.memory import (
    ENGINE_BYTES,
    PER_FILE_BYTE,
    Footprint,
    Memory,
    engine_bytes,
    memory_of,
)
from worker.protocol.page import RUN_LANES
from worker.types import Limits, ModelRef

MB = 1_000_000
A, B = ModelRef("a", "1"), ModelRef("b", "1")
LIMITS = Limits(16, 1, 5.0, 64 * MB, 1, 1)
SHARE = Share(lanes=2, decode_bytes=800 * MB)


@pytest.mark.parametrize(
    ("version", "rows"),
    [
        (Footprint(10 * MB, MB), 16),
        (Footprint(10 * MB, MB, max_size=4), 4),
        (Footprint(10 * MB, 8 * MB), 8),
        (Footprint(10 * MB, 100 * MB), 1),
    ],
)
def test_an_engine_needs_its_process_its_model_its_slabs_and_what_it_decodes(
    version: Footprint, rows: int
) -> None:
    slabs_bytes = 3 * rows * (version.row_bytes or 0)
    model_bytes = PER_FILE_BYTE * 10 * MB
    expected = ENGINE_BYTES + model_bytes + slabs_bytes + 800 * MB
    assert engine_bytes(SHARE, LIMITS, version) == expected


def test_rows_of_which_nothing_is_known_are_bounded_by_the_bytes_of_a_batch() -> None:
    assert engine_bytes(SHARE, LIMITS, Footprint()) == ENGINE_BYTES + 3 * 64 * MB + 800 * MB


def test_every_active_version_has_an_engine_and_the_worker_what_is_in_flight() -> None:
    settings = Settings(
        engine=EngineSettings(lanes=2, instances_per_device=1),
        batch=BatchSettings(max_size=8),
        limits=LimitsSettings(image_max_pixels=50_000_000, in_flight_bytes=100 * MB),
    )
    one = memory_of(settings, {A: Footprint(0, MB)})
    assert one.engines == {A: ENGINE_BYTES + 3 * 8 * MB + 800 * MB}
    assert one.worker_bytes == (80 << 20) + 200 * MB
    two = memory_of(settings, {A: Footprint(0, MB), B: Footprint(0, MB)})
    assert two.engines == dict.fromkeys((A, B), ENGINE_BYTES + 2 * 8 * MB + 800 * MB)


def test_the_sum_has_the_largest_that_are_loaded_at_a_time() -> None:
    memory = Memory(100, {A: 10, B: 30}, max_loaded=3, limit_bytes=1000)
    assert (memory.together_bytes, memory.most_bytes) == (140, 170)
    memory = memory._replace(max_loaded=1)
    assert (memory.together_bytes, memory.most_bytes) == (130, 130)


def test_what_cannot_fit_is_refused_with_the_settings_to_lower() -> None:
    memory = Memory(100 * MB, {A: 400 * MB}, max_loaded=1, limit_bytes=500 * MB)
    assert memory.check() is None
    with pytest.raises(SettingsError, match=r"\(a/1\) may need 500 MB.* 499 MB") as refused:
        memory._replace(limit_bytes=499 * MB).check()
    named = ("limits.image_max_pixels", "limits.in_flight_bytes", "batch.max_bytes")
    assert all(name in str(refused.value) for name in named)


def test_what_fits_now_and_not_with_all_engines_is_warned_of() -> None:
    memory = Memory(100 * MB, {A: 400 * MB}, max_loaded=2, limit_bytes=899 * MB)
    warning = memory.check()
    assert warning is not None
    assert warning.startswith("2 engines may need 900 MB")
    assert "models.max_loaded" in warning


def test_settings_of_which_no_sum_can_be_made_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"limits\.decode_bytes"):
        memory_of(Settings(limits=LimitsSettings(decode_bytes=1)), {})


def test_models_that_are_more_than_engines_share_what_there_is_among_those() -> None:
    settings = Settings(
        engine=EngineSettings(lanes=2, instances_per_device=1),
        models=ModelsSettings(max_loaded=1),
        batch=BatchSettings(max_size=16),
    )
    both = memory_of(settings, {A: Footprint(0, MB), B: Footprint(0, MB)})
    assert both.engines[A] == both.engines[B] == ENGINE_BYTES + 3 * 16 * MB + 800 * MB


def test_every_instance_of_a_version_counts() -> None:
    lanes = EngineSettings(lanes=2, instances_per_device=1)
    batch = BatchSettings(max_size=16)
    two = lanes.model_copy(update={"instances_per_device": 2})
    footprint = {A: Footprint(100 * MB, MB)}
    one = memory_of(Settings(engine=lanes, batch=batch), footprint).engines[A]
    both = memory_of(Settings(engine=two, batch=batch), footprint).engines[A]
    assert both >= one + ENGINE_BYTES + 300 * MB


def test_left_to_itself_a_version_has_two_engines_where_memory_has_room_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(engine=EngineSettings(lanes=2), models=ModelsSettings(max_loaded=2))
    footprint = {A: Footprint(100 * MB, MB)}
    monkeypatch.setattr(budget, "memory_bytes", lambda: 1 << 40)
    plenty = memory_of(settings, footprint)
    assert plenty.instances is None
    monkeypatch.setattr(budget, "memory_bytes", lambda: plenty.most_bytes - 1)
    scarce = memory_of(settings, footprint)
    assert scarce.instances == 1
    assert scarce.engines[A] < plenty.engines[A]


@pytest.mark.parametrize("policy", ["require-gpu", "require-openvino"])
def test_an_accelerator_that_was_not_chosen_by_its_uuid_gets_one_engine(policy: str) -> None:
    engine = Settings.model_validate({"engine": {"lanes": 2, "policy": policy}})
    assert memory_of(engine, {}).instances == 1


@pytest.mark.parametrize(
    ("engine", "slabs"),
    [
        ({}, 3),
        ({"staging": "always"}, 5),
        ({"policy": "require-gpu"}, 5),
        ({"policy": "require-gpu", "staging": "never"}, 3),
    ],
    ids=str,
)
def test_lanes_that_only_run_have_slabs_too(engine: dict[str, str], slabs: int) -> None:
    given = {"lanes": 2, "instances_per_device": 1, **engine}
    settings = Settings.model_validate({"engine": given, "batch": {"max_size": 8}})
    one, two = (memory_of(settings, {A: Footprint(0, size)}).engines[A] for size in (MB, 2 * MB))
    assert two - one == slabs * 8 * MB


@pytest.mark.parametrize(
    ("policy", "staging", "counted"),
    [
        ("require-gpu", "auto", True),
        ("cpu", "always", True),
        ("cpu", "auto", False),
        ("prefer-gpu", "auto", False),
        ("require-gpu", "never", False),
        ("require-openvino", "auto", False),
    ],
)
def test_where_a_graph_is_folded_the_peak_of_that_counts_if_it_is_the_larger(
    policy: str, staging: str, *, counted: bool
) -> None:
    def needed(policy: str, staging: str, files_mb: int) -> int:
        engine = {"lanes": 1, "policy": policy, "staging": staging, "instances_per_device": 1}
        settings = Settings.model_validate({"engine": engine, "batch": {"max_size": 8}})
        return memory_of(settings, {A: Footprint(files_mb * MB, 1)}).engines[A]

    more = RUN_LANES * 8 if counted else 0
    assert needed(policy, staging, 1) == needed("cpu", "never", 1) + more, "decoding needs more"
    plain = needed("cpu", "never", 1000)
    assert needed(policy, staging, 1000) == (ENGINE_BYTES + 8000 * MB if counted else plain)
