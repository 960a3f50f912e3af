"""The asynchronous stop between envelope and router, where a reference becomes bytes.

Answers for which references may be fetched: none, as there is no allow-list that names one.
"""

from urllib.parse import urlsplit

from worker.errors import RecordFault
from worker.types import Reason, Reference, Request


class Resolver:
    """Turns the reference of a request into the image's bytes."""

    async def resolve(self, request: Request) -> Request:
        """Give the request with its image in place.

        Raises RecordFault: `reference.denied`. The message leaves out the URL's path and query
        (they may be signed) and its user.
        """
        if not isinstance(request.image, Reference):
            return request
        where = _origin_of(request.image.url)
        raise RecordFault(
            Reason.REFERENCE_DENIED,
            f"references are not enabled: {where} is on no allow-list; publish the image's bytes",
        )


def _origin_of(url: str) -> str:
    """Give scheme and host of a URL that may be malformed."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    return f"{url.partition('://')[0]}://{host or ''}"
