import pytest

from worker.errors import ChannelError
from worker.protocol.survey import Gpu, Survey, decode, encode

H100 = Gpu("GPU-1", "GPU-1", "H100", listed=True, compute_capability=(9, 0), temperature_c=40)


@pytest.mark.parametrize(
    "survey",
    [
        Survey(),
        Survey(cuda_problem="none", nvml_problem="none", onnxruntime="1.31", providers=("a", "b")),
        Survey((H100, Gpu("MIG-1", "GPU-2", "slice", problem="lost")), cpu="cpu-x86_64"),
    ],
)
def test_a_survey_is_read_as_it_was_written(survey: Survey) -> None:
    document = encode(survey)
    assert decode(document) == survey
    assert document.count(b"\n") == 1


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"gpus": [{}], "providers": []}',
        encode(Survey())[:-2] + b',"x":1}',
    ],
)
def test_what_is_no_survey_is_refused(document: bytes) -> None:
    with pytest.raises(ChannelError, match="a survey of devices that is none"):
        decode(document)
