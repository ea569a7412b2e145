"""The configuration file and its flags: what wins, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guest.errors import UsageError
from pmd.config import Options, options

_DEPLOYMENT = Path(__file__).parents[2] / "docs/deploy.md"


def write(directory: Path, text: str) -> Path:
    path = directory / "pmd.toml"
    path.write_text(text)
    return path


def test_every_key_is_a_flag(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        bar = 2
        device = ["vfio-user:/run/a", "0000:00:05.0"]
        vf = ["loop", "tap:tap0"]
        lcores = "1-3,5"
        burst = 64
        duration = 1.5
        stats-period = 2
        json = true
        """,
    )
    expected = Options(
        bar=2,
        devices=("vfio-user:/run/a", "0000:00:05.0"),
        vfs=("loop", "tap:tap0"),
        lcores="1-3,5",
        burst=64,
        duration_s=1.5,
        stats_period_s=2.0,
        json=True,
    )
    assert options({}, path) == expected


def test_the_one_to_deploy_with_is_read(tmp_path: Path) -> None:
    _, _, rest = _DEPLOYMENT.read_text().partition("```toml\n")
    told, _, _ = rest.partition("```")
    expected = Options(vfs=("packet:enp2s0",), lcores="1", stats_period_s=10.0)
    assert options({}, write(tmp_path, told)) == expected


def test_flags_win_key_by_key(tmp_path: Path) -> None:
    path = write(tmp_path, 'device = "sim"\nburst = 64\njson = true\n')
    assert options({"burst": 8, "device": ["auto"]}, path) == Options(
        devices=("auto",), burst=8, json=True
    )


def test_nothing_given_is_the_default() -> None:
    assert options({}, None) == Options()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("burst = \n", "invalid value (at line 1, column 9)"),
        ("burst = 1\nburst = 2\n", "(at line 2, column 10)"),
        ("brust = 1\n", "cannot use key 'brust' of configuration"),
        ("[run]\nburst = 1\n", "cannot use key 'run' of configuration"),
        ("burst = '1'\n", "it is '1' and must be an integer from 1 to 256"),
        ("burst = 1.0\n", "it is 1.0 and must be an integer from 1 to 256"),
        ("burst = true\n", "it is True and must be an integer from 1 to 256"),
        ("burst = 257\n", "it is 257 and must be an integer from 1 to 256"),
        ("duration = nan\n", "it is nan and must be a number of seconds, more than 0"),
        ("duration = inf\n", "it is inf and must be a number of seconds, more than 0"),
        ("duration = 0\n", "it is 0 and must be a number of seconds, more than 0"),
        ("stats-period = 0.09\n", "it is 0.09 and must be a number of seconds, at least 0.1"),
        ("json = 1\n", "it is 1 and must be true or false"),
        ("device = []\nvf = [1]\n", "key 'vf' of configuration"),
        ("device = ''\n", "must be a device name, or an array of them"),
        ("lcores = 1\n", "must be a list of CPUs as a string"),
        ("bar = 6\n", "it is 6 and must be a BAR's number, 0 to 5"),
    ],
)
def test_what_a_file_cannot_mean(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        options({}, path)
    line = str(caught.value)
    assert message in line
    assert str(path) in line
    assert "\n" not in line
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"burst": 0}, "cannot use --burst: it is 0 and must be an integer from 1 to 256"),
        ({"duration": -1.0}, "cannot use --duration: it is -1.0 and must be a number of seconds"),
        ({"stats-period": 0.0}, "cannot use --stats-period: it is 0.0 and must be a number"),
        ({"vf": [""]}, "cannot use --vf: it is [''] and must be a VF spec"),
    ],
)
def test_what_a_flag_cannot_mean(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(flags, None)
    assert str(caught.value).startswith(message)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(UsageError) as caught:
        options({}, missing)
    assert str(caught.value) == f"cannot read configuration {missing}: no such file or directory"
    with pytest.raises(UsageError, match="is a directory"):
        options({}, tmp_path)
    with pytest.raises(UsageError, match="it has more than 1048576 bytes; name a TOML file"):
        options({}, Path("/dev/zero"))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "pmd.toml"
    path.write_bytes(b"burst = \xff\n")
    with pytest.raises(UsageError, match="it is not UTF-8 text"):
        options({}, path)
