"""Which adapter reads which type: kept by type name, so that recognising a type never imports its library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Registry"]

Adapter = TypeVar("Adapter")


class Registry(Generic[Adapter]):
    """Adapters by type name, such as "torch.Tensor" (module and qualified name).

    Law: find(x) is the adapter claimed for the nearest name in type(x).__mro__, or None.
    """

    def __init__(self) -> None:
        self._adapters: dict[str, Adapter] = {}

    def claim(self, *names: str) -> Callable[[Adapter], Adapter]:
        """Return a decorator that enters an adapter under each name; a name that is already claimed is a ValueError."""

        def enter(adapter: Adapter) -> Adapter:
            for name in names:
                if name in self._adapters:
                    raise ValueError(f"{name} is already claimed by {self._adapters[name]!r}; one type has one adapter")
                self._adapters[name] = adapter
            return adapter

        return enter

    def find(self, x: object) -> Adapter | None:
        names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(x).__mro__)
        return next((self._adapters[name] for name in names if name in self._adapters), None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)
