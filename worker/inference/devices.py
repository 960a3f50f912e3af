"""Which GPUs engines are given: usable or why not, which first, and what the settings choose.

Pure but for `devices_of`, which asks for the survey that the rest judges.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from worker.config import environment
from worker.config_sections import EngineSettings
from worker.errors import DeviceError
from worker.inference.survey import driver_found, survey
from worker.protocol.survey import NO_DRIVER, Gpu, Survey

PROVIDER = "CUDAExecutionProvider"
"""What a GPU of this survey is used by."""
REQUIRE = frozenset({"require-gpu", "require-cuda", "require-tensorrt"})
"""Policies with which no worker starts without such a GPU, where its driver is installed."""
_WANT = REQUIRE | {"prefer-gpu"}
"""Those with which it is looked for."""


class DeviceChoice(NamedTuple):
    """A GPU, or a MIG instance, that engines are given."""

    uuid: str
    name: str


class Verdict(NamedTuple):
    """A GPU, and why engines must not be given it; None: it is usable."""

    gpu: Gpu
    problem: str | None
    hidden: bool = False
    """It is not ours by CUDA_VISIBLE_DEVICES: nobody wants it here."""


class Devices(NamedTuple):
    """What engines are given, best first, and why not more."""

    chosen: tuple[DeviceChoice, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    problem: str | None = None
    """Why none is chosen; None also where no GPU is wanted."""
    answered: bool = True
    """False: the driver hung, or brought a process down."""
    fallback: bool = False
    """A GPU is wanted and there, as far as its driver tells, and none is chosen."""

    @property
    def first(self) -> str | None:
        """UUID of the best one chosen."""
        return self.chosen[0].uuid if self.chosen else None

    def policy(self, wanted: str) -> str:
        """Return the policy for engines: none of them shall ask a driver that does not answer."""
        return wanted if self.answered else "cpu"


NO_DEVICES = Devices()


def on_gpu(policy: str) -> str:
    """Return the policy for engines that are given a GPU: it must be used, the CPU is another's."""
    return policy if policy in REQUIRE else "require-gpu"


def devices_of(
    engine: EngineSettings,
    *,
    found: Callable[[], bool] = driver_found,
    look: Callable[[], Survey] = survey,
) -> Devices:
    """Survey this machine and choose; blocks while the driver is asked.

    Where no driver is installed, or none wanted, nothing is started. Raises DeviceError as `choose`
    does.
    """
    asked = engine.policy in _WANT and found()
    seen = look() if asked else Survey(cuda_problem=NO_DRIVER)
    return choose(seen, engine, environment())


def choose(seen: Survey, engine: EngineSettings, environ: Mapping[str, str]) -> Devices:
    """Return what the settings choose of what was seen; nothing where the policy wants none.

    Raises DeviceError when `engine.devices` names what is not here, or when the policy requires a
    GPU and the driver here has none that is usable. Where there is no driver, that is for the
    engine to judge: other providers may know another GPU.
    """
    if engine.policy not in _WANT:
        return NO_DEVICES
    verdicts = judge(seen, engine, environ)
    usable = {verdict.gpu.uuid: verdict.gpu for verdict in verdicts if verdict.problem is None}
    match engine.devices:
        case "auto":
            wanted = tuple(usable)[:1]
        case "all":
            wanted = tuple(usable)
        case named:
            _refuse_unknown(named, verdicts, seen)
            verdicts = tuple(verdict for verdict in verdicts if verdict.gpu.uuid in named)
            wanted = tuple(uuid for uuid in dict.fromkeys(named) if uuid in usable)
    chosen = tuple(DeviceChoice(uuid, usable[uuid].name) for uuid in wanted)
    problem = None if chosen else _why_none(verdicts, seen, environ)
    if engine.policy in REQUIRE and problem not in {None, NO_DRIVER}:
        raise DeviceError(f"engine.policy is {engine.policy}, but no GPU is usable: {problem}")
    fallback = not chosen and (not seen.answered or any(not one.hidden for one in verdicts))
    return Devices(chosen, verdicts, problem, seen.answered, fallback)


def judge(seen: Survey, engine: EngineSettings, environ: Mapping[str, str]) -> tuple[Verdict, ...]:
    """Return a verdict on every GPU: the usable ones first, and of these the best."""
    hidden = _hidden(seen.gpus, environ.get("CUDA_VISIBLE_DEVICES"))
    verdicts = [
        Verdict(
            gpu,
            gpu.problem or hidden.get(gpu.uuid) or _problem(gpu, seen, engine),
            gpu.uuid in hidden,
        )
        for gpu in seen.gpus
    ]
    return tuple(sorted(verdicts, key=lambda one: (one.problem is not None, _rank(one.gpu))))


