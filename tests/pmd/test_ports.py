"""The ports of a VF: how many are open, and what happens when VM1 wants more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from driver.igbvf import mailbox
from driver.igbvf.vf import IgbVf
from driver.passthrough import OpenFunction
from driver.software_vf import parse_vf
from driver.software_vf.vf import PlainVf
from guest.errors import UsageError, VhostPciError
from pmd import ports as ports_module
from pmd.ports import Copy, Ports
from pmd.stats import AtVf
from tests.driver.igb_model import IgbModel

if TYPE_CHECKING:
    from pathlib import Path

    from driver.software_vf import PortSpec


def test_more_pairs_open_the_vf_anew_and_fewer_leave_it() -> None:
    ports = Ports(parse_vf("loop"))
    assert len(ports) == 0
    ports.ensure(1)
    first = ports[0]
    ports.ensure(1)
    assert (len(ports), ports[0]) == (1, first)
    ports.ensure(3)
    assert len(ports) == 3
    assert ports[0] is not first
    third = ports[2]
    ports.ensure(2)
    assert (len(ports), ports[2]) == (3, third)
    ports.close()
    ports.close()


def test_a_vf_that_cannot_be_opened(tmp_path: Path) -> None:
    ports = Ports(parse_vf(f"pcap:{tmp_path / 'none'},"))
    with pytest.raises(VhostPciError, match="no such file"):
        ports.ensure(1)
    assert len(ports) == 0
    ports.close()


class GoneVf(PlainVf):
    """Cannot be opened once it has gone."""

    gone = False

    def open(self, queue_pairs: int) -> list[PortSpec]:
        if self.gone:
            raise self._error("it has gone")
        return super().open(queue_pairs)


def test_a_vf_that_cannot_be_opened_again() -> None:
    """Neither for more pairs, nor as it was."""
    vf = GoneVf("loop", "loop")
    ports = Ports(vf)
    ports.ensure(1)
    assert len(ports) == 1
    assert ports.counts(0) == ports.counts(5) == AtVf()
    vf.gone = True
    with pytest.raises(VhostPciError, match=r"cannot open VF loop: it has gone"):
        ports.ensure(2)
    assert len(ports) == 0
    ports.close()


def test_a_vf_of_one_queue_pair_is_opened_once(tmp_path: Path) -> None:
    ports = Ports(parse_vf(f"dgram:{tmp_path}/ours,{tmp_path}/peer"))
    ports.ensure(1)
    only = ports[0]
    ports.ensure(4)
    assert (len(ports), ports[0]) == (1, only)
    ports.close()


def test_a_vf_that_must_copy() -> None:
    with pytest.raises(UsageError, match="cannot use --copy never: VF loop does not reach"):
        Ports(parse_vf("loop"), Copy.NEVER)


def test_a_vf_that_must_be_opened_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its PF is reset, and for a while cannot answer."""
    monkeypatch.setattr(mailbox, "_ANSWER_S", 0.02)
    monkeypatch.setattr(ports_module, "_RETRY_S", 0)
    model = IgbModel()
    ports = Ports(IgbVf("igbvf:01:10.0", model.name, None, lambda _: OpenFunction(model, ())))
    assert not ports.look()
    ports.ensure(2)
    assert len(ports) == 1
    first = ports[0]
    assert not ports.look()
    ports.ensure(1)
    assert ports[0] is first
    model.ping(clear_to_send=False)
    assert ports.look()
    assert ports.look()
    model.pf_up = False
    for _ in range(2):
        ports.ensure(1)
        assert "does not take its messages" in caplog.text
        assert len(ports) == 1
        assert not ports.look()
        assert model.dma == {}
    away = ports[0]
    model.pf_up = True
    assert ports.look()
    ports.ensure(1)
    assert ports[0] not in (first, away)
    assert not ports.look()
    ports.close()
    assert (model.faults, model.dma) == ([], {})
    model.dispose()
