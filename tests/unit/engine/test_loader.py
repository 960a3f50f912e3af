from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.contract.engines import LIMITS, load
from tests.unit.engine import graphs
from worker.engine import session
from worker.engine.costs import Costs, Took
from worker.engine.devices import cuda_problem
from worker.engine.loader import load_model, loaded
from worker.engine.model import Array, Model
from worker.engine.providers import CUDA
from worker.engine.session import Session
from worker.errors import DeviceError, ModelError, SettingsError
from worker.types import Limits


def loaded_from(tmp_path: Path, graph: onnx.ModelProto | None = None, **kwargs: Any) -> Model:
    limits = kwargs.pop("limits", LIMITS)
    folder = tmp_path / "1"
    return load_model(load(folder, graphs.version(folder, graph, **kwargs), limits=limits))


def edited(*path: Any, value: Any) -> dict[str, Any]:
    """Return the manifest with one member replaced."""
    document = graphs.manifest()
    at: Any = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


def renamed_input() -> dict[str, Any]:
    inputs = graphs.manifest()["inputs"]
    return graphs.manifest(inputs={"picture": inputs["image"]})


def two_inputs() -> onnx.ModelProto:
    graph = graphs.brightness()
    graph.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    graph.graph.node.append(helper.make_node("Identity", ["mask"], ["seen"]))
    return graph


def sequence_output() -> onnx.ModelProto:
    graph = graphs.brightness()
    graph.graph.node.append(helper.make_node("SequenceConstruct", ["scores"], ["listed"]))
    graph.graph.output.append(
        helper.make_tensor_sequence_value_info("listed", TensorProto.FLOAT, None)
    )
    return graph


def typed_input(kind: int, shape: list[Any]) -> onnx.ModelProto:
    return graphs.model(
        [helper.make_node("Identity", ["image"], ["scores"])],
        inputs=[("image", kind, shape)],
        outputs=[("scores", kind, shape)],
        constants={},
    )


HEAD = "heads.light"


