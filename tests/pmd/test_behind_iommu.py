"""VM1 behind an IOMMU, through the device and pmd as processes: `loop` gives it its own frames."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.device.iommu_front_end import BOTH, INVALIDATE, PAGE, READ
from tests.device.vhost_user_peer import MIB, USER
from tests.pmd.iommu_vm1 import RECEIVE, TRANSMIT, IommuVm1
from tests.pmd.processes import Device, pmd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.pmd.processes import Process

TX, RX = 0x8000_0000, 0x9000_0000  # I/O virtual
TX_PAGES, RX_PAGES = MIB // PAGE, 2 * MIB // PAGE  # in the file
FRAMES = 24


class Scene:
    """VM1, the device, and pmd."""

    def __init__(self, vm1: IommuVm1, device: Device, daemon: Process) -> None:
        self.vm1, self.device, self.daemon = vm1, device, daemon

    def end(self) -> dict[str, Any]:
        """pmd's own account of the channel."""
        assert self.daemon.stop() == 0
        (channel,) = self.daemon.json()["channels"]
        found: dict[str, Any] = channel
        return found


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    with ExitStack() as stack:

        def made(*options: str) -> Scene:
            device = stack.enter_context(Device(tmp_path))
            words = ["run", "--json", "--device", device.name, "--vf", "loop", *options]
            daemon = stack.enter_context(pmd(*words))
            vm1 = stack.enter_context(IommuVm1(device.vhost_user))
            return Scene(vm1, device, daemon)

        yield made


def content(number: int) -> bytes:
    return bytes([number]) * 14 + bytes((number * 7 + at) % 256 for at in range(100))


@pytest.mark.parametrize("poll", ["busy", "interrupt"])
def test_each_frame_is_mapped_and_taken_back(begin: Callable[..., Scene], poll: str) -> None:
    """Addresses come again, of other pages: what was taken back is neither read nor written."""
    scene = begin("--poll", poll)
    vm1 = scene.vm1
    for number in range(FRAMES):
        tx, rx = TX + number % 3 * PAGE, RX + number % 2 * PAGE
        tx_page, rx_page = TX_PAGES + number * 5 % 64, RX_PAGES + number * 3 % 64
        vm1.stock(rx, rx_page)
        vm1.transmit(tx, tx_page, content(number))
        vm1.done()
        assert vm1.frame(rx_page, 114) == content(number)
        assert vm1.unmap(tx)
        assert vm1.unmap(rx)
        vm1.memory[rx_page * PAGE : (rx_page + 1) * PAGE] = bytes(PAGE)
    assert not any(vm1.memory[2 * MIB : 3 * MIB])
    assert vm1.misses >= 2 * FRAMES
    channel = scene.end()
    for way in ("vm1_to_vf", "vf_to_vm1"):
        assert (channel[way]["packets"], channel[way]["drops"]) == (FRAMES, {})
    assert channel["quarantines"] == 0


