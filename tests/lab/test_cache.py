"""Layers: made once, whole or not at all."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from guest.errors import VhostPciError
from tools.lab.cache import Cache, cache_directory, recipe_key

if TYPE_CHECKING:
    from pathlib import Path


def _fill(path: Path) -> None:
    (path / "file").write_text("content")


def _refuse(path: Path) -> None:
    raise AssertionError(path)


def test_a_layer_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    first = cache.layer("thing", recipe_key("a"), _fill)
    assert (first / "file").read_text() == "content"
    assert cache.layer("thing", recipe_key("a"), _refuse) == first
    assert cache.layer("thing", recipe_key("b"), _fill) != first


def test_a_layer_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    def half(path: Path) -> None:
        _fill(path)
        raise VhostPciError("make", "it", "no")

    with pytest.raises(VhostPciError):
        cache.layer("thing", recipe_key("a"), half)
    assert [path.name for path in cache.directory.iterdir()] == ["thing.lock"]
    cache.layer("thing", recipe_key("a"), _fill)


def test_two_makers_make_one_layer(tmp_path: Path) -> None:
    made = []
    inside = threading.Barrier(2, timeout=0.5)

    def slow(path: Path) -> None:
        with pytest.raises(threading.BrokenBarrierError):
            inside.wait()  # the other one does not get here meanwhile
        made.append(path)
        _fill(path)

    def make() -> None:
        Cache(tmp_path).layer("thing", recipe_key("a"), slow)

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 1


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    layers = []
    for age, part in enumerate("abcd"):
        layers.append(cache.layer("thing", recipe_key(part), _fill))
        os.utime(layers[-1], (age, age))
    other = cache.layer("thing-else", recipe_key("a"), _fill)
    assert cache.layer("thing", recipe_key("e"), _fill).is_dir()
    assert [layer.is_dir() for layer in layers] == [False, False, True, True]
    recent = [cache.layer("thing", recipe_key(part), _fill) for part in "fghi"]
    assert all(layer.is_dir() for layer in recent)  # somebody may be using them
    assert other.is_dir()


def test_a_new_layer_stays_whatever_time_its_files_are_of(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def of_old(path: Path) -> None:
        _fill(path)
        os.utime(path, (0, 0))

    for part in "abcdef":
        assert (cache.layer("thing", recipe_key(part), of_old) / "file").exists()


def test_keys_keep_parts_apart() -> None:
    assert recipe_key("ab", "c") != recipe_key("a", "bc")
    assert recipe_key("a") == recipe_key(b"a")


def test_a_relative_cache_home_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert str(cache_directory()) == "/home/user/.cache/vhost-pci-lab"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert str(cache_directory()) == "/var/cache/vhost-pci-lab"


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VhostPciError, match=r"cannot make the cache .*: not a directory"):
        Cache(tmp_path / "file" / "cache")
