"""The seam between a model and whoever holds its weights: what is brought in, when, and for how long."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol, runtime_checkable

from liveavatar.models.dit.state import Unit


class Part(NamedTuple):
    """A unit, or what of it moves by itself: the parameters of these names."""

    unit: Unit
    names: tuple[str, ...]


@runtime_checkable
class Residency(Protocol):
    """Where units' weights are: `begin` names the units of the coming pass in order, `hold` lends one of them.

    `then` says with which units the pass after it begins; None expects another of the same kind. Names of parts that
    prepare conditioning are those of their units with the kind behind, as in `blocks.3/prompt`.
    """

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None: ...

    def hold(self, name: str) -> AbstractContextManager[object]: ...


class Resident:
    """Weights that are simply there."""

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None:
        pass

    def hold(self, name: str) -> AbstractContextManager[object]:
        return nullcontext()