def _rank(gpu: Gpu) -> tuple[float | str, ...]:
    """Compute capability, then load, temperature, NUMA distance; what is unknown comes last."""
    major, minor = gpu.compute_capability or (0, 0)
    known = (gpu.utilization_pct, gpu.temperature_c, gpu.numa_distance)
    less = [inf if value is None else value for value in known]
    return (-major, -minor, *less, gpu.pci_bus_id or "", gpu.uuid)


def _problem(gpu: Gpu, seen: Survey, engine: EngineSettings) -> str | None:
    """Return the first reason why a GPU that nobody hides is not usable."""
    if seen.cuda_problem is not None:
        return seen.cuda_problem
    # CUDA lists one MIG instance to a process, whatever there is; each can be given by its UUID.
    if not gpu.listed and gpu.uuid == gpu.gpu:
        return "the CUDA driver does not list it"
    if PROVIDER not in seen.providers:
        return f"{_onnxruntime(seen)} has no {PROVIDER} (install onnxruntime-gpu)"
    return _unhealthy(gpu, engine)


def _onnxruntime(seen: Survey) -> str:
    return f"onnxruntime {seen.onnxruntime or '(cannot be imported)'}"


def _unhealthy(gpu: Gpu, engine: EngineSettings) -> str | None:
    if gpu.temperature_c is not None and gpu.temperature_c >= engine.max_temperature_c:
        limit = f"engine.max_temperature_c is {engine.max_temperature_c:g}"
        return f"it is at {gpu.temperature_c} °C ({limit})"
    if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
        used_pct = 100 * gpu.memory_used_bytes / gpu.memory_total_bytes
        if used_pct >= engine.max_memory_used_pct:
            limit = f"engine.max_memory_used_pct is {engine.max_memory_used_pct:g}"
            return f"{used_pct:.0f} % of its memory is in use ({limit})"
    return None


def _hidden(gpus: Sequence[Gpu], value: str | None) -> dict[str, str]:
    """Return why CUDA_VISIBLE_DEVICES keeps GPUs from us, by UUID; CUDA reads it word by word."""
    if value is None:
        return {}
    whole = list(dict.fromkeys(gpu.gpu for gpu in gpus))
    named: set[str] = set()
    why = f"CUDA_VISIBLE_DEVICES={value} hides it"
    for word in value.split(","):
        meant = _meant(word.strip(), gpus, whole)
        if len(meant) != 1:
            why += f" ({word.strip() or 'an empty word'} names no GPU: CUDA reads no further)"
            break
        named |= meant
    return {
        gpu.uuid: why for gpu in gpus if not gpu.listed and named.isdisjoint((gpu.uuid, gpu.gpu))
    }


def _meant(word: str, gpus: Sequence[Gpu], whole: Sequence[str]) -> set[str]:
    """Return the UUIDs that a word of CUDA_VISIBLE_DEVICES means: a number, or how one begins."""
    if word.isdecimal():
        return set(whole[int(word) : int(word) + 1])
    if not word.startswith(("GPU-", "MIG-")):
        return set()
    return {uuid for gpu in gpus for uuid in (gpu.uuid, gpu.gpu) if uuid.startswith(word)}


def _refuse_unknown(named: Sequence[str], verdicts: Sequence[Verdict], seen: Survey) -> None:
    here = {verdict.gpu.uuid: verdict.gpu.name for verdict in verdicts}
    if unknown := [uuid for uuid in named if uuid not in here]:
        there = ", ".join(f"{uuid} ({name})" for uuid, name in here.items())
        raise DeviceError(
            f"engine.devices names what is not here: {', '.join(unknown)}; there is "
            + (there or f"no GPU: {seen.cuda_problem}")
        )


def _why_none(verdicts: Sequence[Verdict], seen: Survey, environ: Mapping[str, str]) -> str:
    if verdicts:
        return "; ".join(f"{one.gpu.uuid} ({one.gpu.name}): {one.problem}" for one in verdicts)
    why = seen.cuda_problem or "there is no GPU"
    given = [
        f"{name}={environ[name]}"
        for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
        if name in environ and environ[name] != "all"
    ]
    return f"{why} ({', '.join(given)})" if given and why != NO_DRIVER else why
