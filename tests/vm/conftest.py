"""What the tests of real machines share: all that comes from the cache, and a picture each."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.lab import own
from tools.lab.cache import Cache, cache_directory
from tools.lab.image import make_image
from tools.lab.picture import Picture
from tools.lab.qemu import find_qemu
from tools.lab.template import Templates

if TYPE_CHECKING:
    from collections.abc import Iterator


def _tell(line: str) -> None:
    """Where a test hangs, this says in what."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a picture is made from."""

    templates: Templates
    package: Path


@pytest.fixture(scope="session")
def ingredients() -> Ingredients:
    cache = Cache(cache_directory())
    image = make_image(cache)
    templates = Templates(cache, find_qemu(cache, None), image, _tell)
    return Ingredients(templates, own.package(cache, image.python))


@pytest.fixture
def picture(ingredients: Ingredients) -> Iterator[Picture]:
    """A picture of which nothing is up yet; its logs are shown if the test fails."""
    with tempfile.TemporaryDirectory(prefix="vpci-vm-") as name:
        directory = Path(name)
        try:
            with Picture(ingredients.templates, ingredients.package, directory) as made:
                yield made
        finally:
            for file in sorted(path for path in directory.iterdir() if path.is_file()):
                _tell(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}")


@pytest.fixture
def served(picture: Picture) -> Picture:
    """All of it up, and `pmd` serving by a TAP device that VM2 bridges to its wire."""
    picture.start_device()
    picture.start_vm1()
    picture.start_vm2()
    picture.bind(picture.plug())
    picture.start_pmd("tap")
    return picture
