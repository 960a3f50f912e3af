import pytest

from tests.unit.kafka.records import record, request
from worker.errors import RecordFault
from worker.kafka.resolve import Resolver
from worker.types import Reason, Reference


async def test_an_image_that_is_there_passes() -> None:
    asked = request(record(b"\xff\xd8"))
    assert await Resolver().resolve(asked) is asked


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "https://user:secret@example.org:8443/scans/7.png?signature=secret",
            "https://example.org",
        ),
        ("file:///etc/passwd-secret", "file://"),
        ("s3://[secret", "s3://"),
    ],
)
async def test_a_reference_is_denied_without_telling_secrets(url: str, shown: str) -> None:
    with pytest.raises(RecordFault) as caught:
        await Resolver().resolve(request(record(b""), image=Reference(url, None)))
    assert caught.value.reason is Reason.REFERENCE_DENIED
    assert f"references are not enabled: {shown} is on no allow-list" in str(caught.value)
    assert "secret" not in str(caught.value)