@pytest.mark.parametrize(
    ("graph", "document", "labels", "field", "message"),
    [
        (None, renamed_input(), None, "inputs.picture", "no such input; it has image"),
        (two_inputs(), None, None, "inputs.image", "also wants mask"),
        (
            typed_input(TensorProto.INT64, ["N", 1, 8, 8]),
            None,
            None,
            "inputs.image",
            "is tensor.int64. in the graph",
        ),
        (
            typed_input(TensorProto.FLOAT, ["N", 1, "H", "W"]),
            None,
            None,
            "inputs.image",
            "only its first axis may be free",
        ),
        (
            typed_input(TensorProto.FLOAT, ["N", 5, 8, 8]),
            None,
            None,
            "inputs.image",
            "neither 1 nor 3 channels",
        ),
        (
            typed_input(TensorProto.FLOAT, ["N", 8]),
            None,
            None,
            "inputs.image",
            "no batch of images",
        ),
        (
            typed_input(TensorProto.FLOAT, ["N", 8, 8]),
            None,
            None,
            "inputs.image",
            "no batch of images",
        ),
        (
            None,
            edited("heads", "light", "output", value="logits"),
            None,
            f"{HEAD}.output",
            "no output 'logits'; it has scores",
        ),
        (
            sequence_output(),
            edited("heads", "light", "output", value="listed"),
            None,
            f"{HEAD}.output",
            "no tensor of scores",
        ),
        (None, None, "dark\nbright\nblue", f"{HEAD}.labels", "3 labels, 'scores' in the graph 2"),
        (
            graphs.brightness(batch=1),
            graphs.manifest(batch={"max_size": 8}),
            None,
            "batch.max_size",
            "fixes its first axis to 1",
        ),
        (
            graphs.brightness(side=9),
            None,
            None,
            "inputs.image.preprocess",
            "",
        ),
        (
            None,
            edited("golden", 0, "expect", value={"label": "dark", "score": 0.9}),
            None,
            r"golden\[0\]",
            "the model says 'bright' 0.9804, expected 'dark' 0.9000",
        ),
        (
            None,
            edited("golden", 0, "expect", "score", value=0.9),
            None,
            r"golden\[0\]",
            "expected 'bright' 0.9000",
        ),
        (
            None,
            edited("heads", "light", "threshold", value=0.99),
            None,
            r"golden\[0\]",
            "nothing is above the threshold",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_its_graph_is_refused_by_its_field(
    tmp_path: Path,
    graph: onnx.ModelProto | None,
    document: dict[str, Any] | None,
    labels: str | None,
    field: str,
    message: str,
) -> None:
    extra = {} if labels is None else {"labels": labels}
    with pytest.raises(ModelError, match=rf"manifest\.yaml: {field}.*: .*{message}") as caught:
        loaded_from(tmp_path, graph, document=document, **extra)
    assert caught.value.file == str(tmp_path / "1" / "manifest.yaml")
    assert caught.value.field is not None


@pytest.mark.parametrize("labels", ["dark\n\nbright", "\ndark", "dark\nbright\n\n"])
def test_labels_with_an_empty_line_are_refused_by_file_and_line(
    tmp_path: Path, labels: str
) -> None:
    with pytest.raises(ModelError, match=r"labels\.txt: line \d is empty"):
        loaded_from(tmp_path, labels=labels)


def test_files_are_verified_before_they_are_opened(tmp_path: Path) -> None:
    sha256 = graphs.version(tmp_path / "1")
    (tmp_path / "1" / "model.onnx").write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"model\.onnx: has sha256"):
        load_model(load(tmp_path / "1", sha256))


def test_a_manifest_that_changed_since_the_worker_read_it_is_refused(tmp_path: Path) -> None:
    graphs.version(tmp_path / "1")
    with pytest.raises(ModelError, match=r"manifest\.yaml: has sha256 .* the worker read ffff"):
        load_model(load(tmp_path / "1", "ffff"))


def test_a_file_that_is_no_graph_is_one_sentence(tmp_path: Path) -> None:
    sha256 = graphs.version(tmp_path / "1", b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError) as caught:
        load_model(load(tmp_path / "1", sha256))
    assert str(caught.value) == (
        f"{tmp_path / '1' / 'model.onnx'}: ONNX Runtime cannot open it: Protobuf parsing failed."
    )


def test_a_graph_whose_metadata_is_no_text_is_refused_by_its_file(tmp_path: Path) -> None:
    graph = graphs.brightness()
    graph.metadata_props.add(key="author", value="????")
    sha256 = graphs.version(tmp_path / "1", graph.SerializeToString().replace(b"????", b"\xff" * 4))
    with pytest.raises(ModelError, match=r"model\.onnx: .*utf-8"):
        load_model(load(tmp_path / "1", sha256))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intra_op_num_thread": "2"}, r"engine\.session\.intra_op_num_thread: not an option"),
        (
            {"intra_op_num_threads": "two"},
            r"engine\.session\.intra_op_num_threads: cannot be 'two'",
        ),
        ({"execution_mode": "FAST"}, r"engine\.session\.execution_mode: cannot be 'FAST'"),
        ({"optimized_model_filepath": "/tmp/x"}, "optimized_model_filepath: not an option"),
        ({"a": "1", "execution_mode": "b"}, r"session\.a: not an option.*\n.*mode: cannot be 'b'"),
    ],
)
def test_a_session_option_that_cannot_be_met_is_refused_by_name(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    sha256 = graphs.version(tmp_path / "1")
    with pytest.raises(SettingsError, match=message):
        load_model(load(tmp_path / "1", sha256, session=options))


@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a GPU that can be used")
def test_without_a_gpu_the_policy_decides_between_the_cpu_and_a_refusal(tmp_path: Path) -> None:
    asked = load(tmp_path / "1", graphs.version(tmp_path / "1"))
    stamp = load_model(asked._replace(policy="prefer-gpu")).session.stamp
    assert (stamp.provider, stamp.fallback) == ("CPUExecutionProvider", False)
    with pytest.raises(DeviceError, match="require-gpu, but"):
        load_model(asked._replace(policy="require-gpu"))


@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a GPU that can be used")
def test_a_session_that_onnx_runtime_moved_to_the_cpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load(tmp_path / "1", graphs.version(tmp_path / "1"), policy="require-gpu")
    monkeypatch.setattr(session, "cuda_problem", lambda: None)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA])
    with pytest.raises(DeviceError, match=CUDA):
        load_model(asked)
    fallen = load_model(asked._replace(policy="prefer-gpu")).session.stamp
    assert (fallen.provider, fallen.fallback) == ("CPUExecutionProvider", True)


def test_predictions_are_stamped_with_the_precision_that_the_graph_declares(tmp_path: Path) -> None:
    graph = graphs.brightness()
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for constant in graph.graph.initializer:
        halves = numpy_helper.to_array(constant).astype(np.float16)
        constant.CopyFrom(numpy_helper.from_array(halves, constant.name))
    document = edited("inputs", "image", "preprocess", 4, value={"cast": {"to": "float16"}})
    assert loaded_from(tmp_path / "full").session.stamp.precision == "fp32"
    half = loaded_from(tmp_path / "half", graph, document=document)
    assert half.session.stamp.precision == "fp16"


def test_session_options_go_to_onnx_runtime_under_its_own_names(tmp_path: Path) -> None:
    sha256 = graphs.version(tmp_path / "1")
    options = {"graph_optimization_level": "ORT_DISABLE_ALL", "session.set_denormal_as_zero": "1"}
    load_model(load(tmp_path / "1", sha256, session=options))


