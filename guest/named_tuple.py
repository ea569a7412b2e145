"""`NamedTuple`: typing's to who checks types, and to who runs one whose classes are made sooner.

typing's compiles each annotation, and code for each class. `pmd run` makes fifty classes before it
serves, and that was a sixth of its start.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

__all__ = ["NamedTuple"]


class _Maker(type):
    """Makes fields of what the body of a class declares."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> _Maker:
        if bases != (tuple,):
            fields = tuple(body.get("__annotations__", ()))
            body["_defaults"] = {field: body[field] for field in fields if field in body}
            body |= {field: property(itemgetter(at)) for at, field in enumerate(fields)}
            body |= {"_fields": fields, "__match_args__": fields, "__slots__": ()}
        return super().__new__(cls, name, bases, body)


class _NamedTuple(tuple[Any, ...], metaclass=_Maker):
    """What a run has of typing.NamedTuple; annotations are text, as `__future__` makes them."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()
    _defaults: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it

    def __new__(cls, *values: Any, **named: Any) -> Self:  # noqa: ANN401 - each field has its own
        if named or len(values) != len(cls._fields):
            values = cls._completed(values, named)
        return super().__new__(cls, values)

    @classmethod
    def _completed(cls, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """One value for each field; TypeError where there is none, or more."""
        rest = cls._fields[len(values) :]
        found = cls._defaults | named
        if len(values) > len(cls._fields) or not named.keys() <= set(rest) <= found.keys():
            given = [*map(repr, values), *named]
            cause = f"{cls.__name__} takes {', '.join(cls._fields)}; given are {', '.join(given)}"
            raise TypeError(cause)
        return (*values, *(found[field] for field in rest))

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **changes: Any) -> Self:  # noqa: ANN401 - as above
        return type(self)(**self._asdict() | changes)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        words = (f"{name}={value!r}" for name, value in self._asdict().items())
        return f"{type(self).__name__}({', '.join(words)})"


if TYPE_CHECKING:
    from typing import NamedTuple
else:
    NamedTuple = _NamedTuple
