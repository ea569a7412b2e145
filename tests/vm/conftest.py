"""What the tests of real machines share: all that comes from the cache, and pictures.

Bringing a picture up takes most of a minute, so the tests of a module take turns with one: each
leaves it as it found it, and one that fails leaves it to nobody.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.conftest import no_leaks
from tools.lab import own
from tools.lab.cache import Cache, cache_directory
from tools.lab.check import NEXT_MEMORY_MIB
from tools.lab.debian import Packages
from tools.lab.image import make_image
from tools.lab.picture import Picture
from tools.lab.prepare import KINDS
from tools.lab.qemu import find_qemu
from tools.lab.template import Templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

T = TypeVar("T")


def _tell(line: str) -> None:
    """Where a test hangs, this says in what."""
    print(line, file=sys.stderr, flush=True)


@pytest.fixture(scope="module", autouse=True)
def nothing_leaks() -> Iterator[None]:
    """As everywhere else, for a module as a whole: its tests share machines."""
    with no_leaks():
        yield


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a picture is made from."""

    templates: Templates
    package: Path


@pytest.fixture(scope="session")
def ingredients() -> Ingredients:
    cache = Cache(cache_directory())
    with Packages() as packages:
        image = make_image(cache, packages)
        qemu = find_qemu(cache, packages, None)
    templates = Templates(cache, qemu, image, _tell)
    templates.make(*KINDS, (NEXT_MEMORY_MIB, False))
    return Ingredients(templates, own.package(cache, image.python))


class Stage:
    """Has one picture up, or none; on the way down, what the machines said is shown."""

    def __init__(self, ingredients: Ingredients) -> None:
        self._ingredients = ingredients
        self._stack = contextlib.ExitStack()
        self._picture: Picture | None = None

    def picture(self, bring_up: Callable[[Picture], None]) -> Picture:
        """The one that is up, or a new one, brought up."""
        if self._picture is None:
            made = self.another()
            bring_up(made)
            self._picture = made
        return self._picture

    def another(self, number: int = 0) -> Picture:
        """One more of which nothing is up yet, until the stage is cleared."""
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vpci-vm-")))
        self._stack.callback(_show, directory)
        ingredients = self._ingredients
        made = Picture(ingredients.templates, ingredients.package, directory, number)
        return self._stack.enter_context(made)

    def enter(self, what: AbstractContextManager[T]) -> T:
        """End this machine or server too when the stage is cleared."""
        return self._stack.enter_context(what)

    def clear(self) -> None:
        """End what is up."""
        self._picture = None
        self._stack.close()


def _show(directory: Path) -> None:
    for file in sorted(path for path in directory.iterdir() if path.is_file()):
        _tell(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="module")
def stage(ingredients: Ingredients) -> Iterator[Stage]:
    made = Stage(ingredients)
    try:
        yield made
    finally:
        made.clear()


@pytest.fixture
def cleared(stage: Stage, request: pytest.FixtureRequest) -> Iterator[None]:
    """Clears the stage after a test that fails."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed != failed:
        stage.clear()


@pytest.fixture
def served(stage: Stage, cleared: None) -> Picture:  # noqa: ARG001 - what it does comes after
    """All of it up, and `pmd` serving by VM2's network card."""
    return stage.picture(serve)


def serve(picture: Picture) -> None:
    """All of a picture up, and answering."""
    picture.start_device()
    picture.start_vm1()
    picture.start_vm2()
    picture.plug()
    # One that sleeps leaves the processors to the machines: these are emulated, and are not many.
    picture.start_pmd("packet", "--poll", "adaptive")
    picture.ping()  # which goes on asking where TCP gives up: the first frames may find a card down