@pytest.mark.parametrize(
    ("batch", "document", "limits", "cap", "sizes"),
    [
        ("N", None, LIMITS, 4, [1, 2, 3, 4]),
        ("N", graphs.manifest(batch={"max_size": 2}), LIMITS, 2, [1, 2]),
        ("N", None, LIMITS._replace(max_bytes=3 * 256), 3, [1, 2, 3]),
        ("N", None, LIMITS._replace(max_bytes=10), 1, [1]),
        (1, None, LIMITS, 1, [1]),
        (3, None, LIMITS, 3, [3]),
        (3, None, LIMITS._replace(max_size=2), 2, [3]),
    ],
)
def test_the_cap_is_the_least_that_anybody_allows(
    tmp_path: Path,
    batch: int | str,
    document: dict[str, Any] | None,
    limits: Limits,
    cap: int,
    sizes: list[int],
) -> None:
    model = loaded_from(tmp_path, graphs.brightness(batch=batch), document=document, limits=limits)
    answer = loaded(model, limits, load_ms=1.0)
    assert answer.max_size == model.cap(limits) == cap
    assert list(answer.service_ms) == [str(size) for size in sizes]
    assert answer.signature["inputs"] == [
        {"name": "image", "dtype": "tensor(float)", "shape": (batch, 1, 8, 8)}
    ]


@pytest.mark.parametrize("batch", ["N", 3])
def test_a_row_gets_the_same_answer_in_every_batch(tmp_path: Path, batch: int | str) -> None:
    model = loaded_from(tmp_path, graphs.brightness(batch=batch))
    rows = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    [together] = model.run(rows)
    for at in range(3):
        [alone] = model.run(rows[at : at + 1])
        np.testing.assert_allclose(alone[0], together[at], rtol=1e-6)


def test_a_model_whose_rows_change_each_other_is_run_row_by_row(tmp_path: Path) -> None:
    model = loaded_from(tmp_path, graphs.mixing())
    assert model.rows_mix
    assert model.cap(LIMITS) == 1
    assert loaded(model, LIMITS, load_ms=1.0).signature["rows_mix"] is True


@pytest.mark.parametrize(
    ("batch", "max_size", "sizes"),
    [
        ("N", 3, [1, 2, 3]),
        ("N", 16, [1, 2, 4, 8, 16]),
        ("N", 100, [1, 2, 4, 8, 16, 32, 64, 100]),
        (3, 16, [3]),
    ],
)
def test_powers_of_two_and_the_largest_batch_are_run_before_the_first_record(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int | str,
    max_size: int,
    sizes: list[int],
) -> None:
    ran: set[int] = set()
    run = Session.run

    def seen(self: Session, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        ran.update(map(len, feeds.values()))
        return run(self, outputs, feeds)

    monkeypatch.setattr(Session, "run", seen)
    limits = LIMITS._replace(max_size=max_size)
    model = loaded_from(tmp_path, graphs.brightness(batch=batch), limits=limits)
    assert sorted(ran) == sizes
    assert set(sizes) <= model.costs.times_s.keys()


def test_sizes_are_chosen_by_what_they_cost_where_none_is_asked_for(tmp_path: Path) -> None:
    limits = LIMITS._replace(max_size=64, adaptive=True)
    model = loaded_from(tmp_path, limits=limits)
    answer = loaded(model, limits, load_ms=1.0)
    assert 1 <= answer.max_size <= model.costs.largest <= 64
    assert all(ms > 0 for ms in answer.service_ms.values())


def test_where_only_some_sizes_can_be_run_the_rows_beyond_are_padding(tmp_path: Path) -> None:
    model = loaded_from(tmp_path)
    costs = Costs(exact=False)
    for size in (1, 2, 4):
        costs.seed(size, Took(0.001, 0.001))
    rows = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    [whole], [padded] = model.run(rows), replace(model, costs=costs).run(rows)
    assert padded.shape == whole.shape
    np.testing.assert_allclose(padded, whole, rtol=1e-6)


def test_golden_samples_are_held_to_the_thresholds_of_the_manifest(tmp_path: Path) -> None:
    limits = LIMITS._replace(thresholds={"light": 0.99, "no such head": 0.5})
    model = loaded_from(tmp_path, limits=limits)
    rows = np.full((1, 1, 8, 8), graphs.BRIGHT / 255, np.float32)
    assert model.predictions(model.run(rows)) == [b'{"light":[]}']
    model.heads = model.compile_heads({"light": 0.9})
    [reading] = model.predictions(model.run(rows))
    assert isinstance(reading, bytes)
    assert [said["label"] for said in orjson.loads(reading)["light"]] == ["bright"]
    model.heads = model.compile_heads({})
    [reading] = model.predictions(model.run(rows))
    assert isinstance(reading, bytes)
    assert len(orjson.loads(reading)["light"]) == 2
