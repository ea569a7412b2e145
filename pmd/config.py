"""What a run is told: the command line and the TOML file, under the same keys.

A key is a flag without its dashes. `device` and `vf` are a string or an array of strings. What the
command line says wins over the file, key by key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guest.errors import UsageError, errno_text
from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

BURST_MAX = 256  # ringk.h RK_BURST_MAX
STATS_PERIOD_MIN_S = 0.1
WINDOW_MAPS = ("auto", "vfio", "wc")  # pmd/window_map.py WindowMap
POLLS = ("busy", "adaptive", "interrupt")  # pmd/run.py
COALESCE_MAX_US = 1000
COPIES = ("auto", "always", "never")  # pmd/ports.py Copy
_SECONDS_MAX = 1e9
_FILE_MAX_BYTES = 1 << 20


class Options(NamedTuple):
    """What `pmd run` does. Every value is in its range; the names are not judged.

    Attributes:
        bar: The window's BAR.
        devices: As given; empty: the functions of this machine.
        vfs: As given; one for each device, or one for the only device, or empty.
        lcores: A list such as "1-3,5", or empty: the daemon chooses one.
        burst: Chains a turn takes from a ring at most.
        window_map: How VM1's memory is mapped: auto, vfio or wc.
        poll: Whether lcores sleep while nothing moves: busy, adaptive or interrupt.
        coalesce_us: How long an interrupt to VM1 may wait for others, in microseconds.
        copy: Which frames are copied by a VF that reaches VM1's memory: auto, always or never.
        duration_s: How long to run, or None: until a signal.
        stats_period_s: Between two updates of the live statistics.
        json: Print one JSON object at the end and nothing else.
    """

    bar: int = 2
    devices: tuple[str, ...] = ()
    vfs: tuple[str, ...] = ()
    lcores: str = ""
    burst: int = 32
    window_map: str = "auto"
    poll: str = "busy"
    coalesce_us: int = 0
    copy: str = "auto"
    duration_s: float | None = None
    stats_period_s: float = 1.0
    json: bool = False


class _Key(NamedTuple):
    """One key: the field it fills, what a value must be, and what turns it into that or None."""

    field: str
    expected: str
    convert: Callable[[Any], Any]


def _bar(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= 5 else None


def _strings(value: object) -> tuple[str, ...] | None:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
        return None
    return tuple(items)


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _burst(value: object) -> int | None:
    return value if type(value) is int and 1 <= value <= BURST_MAX else None


def _one_of(words: tuple[str, ...]) -> Callable[[Any], str | None]:
    def convert(value: object) -> str | None:
        return value if isinstance(value, str) and value in words else None

    return convert


def _coalesce(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= COALESCE_MAX_US else None


def _seconds(least: float) -> Callable[[Any], float | None]:
    """Accepts seconds of at least `least`; for least 0, more than 0."""

    def convert(value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if 0 < value <= _SECONDS_MAX and value >= least else None

    return convert


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


_KEYS = {
    "bar": _Key("bar", "a BAR's number, 0 to 5", _bar),
    "device": _Key("devices", "a device name, or an array of them", _strings),
    "vf": _Key("vfs", "a VF spec, or an array of them", _strings),
    "lcores": _Key("lcores", 'a list of CPUs as a string, such as "1-3,5"', _string),
    "burst": _Key("burst", f"an integer from 1 to {BURST_MAX}", _burst),
    "window-map": _Key("window_map", f"one of {', '.join(WINDOW_MAPS)}", _one_of(WINDOW_MAPS)),
    "poll": _Key("poll", f"one of {', '.join(POLLS)}", _one_of(POLLS)),
    "copy": _Key("copy", f"one of {', '.join(COPIES)}", _one_of(COPIES)),
    "coalesce-us": _Key(
        "coalesce_us", f"an integer from 0 to {COALESCE_MAX_US} microseconds", _coalesce
    ),
    "duration": _Key("duration_s", "a number of seconds, more than 0", _seconds(0)),
    "stats-period": _Key(
        "stats_period_s",
        f"a number of seconds, at least {STATS_PERIOD_MIN_S}",
        _seconds(STATS_PERIOD_MIN_S),
    ),
    "json": _Key("json", "true or false", _flag),
}


def read_file(path: Path) -> dict[str, Any]:
    """The keys a TOML file sets, not yet judged.

    Raises:
        UsageError: It cannot be read, or is not TOML (with line and column).
    """
    import tomllib  # noqa: PLC0415 - where there is a file to read

    try:
        with path.open("rb") as file:
            text = file.read(_FILE_MAX_BYTES + 1)
        if len(text) > _FILE_MAX_BYTES:
            cause = f"it has more than {_FILE_MAX_BYTES} bytes"
            raise UsageError("read", f"configuration {path}", cause, "name a TOML file")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise UsageError("read", f"configuration {path}", errno_text(error)) from error
    except UnicodeDecodeError as error:
        raise UsageError("read", f"configuration {path}", "it is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        cause = " ".join(str(error).split())
        raise UsageError(
            "read", f"configuration {path}", f"{cause[:1].lower()}{cause[1:]}"
        ) from error


def options(flags: Mapping[str, Any], path: Path | None) -> Options:
    """The options from flags (those the user gave, by key) over the file at path.

    Raises:
        UsageError: A key is unknown or a value is not what the key wants; names file or flag.
    """
    fields: dict[str, Any] = {}
    if path is not None:
        fields |= _fields(read_file(path), lambda key: f"key {key!r} of configuration {path}")
    fields |= _fields(flags, lambda key: f"--{key}")
    return Options(**fields)


def _fields(values: Mapping[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in values.items():
        key = _KEYS.get(name)
        if key is None:
            raise UsageError("use", where(name), "unknown key", f"there are {', '.join(_KEYS)}")
        converted = key.convert(value)
        if converted is None:
            raise UsageError("use", where(name), f"it is {value!r} and must be {key.expected}")
        fields[key.field] = converted
    return fields
