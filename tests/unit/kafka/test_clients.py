"""What errors of aiokafka mean to us, and settings that no client can be made of."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiokafka import errors as kafka_errors
from aiokafka.abc import AbstractTokenProvider
from pydantic import SecretStr

from worker.config_sections import KafkaSettings
from worker.errors import BrokerRefused, BrokerUnavailable, DarkroomError, SettingsError
from worker.kafka.clients import calm, client_options, describe, within

MEANINGS: list[tuple[type[Exception], type[DarkroomError]]] = [
    (kafka_errors.AuthenticationFailedError, BrokerRefused),
    (kafka_errors.AuthenticationMethodNotSupported, BrokerRefused),
    (kafka_errors.SaslAuthenticationFailed, BrokerRefused),
    (kafka_errors.UnsupportedSaslMechanismError, BrokerRefused),
    (kafka_errors.TopicAuthorizationFailedError, BrokerRefused),
    (kafka_errors.GroupAuthorizationFailedError, BrokerRefused),
    (kafka_errors.ClusterAuthorizationFailedError, BrokerRefused),
    (kafka_errors.InvalidTopicError, BrokerRefused),
    (kafka_errors.InvalidSessionTimeoutError, BrokerRefused),
    (kafka_errors.KafkaConnectionError, BrokerUnavailable),
    (kafka_errors.RequestTimedOutError, BrokerUnavailable),
    (kafka_errors.NodeNotReadyError, BrokerUnavailable),
    (kafka_errors.IllegalStateError, BrokerUnavailable),
    (kafka_errors.UnknownError, BrokerUnavailable),
    (TimeoutError, BrokerUnavailable),
]


class Tokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    async def token(self) -> str:
        return "token"


def no_tokens() -> str:
    return "token"


@pytest.mark.parametrize(("raised", "meaning"), MEANINGS, ids=lambda case: case.__name__)
async def test_an_error_means_refused_or_not_there(
    raised: type[Exception], meaning: type[DarkroomError]
) -> None:
    async def fail() -> None:
        raise raised

    with pytest.raises(meaning, match=r"^joining: .*Kafka \(here:9092\)"):
        await within(5.0, "joining", fail(), brokers="here:9092")


async def test_a_bug_stays_a_bug() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await within(5.0, "joining", fail())


async def test_brokers_that_cannot_be_reached_are_told_with_what_to_check() -> None:
    async def fail() -> None:
        raise kafka_errors.KafkaConnectionError("Unable to bootstrap from [('here', 9092, 0)]")

    with pytest.raises(BrokerUnavailable, match=r"here:9092\).*kafka\.bootstrap_servers") as told:
        await within(5.0, "connecting", fail(), brokers="here:9092")
    assert "Unable to bootstrap" not in str(told.value)


async def test_what_never_answers_ends_at_our_deadline() -> None:
    with pytest.raises(BrokerUnavailable, match=r"no answer from Kafka in 0\.01 s"):
        await within(0.01, "joining", asyncio.get_running_loop().create_future())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TimeoutError(), "TimeoutError"),
        (OSError("two\nlines"), "OSError: two lines"),
        (kafka_errors.KafkaConnectionError("gone"), "KafkaConnectionError: gone"),
    ],
)
def test_an_error_is_described_in_one_line(error: Exception, text: str) -> None:
    assert describe(error) == text


def settings(**changes: Any) -> KafkaSettings:
    return KafkaSettings(**{"security_protocol": "SSL", **changes})


def test_a_client_is_given_what_the_settings_say() -> None:
    options = client_options(
        settings(
            security_protocol="SASL_SSL",
            sasl_mechanism="PLAIN",
            sasl_username="alice",
            sasl_password=SecretStr("secret"),
        )
    )
    assert isinstance(options.pop("ssl_context"), ssl.SSLContext)
    assert options == {
        "bootstrap_servers": "localhost:9092",
        "security_protocol": "SASL_SSL",
        "client_id": "darkroom",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "alice",
        "sasl_plain_password": "secret",
    }


@pytest.mark.parametrize("field", ["ssl_cafile", "ssl_certfile"])
@pytest.mark.parametrize("content", [None, "no certificate"], ids=["absent", "no PEM"])
def test_a_certificate_that_cannot_be_used_is_named_with_its_setting(
    tmp_path: Path, field: str, content: str | None
) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=rf"^kafka\.{field}: .*file\.pem"):
        client_options(settings(**{field: file}))


def test_tokens_come_from_the_factory_that_is_named() -> None:
    options = client_options(
        settings(
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="OAUTHBEARER",
            sasl_oauth=f"{__name__}:Tokens",
        )
    )
    assert isinstance(options["sasl_oauth_token_provider"], Tokens)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no.such.module:Tokens", "MODULE:FACTORY"),
        (f"{__name__}:nothing", "MODULE:FACTORY"),
        (__name__, "MODULE:FACTORY"),
        (":Tokens", "MODULE:FACTORY"),
        (f"{__name__}:MEANINGS", "MODULE:FACTORY"),
        (f"{__name__}:no_tokens", "returned a str"),
    ],
)
def test_a_factory_that_gives_no_tokens_is_refused(path: str, said: str) -> None:
    with pytest.raises(SettingsError, match=rf"kafka\.sasl_oauth: .*{said}"):
        client_options(
            settings(
                security_protocol="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", sasl_oauth=path
            )
        )


@pytest.mark.parametrize("answered", [True, False])
async def test_only_a_question_that_nobody_answers_takes_a_pause(
    answered: bool,  # noqa: FBT001 - a table
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    class Client:
        async def _metadata_update(self, cluster: Any, topics: Any) -> bool:
            del cluster, topics
            return answered

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    client = Client()
    calm(client)
    monkeypatch.setattr(asyncio, "sleep", pause)
    assert await client._metadata_update(None, None) is answered
    assert pauses == ([] if answered else [0.1])
