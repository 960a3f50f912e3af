"""What is asked of redis-py, and its errors as sentences; the rest of the channel needs a Redis."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser

from worker.config_sections import ControlSettings
from worker.control.channel import client_options, complaint
from worker.errors import SettingsError

AWAY: list[tuple[BaseException, BaseException | None, str]] = [
    (TimeoutError(), None, "gives no answer in 2 s: "),
    (redis_errors.TimeoutError("Timeout reading"), None, "gives no answer in 2 s: "),
    (
        redis_errors.ConnectionError("Error 111 connecting to here:1."),
        ConnectionRefusedError(111, "Connect call failed ('::1', 1)"),
        "cannot be reached (Connection refused): ",
    ),
    (
        redis_errors.ConnectionError("Error -2 connecting to nowhere:1. Name not known."),
        OSError(-2, "Name not known"),
        "cannot be reached (Error -2 connecting to nowhere:1. Name not known): ",
    ),
    (
        redis_errors.ConnectionError("Connection closed by server."),
        None,
        "cannot be reached (Connection closed by server): ",
    ),
    (
        redis_errors.ConnectionError("[SSL] unknown (_ssl.c:1)"),
        ssl.SSLError(1, "[SSL] unknown (_ssl.c:1)"),
        "cannot be reached by TLS ([SSL] unknown (_ssl.c:1)): check control.ssl_cafile",
    ),
    (redis_errors.InvalidResponse("Protocol Error: b'H'"), None, "cannot be reached (Protocol"),
]

CLOSED = redis_errors.ConnectionError("Connection closed by server.")
NOBODY = ConnectionRefusedError(111, "Connect call failed")
HINTS = [
    (NOBODY, False, False),
    (NOBODY, True, True),
    (TimeoutError(), False, False),
    (TimeoutError(), True, True),
    (CLOSED, False, True),
    (redis_errors.InvalidResponse("Protocol Error: b'H'"), False, True),
    (ConnectionResetError(104, "Connection reset by peer"), False, True),
]

SCRIPT = "ERR Error running script (call to f_0): @user_script:4: @user_script: 4: "
REFUSALS = [
    ("NOAUTH Authentication required.", "NOAUTH Authentication required: set control.password"),
    ("WRONGPASS invalid pair", "WRONGPASS invalid pair: check control.username and "),
    ("ERR invalid password", "invalid password: check control.username and control.password"),
    ("LOADING Redis is loading", "LOADING Redis is loading: it has just been started"),
    ("READONLY You can't write", "READONLY You can't write: control.url must name the primary"),
    ("MASTERDOWN Link is down", "MASTERDOWN Link is down: control.url must name the primary"),
    ("OOM command not allowed", "OOM command not allowed: it has no memory left"),
    (f"{SCRIPT}-OOM not allowed", "OOM not allowed: it has no memory left"),
    (f"{SCRIPT}-READONLY You can't", "READONLY You can't: control.url must name the primary"),
    (
        f"{SCRIPT}The user executing the script can't run this command",
        "The user executing the script can't run this command: the ACL rules of this user lack",
    ),
    ("NOPERM this user has no", "NOPERM this user has no: the ACL rules of this user lack"),
    ("MISCONF Redis is configured", "MISCONF Redis is configured: it cannot save to its disk"),
    ("BUSY Redis is busy", "BUSY Redis is busy: a script of somebody else"),
    ("MOVED 1 here:1", "MOVED 1 here:1: control.url must name the node"),
    ("CLUSTERDOWN Hash slot", "CLUSTERDOWN Hash slot: its cluster is not whole"),
    ("ERR DB index is out of range", "DB index is out of range: control.url names a database"),
    ("WRONGTYPE Operation against", "WRONGTYPE Operation against: somebody else's value"),
    ("ERR the keys must be", "the keys must be"),
    ("ERR unknown command", "unknown command"),
]


@pytest.mark.parametrize(("error", "cause", "told"), AWAY, ids=lambda case: repr(case)[:40])
def test_a_redis_that_is_away_is_told(
    error: BaseException, cause: BaseException | None, told: str
) -> None:
    error.__context__ = cause
    assert complaint(error, 2.0).startswith(told)


@pytest.mark.parametrize(("error", "tls", "hint"), HINTS, ids=lambda case: repr(case)[:40])
def test_tls_is_hinted_at_only_where_it_may_be_the_reason(
    error: BaseException, *, tls: bool, hint: bool
) -> None:
    told = complaint(error, 2.0, tls=tls)
    assert ("TLS" in told or "ssl_certfile" in told) == hint
    assert "control.url" in told


def test_a_redis_that_has_answered_and_then_hangs_up_is_no_question_of_tls() -> None:
    assert "TLS" not in complaint(CLOSED, 2.0, met=True)


@pytest.mark.parametrize(("answered", "told"), REFUSALS, ids=lambda case: case[:20])
def test_a_redis_that_refuses_is_told_in_its_words_and_with_what_to_do(
    answered: str, told: str
) -> None:
    parser: Any = BaseParser  # its own types are partial
    error = parser.parse_error(answered)
    assert complaint(error, 2.0).startswith(f"refuses: {told}")


@pytest.mark.parametrize(
    ("url", "host", "port", "db"),
    [
        ("redis://here", "here", 6379, 0),
        ("redis://here/", "here", 6379, 0),
        ("redis://here:1/2", "here", 1, 2),
        ("redis://[::1]:7/0", "::1", 7, 0),
    ],
)
def test_the_url_names_host_port_and_database(url: str, host: str, port: int, db: int) -> None:
    options = client_options(ControlSettings(url=url), deadline_s=1.0)
    assert (options["host"], options["port"], options["db"]) == (host, port, db)
    assert "ssl" not in options


@pytest.mark.parametrize("port", ["x", "65536", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(SettingsError, match=rf"^control\.url: redis://here:{port}/0: "):
        client_options(ControlSettings(url=f"redis://here:{port}/0"), deadline_s=1.0)


def test_nothing_is_tried_twice_and_the_deadlines_are_ours() -> None:
    options = client_options(ControlSettings(url="redis://here"), deadline_s=1.5)
    assert options["retry"].get_retries() == 0
    assert options["socket_timeout"] is None


def test_user_and_password_are_passed_on() -> None:
    settings = ControlSettings(url="redis://here", username="me", password=SecretStr("secret"))
    options = client_options(settings, deadline_s=1.0)
    assert (options["username"], options["password"]) == ("me", "secret")


def test_tls_wants_a_certificate_that_is_trusted_and_the_hosts() -> None:
    settings = ControlSettings(url="rediss://here", ssl_cafile=Path("ca.pem"))
    options = client_options(settings, deadline_s=1.0)
    assert options["ssl"]
    assert (options["ssl_cert_reqs"], options["ssl_check_hostname"]) == ("required", True)
    assert (options["ssl_ca_certs"], options["ssl_certfile"]) == ("ca.pem", None)
