"""`darkroom devices`: what this machine has, what is usable of it, and what a worker would take."""

import platform
from collections.abc import Iterator
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from worker.cli.options import Config, Json
from worker.cli.terminal import say, write, write_json

if TYPE_CHECKING:
    from worker.config_sections import Settings
    from worker.inference.devices import Devices, Verdict
    from worker.protocol.survey import Survey

EXAMPLE = "Example: darkroom devices --json"


def devices(*, config: Config = None, as_json: Json = False) -> None:
    """Show the devices found, which are usable and why not the rest, and what a worker would take.

    Exit 4 where a worker with these settings would refuse to start.
    """
    from worker.config import environment, load_settings
    from worker.inference.devices import judge
    from worker.inference.survey import survey

    settings = load_settings(config).settings
    seen = survey()
    verdicts = judge(seen, settings.engine, environment())
    chosen = _chosen(seen, settings)
    facts = {
        "cpu": _cpu(seen),
        "gpus": [_gpu(verdict) for verdict in verdicts],
        "cuda_problem": seen.cuda_problem,
        "nvml_problem": seen.nvml_problem,
        "onnxruntime": {"version": seen.onnxruntime, "providers": seen.providers},
        "chosen": chosen,
    }
    if as_json:
        write_json(facts)
    else:
        write("\n".join(_lines(facts)))
    if chosen["refused"]:
        say(f"darkroom: {chosen['refused']}")
        raise typer.Exit(4)


def _chosen(seen: "Survey", settings: "Settings") -> dict[str, Any]:
    """Return what a worker would take; `refused` says why it would not start, if it would not."""
    from worker.config import environment
    from worker.errors import DeviceError
    from worker.inference.budget import budget_of
    from worker.inference.devices import NO_DEVICES, choose

    engine, provider, refused, taken = settings.engine, None, None, NO_DEVICES
    try:
        taken = choose(seen, engine, environment())
        provider = _provider(seen, taken, settings)
    except DeviceError as error:
        refused = str(error)
    uuids = [device.uuid for device in taken.chosen]
    return {
        "policy": engine.policy,
        "devices": [] if refused else uuids or [seen.cpu],
        "provider": provider,
        "lanes": budget_of(settings).lanes,
        "problem": taken.problem,
        "refused": refused,
    }


def _provider(seen: "Survey", taken: "Devices", settings: "Settings") -> str:
    """Return the best provider of the ladder that engines would try. Raises DeviceError: none."""
    from worker.engine.providers import choices
    from worker.inference.devices import on_gpu

    policy = settings.engine.policy
    tried = choices(
        on_gpu(policy) if taken.chosen else taken.policy(policy),
        available=seen.providers,
        cuda_problem=lambda: None if taken.chosen else taken.problem,
        named=settings.engine.provider_options,
    )
    return tried[0].provider


def _cpu(seen: "Survey") -> dict[str, Any]:
    from worker.inference.budget import affinity_cores, cores, memory_bytes, quota_cores

    quota = quota_cores()
    return {
        "device": seen.cpu,
        "name": _cpu_name(),
        "cores": cores(),
        "affinity": affinity_cores(),
        "quota": None if isinf(quota) else round(quota, 2),
        "memory_bytes": memory_bytes(),
    }


def _cpu_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the processor calls itself; where Linux does not tell, its architecture."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def _gpu(verdict: "Verdict") -> dict[str, Any]:
    facts = verdict.gpu._asdict()
    del facts["problem"]  # the verdict's begins with it
    return {**facts, "usable": verdict.problem is None, "problem": verdict.problem}


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    from rich.filesize import decimal

    cpu, runtime, chosen = facts["cpu"], facts["onnxruntime"], facts["chosen"]
    quota = "no quota" if cpu["quota"] is None else f"a quota of {cpu['quota']:g}"
    yield f"{cpu['device']}  {cpu['name']}"
    yield (
        f"  {cpu['cores']} cores for this process (affinity {cpu['affinity']}, {quota}), "
        f"{decimal(cpu['memory_bytes'])}"
    )
    for gpu in facts["gpus"]:
        yield f"{gpu['uuid']}  {gpu['name']}"
        if told := ", ".join(_told(gpu)):
            yield f"  {told}"
        yield "  usable" if gpu["usable"] else f"  not usable: {gpu['problem']}"
    if not facts["gpus"]:
        yield f"no NVIDIA GPU: {facts['cuda_problem']}"
    elif facts["nvml_problem"]:
        yield f"load, temperature and memory in use are not known: {facts['nvml_problem']}"
    providers = ", ".join(runtime["providers"]) or "none"
    yield f"onnxruntime {runtime['version'] or 'is not there'}, built with {providers}"
    if not chosen["refused"]:
        taken = ", ".join(chosen["devices"])
        yield f"a worker takes {chosen['provider']} on {taken}, with {chosen['lanes']} lanes"


def _told(gpu: dict[str, Any]) -> Iterator[str]:
    from rich.filesize import decimal

    if gpu["uuid"] != gpu["gpu"]:
        yield f"MIG instance of {gpu['gpu']}"
    if gpu["compute_capability"]:
        yield "compute capability {}.{}".format(*gpu["compute_capability"])
    if gpu["memory_total_bytes"]:
        used = gpu["memory_used_bytes"]
        of = "" if used is None else f"{decimal(used)} in use of "
        yield f"{of}{decimal(gpu['memory_total_bytes'])}"
    if gpu["utilization_pct"] is not None:
        yield f"load {gpu['utilization_pct']} %"
    if gpu["temperature_c"] is not None:
        yield f"{gpu['temperature_c']} °C"
    if gpu["numa_node"] is not None:
        yield f"NUMA node {gpu['numa_node']}, distance {gpu['numa_distance']}"
