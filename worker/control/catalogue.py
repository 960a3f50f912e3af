"""Which versions there are, and their digests: for whoever commands a fleet.

It reads manifests of the repository that the settings name; what the fleet knows comes first.
"""

import uuid
from collections.abc import Mapping

from worker.config_sections import ModelsSettings
from worker.control.content import Content
from worker.control.edits import first_state
from worker.control.messages import DesiredState
from worker.errors import CommandError, ModelError
from worker.models.repository import Repository, demo_repository
from worker.types import ModelRef


class Catalogue:
    """The repository of the settings, as a command sees it."""

    def __init__(self, models: ModelsSettings) -> None:
        self._models = models
        location = models.repository or demo_repository()
        self._repository = Repository(location, cache=None, seen_file=None)

    def first(self, fleet: str) -> DesiredState:
        """Return what the first command of a fleet edits: what its settings and repository say.

        A version that cannot be read is left out; to activate it tells why.
        """
        active = self._models.active
        try:
            refs = self._repository.versions()
        except ModelError:  # many web servers cannot list
            refs = [ModelRef(name, version) for name, version in active.items()]
        versions: dict[str, dict[str, str]] = {}
        for ref in refs:
            sha256 = self._sha256(ref)
            if sha256 is not None:
                versions.setdefault(ref.name, {})[ref.version] = sha256
        default = self._models.default
        return first_state(fleet, uuid.uuid4().hex, active, default, versions=versions)

    def digest(self, state: DesiredState, name: str, version: str, given: str | None) -> str | None:
        """Return what a command says of a version's digest: what was given, or the repository's.

        None where the fleet has it. Raises CommandError when nobody knows it.
        """
        model = state.models.get(name)
        if given is not None or model is None or version in model.aliases:
            return given
        try:
            return self._unless_known(name, version, model.versions)
        except CommandError as error:
            raise CommandError(f"{error}; or say its manifest's digest: --sha256 HEX") from error

    def digests(self, state: DesiredState, content: Content) -> dict[str, dict[str, str]]:
        """Return model -> version -> digest of what a file names and the fleet does not know.

        Raises CommandError when nobody knows one of them.
        """
        found: dict[str, dict[str, str]] = {}
        for name, model in content.models.items():
            known = state.models[name].versions if name in state.models else {}
            for version in model.versions:
                sha256 = self._unless_known(name, version, known)
                if sha256 is not None:
                    found.setdefault(name, {})[version] = sha256
        return found

    def _unless_known(self, name: str, version: str, known: Mapping[str, str | None]) -> str | None:
        """Return the repository's digest; None where the fleet has one, or does without."""
        if known.get(version) is not None:
            return None
        try:
            return self._repository.manifest_sha256(ModelRef(name, version))
        except ModelError as error:
            if version in known:
                return None
            raise CommandError(
                f"the fleet knows no {name}/{version} (it knows {', '.join(known) or 'none'}), and"
                f" {error}"
            ) from error

    def _sha256(self, ref: ModelRef) -> str | None:
        try:
            return self._repository.manifest_sha256(ref)
        except ModelError:
            return None
