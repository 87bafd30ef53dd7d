"""Translating tensor names between a published checkpoint and our modules, both ways from one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")
Rule = tuple[str, str]

_PLACEHOLDER = re.compile(r"\{(\*|[a-z]+)\}")


class KeyMap:
    """An ordered table of (published, ours) name patterns; the first one that matches a name decides.

    In a pattern `{i}` (any small letters) stands for a whole number and `{*}` for any rest of a name; both
    sides of a rule hold the same placeholders. All other characters are literal.

    Args:
        name: what the map is called in messages.
        rules: (published, ours) patterns.
        ignored: published pattern -> the reason why our module has no such tensor.
        aliases: (other, published) patterns, for files that use another spelling of a published name.

    Raises:
        ValueError: the two sides of a rule or an alias do not hold the same placeholders.
    """

    def __init__(
        self,
        name: str,
        rules: Sequence[Rule],
        ignored: Mapping[str, str] | None = None,
        aliases: Sequence[Rule] = (),
    ) -> None:
        self.name = name
        self.rules = tuple(rules)
        self.ignored = dict(ignored or {})
        self.aliases = tuple(aliases)
        for left, right in (*self.rules, *self.aliases):
            if sorted(_PLACEHOLDER.findall(left)) != sorted(_PLACEHOLDER.findall(right)):
                raise ValueError(f"{name}: {left!r} and {right!r} must hold the same placeholders to work both ways")
        self._forward = _compiled(self.rules)
        self._backward = _compiled((ours, published) for published, ours in self.rules)
        self._alias = _compiled(self.aliases)
        self._dropped = _compiled((pattern, pattern) for pattern in self.ignored)

    def to_ours(self, name: str) -> str | None:
        """Our name of a published tensor, None if it is one that we leave out on purpose.

        Raises:
            KeyError: the map knows no such published tensor.
        """
        name = _translated(self._alias, name) or name
        if _translated(self._dropped, name) is not None:
            return None
        ours = _translated(self._forward, name)
        if ours is None:
            raise KeyError(
                f"the checkpoint holds {name!r}, which the {self.name} map does not know: it is not a file "
                "of this model, or a new rule belongs into the map"
            )
        return ours

    def to_published(self, name: str) -> str:
        """The published name of one of our tensors.

        Raises:
            KeyError: the map knows no such tensor of ours.
        """
        published = _translated(self._backward, name)
        if published is None:
            raise KeyError(
                f"our module holds {name!r}, which the {self.name} map cannot name in the published way: "
                "add a rule for it"
            )
        return published

    def rename(self, published: Mapping[str, Value]) -> dict[str, Value]:
        """A published state dict (or shapes, or anything by name) under our names, without what is ignored.

        Raises:
            KeyError: a name is unknown.
            ValueError: two published names mean the same tensor.
        """
        renamed: dict[str, Value] = {}
        for name, value in published.items():
            ours = self.to_ours(name)
            if ours is None:
                continue
            if ours in renamed:
                raise ValueError(
                    f"two tensors of the checkpoint are both {ours!r} to the {self.name} map, one of them "
                    f"{name!r}: the file mixes two spellings, keep one"
                )
            renamed[ours] = value
        return renamed


_Compiled = tuple[tuple[re.Pattern[str], str], ...]


def _compiled(rules: Iterable[Rule]) -> _Compiled:
    """(regular expression, format string) pairs; `{*}` is the group `rest_`, which no letters can name."""
    pairs = []
    for source, target in rules:
        pattern = ""
        for number, piece in enumerate(_PLACEHOLDER.split(source)):
            if number % 2 == 0:
                pattern += re.escape(piece)
            else:
                pattern += "(?P<rest_>.+)" if piece == "*" else rf"(?P<{piece}>\d+)"
        pairs.append((re.compile(pattern), target.replace("{*}", "{rest_}")))
    return tuple(pairs)


def _translated(rules: _Compiled, name: str) -> str | None:
    for pattern, target in rules:
        if match := pattern.fullmatch(name):
            return target.format(**match.groupdict())
    return None
