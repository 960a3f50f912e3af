"""The router's table, and why each version has an engine by it. No engines, no clock.

The table is replaced whole: nobody ever sees a half of a change.
"""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from worker.models.berth import Role
from worker.models.router import Routes, RoutingTable
from worker.types import ModelRef

_UNROUTED = Routes(None, frozenset())


class Table:
    """What the desired state names, and how records find it."""

    def __init__(self) -> None:
        self.now = RoutingTable("", MappingProxyType({}))
        self._digests: Mapping[str, Mapping[str, str | None]] = {}
        self._wanted: frozenset[ModelRef] = frozenset()

    def name(
        self,
        default: str,
        models: Mapping[str, Mapping[str, str | None]],
        wanted: Collection[ModelRef],
    ) -> None:
        """Take over which models and versions there are; routes stay as they are.

        A version that they name is one of the model's until they change: it serves meanwhile.
        """
        self._digests = models
        self._wanted = frozenset(wanted)
        known = self.now.models
        named = {}
        for name, versions in models.items():
            routes = known.get(name, _UNROUTED)
            named[name] = routes._replace(versions=frozenset({*versions, *_named(routes)}))
        self.now = self.now._replace(default=default, models=MappingProxyType({**known, **named}))

    def route(self, name: str, routes: Routes) -> None:
        models = {**self.now.models, name: routes}
        self.now = self.now._replace(models=MappingProxyType(models))

    def drop(self, name: str) -> None:
        models = {other: routes for other, routes in self.now.models.items() if other != name}
        self.now = self.now._replace(models=MappingProxyType(models))

    def take_down(self, versions: frozenset[ModelRef]) -> frozenset[ModelRef]:
        """Let these be passed over where there is a fallback; return those that were not before."""
        before = self.now.down
        if versions != before:
            self.now = self.now._replace(down=versions)
        return versions - before

    def knows(self, ref: ModelRef) -> bool:
        """Whether records may be routed to a version."""
        routes = self.now.models.get(ref.name)
        return routes is not None and ref.version in routes.versions

    def is_down(self, ref: ModelRef) -> bool:
        return ref in self.now.down

    def digest(self, ref: ModelRef) -> str | None:
        """Return the sha256 that a version's manifest must have; None: whatever it has."""
        return self._digests.get(ref.name, {}).get(ref.version)

    def serving(self, name: str) -> ModelRef | None:
        routes = self.now.models.get(name)
        return None if routes is None or routes.serving is None else ModelRef(name, routes.serving)

    def fallback(self, ref: ModelRef) -> ModelRef | None:
        """Return what serves where a version is not to be had; None: nothing does."""
        routes = self.now.models.get(ref.name)
        other = None if routes is None else routes.fallback_model
        return None if other is None else self.serving(other)

    def role(self, ref: ModelRef, before: Role) -> Role:
        """Return why a version has an engine, `before` being what it was."""
        routes = self.now.models.get(ref.name)
        if routes is not None and ref.version in _named(routes):
            return Role.SERVING
        if ref in self._wanted:
            return Role.WANTED
        return Role.ASKED if before is Role.ASKED and self.knows(ref) else Role.HELD


def _named(routes: Routes) -> Iterator[str]:
    """Yield the versions that records may get without asking for one."""
    if routes.serving is not None:
        yield routes.serving
    if routes.pin is not None:
        return
    for version in (*(rule.version for rule in routes.rules), *(part for part, _ in routes.split)):
        yield routes.aliases.get(version, version)
