"""How every Kafka client of this process reaches the brokers, and what their errors mean to us."""

import asyncio
import importlib
import ssl
from collections.abc import Awaitable
from typing import Any, TypeVar

from aiokafka import errors as kafka_errors
from aiokafka.abc import AbstractTokenProvider

from worker.config_sections import KafkaSettings
from worker.errors import BrokerRefused, BrokerUnavailable, SettingsError

T = TypeVar("T")

_METADATA_BACKOFF_S = 0.1
REFUSALS = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.AuthenticationMethodNotSupported,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidSessionTimeoutError,
)
"""What says that the brokers answer and do not let us."""


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the keyword arguments that every aiokafka client shares."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "security_protocol": settings.security_protocol,
        "client_id": "darkroom",
    }
    if settings.security_protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.sasl_mechanism is not None:
        options["sasl_mechanism"] = settings.sasl_mechanism
    if settings.sasl_username is not None:
        options["sasl_plain_username"] = settings.sasl_username
    if settings.sasl_password is not None:
        options["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    if settings.sasl_oauth is not None:
        options["sasl_oauth_token_provider"] = _token_provider(settings.sasl_oauth)
    return options


def calm(client: Any) -> None:
    """Let every failed question for metadata take a pause, before the client is started.

    aiokafka 0.14 asks again at once while a partition's leader is unknown: when the broker that
    said so then goes away, it spins some 2,000 times a second and starves the event loop.
    """
    ask = client._metadata_update  # noqa: SLF001 - nothing public stands between its loops and this

    async def ask_calmly(cluster: Any, topics: Any) -> bool:
        answered: bool = await ask(cluster, topics)
        if not answered:
            await asyncio.sleep(_METADATA_BACKOFF_S)
        return answered

    client._metadata_update = ask_calmly  # noqa: SLF001 - see above


async def within(
    seconds: float, what: str, awaitable: Awaitable[T], *, brokers: str | None = None
) -> T:
    """Await something of aiokafka under our own deadline: its own waits may never end.

    Raises BrokerRefused when the brokers say no, BrokerUnavailable when they do not answer.
    """
    where = f" ({brokers})" if brokers else ""
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError as error:
        raise BrokerUnavailable(f"{what}: no answer from Kafka{where} in {seconds:g} s") from error
    except REFUSALS as error:
        raise BrokerRefused(f"{what}: Kafka{where} refuses: {describe(error)}") from error
    except kafka_errors.KafkaConnectionError as error:
        if "bootstrap" not in str(error):  # while connected, its words say more
            raise BrokerUnavailable(f"{what}: Kafka{where}: {describe(error)}") from error
        raise BrokerUnavailable(
            f"{what}: no broker can be reached{where}: does Kafka run there, and are "
            "kafka.bootstrap_servers and kafka.security_protocol right?"
        ) from error
    except kafka_errors.KafkaError as error:
        raise BrokerUnavailable(f"{what}: Kafka{where}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return an error of aiokafka as one line: its name, and its words if it has any."""
    words = " ".join(str(error).split())
    name = type(error).__name__
    return words if words.startswith(name) else f"{name}: {words}" if words else name


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ssl_cafile)
    except OSError as error:  # an SSLError is one too
        raise SettingsError(
            f"kafka.ssl_cafile: {settings.ssl_cafile} cannot be used: {error}"
        ) from error
    if settings.ssl_certfile is None:
        return context
    password = settings.ssl_password
    # Without any password OpenSSL would ask the terminal for one, and wait.
    secret = password.get_secret_value() if password is not None else ""
    try:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, lambda: secret)
    except OSError as error:
        key = settings.ssl_keyfile or "in the same file"
        raise SettingsError(
            f"kafka.ssl_certfile: {settings.ssl_certfile} cannot be used with its key ({key}; "
            f"kafka.ssl_keyfile, kafka.ssl_password): {error}"
        ) from error
    return context


def _token_provider(path: str) -> AbstractTokenProvider:
    module, _, factory = path.partition(":")
    try:
        provider = getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"kafka.sasl_oauth: {path!r} is not MODULE:FACTORY ({error})"
        ) from error
    if not isinstance(provider, AbstractTokenProvider):
        raise SettingsError(
            f"kafka.sasl_oauth: {path!r} returned a {type(provider).__name__}, "
            "not an aiokafka AbstractTokenProvider"
        )
    return provider