def test_what_stays_mapped_is_asked_for_once(begin: Callable[..., Scene]) -> None:
    """Passed through: addresses are mapped once and for all."""
    scene = begin()
    vm1 = scene.vm1
    vm1.map(0, USER, MIB * 4 // PAGE)
    for number in range(200):
        vm1.map(TX + number % 8 * PAGE, USER + (TX_PAGES + number % 8) * PAGE)
        vm1.map(RX + number % 8 * PAGE, USER + (RX_PAGES + number % 8) * PAGE)
        vm1.post(RECEIVE, (RX_PAGES + number % 8) * PAGE, 2048)
        page = TX_PAGES + number % 8
        vm1.memory[page * PAGE + 12 : page * PAGE + 126] = content(number)
        vm1.post(TRANSMIT, page * PAGE, 126)
        vm1.done()
        assert vm1.frame(RX_PAGES + number % 8, 114) == content(number)
    assert vm1.misses == 6 + 16
    assert scene.end()["vm1_to_vf"]["packets"] == 200


def test_a_burst_is_asked_for_together(begin: Callable[..., Scene]) -> None:
    scene = begin()
    vm1 = scene.vm1
    vm1.done()
    vm1.until(lambda: scene.device.describe()["function"]["driver_status"] == "active", "pmd")
    vm1.until(lambda: vm1.misses == 6, "both rings")
    for number in range(32):
        vm1.map(RX + 2 * number * PAGE, USER + (RX_PAGES + number) * PAGE)
        vm1.post(RECEIVE, RX + 2 * number * PAGE, 2048)
    before = scene.device.describe()["function"]["generation"]
    for number in range(32):
        vm1.transmit(TX + 2 * number * PAGE, TX_PAGES + number, content(number))
    vm1.done()
    for number in range(32):
        assert vm1.frame(RX_PAGES + number, 114) == content(number)
    # A generation is 2; one a frame each way would be 128.
    assert scene.device.describe()["function"]["generation"] - before < 64


def test_what_vm1_did_not_map_is_dropped_and_what_follows_is_served(
    begin: Callable[..., Scene],
) -> None:
    scene = begin()
    vm1 = scene.vm1
    vm1.post(TRANSMIT, TX + 7 * PAGE, 126)  # nobody mapped that
    vm1.map(TX, USER + TX_PAGES * PAGE, permission=2)  # nor this for reading
    vm1.post(TRANSMIT, TX, 126)
    vm1.stock(RX, RX_PAGES)
    vm1.transmit(TX + PAGE, TX_PAGES + 1, content(9))
    vm1.done()
    assert vm1.frame(RX_PAGES, 114) == content(9)
    channel = scene.end()
    assert channel["vm1_to_vf"]["drops"] == {"bad_address": 2}
    assert channel["vf_to_vm1"]["packets"] == 1


def test_everything_is_taken_back_while_frames_go(begin: Callable[..., Scene]) -> None:
    """As a lazy IOMMU does: rings stop, come back, and lose or repeat nothing."""
    scene = begin()
    vm1 = scene.vm1
    for number in range(12):
        vm1.stock(RX + number * PAGE, RX_PAGES + number)
        vm1.transmit(TX + number * PAGE, TX_PAGES + number, content(number))
        assert vm1.say(INVALIDATE, 0, (1 << 64) - 1)
    vm1.done()
    assert [vm1.frame(RX_PAGES + n, 114) for n in range(12)] == [content(n) for n in range(12)]
    channel = scene.end()
    assert (channel["vf_to_vm1"]["packets"], channel["vf_to_vm1"]["drops"]) == (12, {})
    assert channel["quarantines"] == 0


def test_a_flood_of_updates_harms_nobody(begin: Callable[..., Scene]) -> None:
    scene = begin()
    vm1 = scene.vm1
    vm1.until(lambda: vm1.misses == 6, "both rings")
    for number in range(2100):  # never neighbours
        assert vm1.say(2, (1 << 40) + 2 * number * PAGE, PAGE, USER, BOTH)
    vm1.stock(RX, RX_PAGES)
    vm1.transmit(TX, TX_PAGES, content(3))
    vm1.done()
    assert vm1.frame(RX_PAGES, 114) == content(3)
    told = scene.device.describe()["vhost_user"]["iotlb"]
    assert told["entries"] == 2048
    assert told["forgotten"] >= 52


def test_vm1_that_goes_in_the_middle_of_a_miss(begin: Callable[..., Scene]) -> None:
    scene = begin()
    vm1 = scene.vm1
    vm1.until(lambda: vm1.misses == 6, "both rings")
    vm1.transmit(TX, TX_PAGES, content(1))
    assert vm1.miss().permission == READ
    vm1.close()
    with IommuVm1(scene.device.vhost_user) as successor:
        successor.stock(RX, RX_PAGES)
        successor.transmit(TX, TX_PAGES, content(2))
        successor.done()
        assert successor.frame(RX_PAGES, 114) == content(2)
