"""The models of a gateway by their names."""

from collections.abc import Sequence
from typing import Any, cast

from flagsplit.apps.decoder_service.gateway_backend import Backend, Listener
from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.errors import ConfigError


class Models:
    """What answers.

    Args:
        backends: at least one; those whose facts say "speech" are listeners.

    Raises:
        ConfigError: there is none, or two have one name.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._by_name = {backend.facts.name: backend for backend in backends}
        if not backends or len(self._by_name) != len(backends):
            raise ConfigError("a gateway needs models with names of their own; give each another name")

    def any(self, name: str) -> Backend:
        """The model of that name; "" is the only one.

        Raises:
            ApiError: there is none of that name.
        """
        if not name and len(self._by_name) == 1:
            return next(iter(self._by_name.values()))
        return self._named(name, list(self._by_name.values()))

    def text(self, name: str) -> Backend:
        """A model that goes on from text; "" is the only one.

        Raises:
            ApiError: there is none of that name.
        """
        return self._of_kind(name, "text", "/v1/audio/transcriptions")

    def speech(self, name: str) -> Listener:
        """A model of speech; "" is the only one.

        Raises:
            ApiError: there is none of that name.
        """
        return cast("Listener", self._of_kind(name, "speech", "/v1/completions"))

    def not_ready(self) -> str:
        """Why one of them takes no streams, "" if all do."""
        reasons = ((name, backend.not_ready()) for name, backend in self._by_name.items())
        return next((f"{name}: {reason}" for name, reason in reasons if reason), "")

    def listed(self) -> list[dict[str, Any]]:
        """All of them, as OpenAI's clients read them."""
        return [self.shown(name) for name in self._by_name]

    def shown(self, name: str) -> dict[str, Any]:
        """One of them.

        Raises:
            ApiError: there is none of that name.
        """
        facts = self.any(name).facts
        plans = {
            plan: [{"name": each, "dtype": dtype, "shape": list(shape)} for each, (dtype, shape) in cut.items()]
            for plan, cut in facts.cuts.items()
        }
        return {
            "id": facts.name,
            "object": "model",
            "created": facts.created,
            "owned_by": facts.owner,
            "kind": facts.kind,
            "max_positions": facts.max_positions,
            "plans": plans,
        }

    def _of_kind(self, name: str, kind: str, instead: str) -> Backend:
        fitting = [backend for backend in self._by_name.values() if backend.facts.kind == kind]
        if not name and len(fitting) == 1:
            return fitting[0]
        found = self._named(name, fitting)
        if found.facts.kind != kind:
            raise ApiError(400, f"model {name!r:.80} takes {found.facts.kind}: ask {instead}", "wrong_model", "model")
        return found

    def _named(self, name: str, fitting: Sequence[Backend]) -> Backend:
        found = self._by_name.get(name)
        if found is None:
            there = ", ".join(each.facts.name for each in fitting) or "none that this page is for; ask GET /v1/models"
            wanted = f"there is no model {name!r:.80}" if name else "expected a model"
            raise ApiError(404, f"{wanted}; there is {there}", "model_not_found", "model")
        return found
