"""The daemon follows functions: uevents from a udevd played here, functions served by devices."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from driver.state_area import Register
from guest.binding import Binding
from guest.cpus import default_lcores
from guest.errors import UsageError, VhostPciError
from guest.function import Region
from guest.hotplug import Hotplug
from guest.vfio_user import VfioUserFunction
from pmd.daemon import Daemon
from pmd.report import Silent
from pmd.run import attach
from pmd.serving import Serving
from pmd.slots import Slots, VfTemplate
from pmd.source import PciSource
from pmd.window_map import WindowMap
from tests.guest.fake_sysfs import FakeSysfs
from tests.guest.fake_udevd import FakeUdevd, in_new_namespace, must_be_root
from tests.pmd.fake_source import Told
from tests.pmd.processes import Device
from tests.pmd.wait import DEADLINE_S, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest.function import Function
    from pmd import stats

A, B = "0000:fe:00.0", "0000:fe:01.0"
TOLD_WITHIN_S = 1.0
TRIES = 10

pytestmark = pytest.mark.skipif(bool(must_be_root()), reason=must_be_root())


class SocketSlotSource(PciSource):
    """A PCI function that a device server stands in for: one socket for each address."""

    def __init__(
        self, sockets: dict[str, Path], sysfs: FakeSysfs, address: str | None = None
    ) -> None:
        super().__init__(address, WindowMap.AUTO)
        self._sockets, self._sysfs = sockets, sysfs

    def another(self) -> PciSource:
        return SocketSlotSource(self._sockets, self._sysfs)

    def open(self) -> VfioUserFunction:
        Binding(self.name, self._sysfs.root, self._sysfs).bind()
        return VfioUserFunction(str(self._sockets[self.name]), DEADLINE_S)


class DyingFunction(Told):
    """A function whose server dies as soon as it has a driver; QEMU answers all ones from then."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)

    def write(self, index: int, offset: int, data: bytes) -> None:
        super().write(index, offset, data)
        self.gone |= (index, offset) == (Region.BAR0, Register.DRIVER_STATUS)


class SuccessionSource(PciSource):
    """A PCI function that dies so, and the one that is plugged in after it."""

    def __init__(self, address: str, successor: Path) -> None:
        super().__init__(address, WindowMap.AUTO)
        self.first, self._successor = DyingFunction(), successor

    def open(self) -> Function:
        if not self.first.gone:
            return self.first
        return VfioUserFunction(str(self._successor), DEADLINE_S)


class TurnsSource(PciSource):
    """A PCI function that is another one each time it is opened."""

    def __init__(self, address: str) -> None:
        super().__init__(address, WindowMap.AUTO)
        self.function = Told(lambda _: None)
        self.function.close()

    def open(self) -> Function:
        self.function = Told(lambda _: None)
        return self.function


class Stop:
    """What ends a run here, in place of a signal."""

    def __init__(self) -> None:
        self._fd, self.received = os.eventfd(0, os.EFD_CLOEXEC), False

    def fileno(self) -> int:
        return self._fd

    def serve(self) -> None: ...

    def asked(self) -> bool:
        return False

    def give(self) -> None:
        self.received = True
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        os.close(self._fd)


class Run:
    """A daemon on a thread, with slots for a VF: auto's, or that of a source given.

    vfs: VFs by address, in place of both. Functions: adding: the kernel is not done with it; early:
    it comes after the first look and before the daemon watches.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        vf: str,
        devices: dict[str, Device],
        source: PciSource | None = None,
        *,
        vfs: dict[str, str] | None = None,
        adding: str = "",
        early: str = "",
    ) -> None:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        self.sysfs = FakeSysfs(Path(scratch))
        self.sysfs.load("vfio-pci", "vfio_iommu_type1")
        for address in devices:
            self.sysfs.add(address)
        self.sysfs.adding |= {adding} - {""}
        # Sockets stay in the namespace where they were made.
        hotplug = Hotplug(0x1AF4, 0x10F0, source="udev")

        def meet() -> FakeUdevd:
            hotplug.watch()
            return FakeUdevd()

        self.udevd = in_new_namespace(meet)
        stack.callback(self.udevd.close)
        self.slots = stack.enter_context(Slots(stack.enter_context(hotplug), Serving()))
        sockets = {address: device.vfio_user for address, device in devices.items()}
        channels = [
            self.slots.add(SocketSlotSource(sockets, self.sysfs, address), VfTemplate(spec))
            for address, spec in (vfs or {}).items()
        ] or [self.slots.add(source or SocketSlotSource(sockets, self.sysfs), VfTemplate(vf))]
        attach(self.slots, channels)
        self._stop = stack.enter_context(contextlib.closing(Stop()))
        self._daemon = stack.enter_context(
            Daemon(channels, default_lcores(1), 32, self._stop, slots=self.slots)  # type: ignore[arg-type]
        )
        if early:
            self.udevd.say("add", early)
        self._last: list[stats.Snapshot] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        stack.callback(self.end)

    def _run(self) -> None:
        self._last.append(self._daemon.run(Silent(), float("inf"), DEADLINE_S)[1])

    def end(self) -> list[tuple[str, str, str]]:
        """Device, VF and state of all channels, at the end."""
        self._stop.give()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return [(c.device, c.vf, c.state) for c in self._last[0].channels]

    def serves(self, *addresses: str) -> bool:
        """Whether these functions are attached now, and no other."""
        return sorted(channel.name for channel in self.slots.attached) == sorted(addresses)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def devices(stack: contextlib.ExitStack, tmp_path: Path) -> dict[str, Device]:
    return {
        address: stack.enter_context(Device(tmp_path, name))
        for address, name in ((A, "a"), (B, "b"))
    }


def test_functions_come_and_go(stack: contextlib.ExitStack, devices: dict[str, Device]) -> None:
    run = Run(stack, "null", devices, early=A)
    wait_for(lambda: run.serves(A), "the first function")
    run.udevd.say("bind", A)
    run.udevd.say("add", B)
    wait_for(lambda: run.serves(A, B), "the second function")
    for _ in range(3):
        run.udevd.say("remove", A)
        wait_for(lambda: run.serves(B), "the first function to be let go")
        run.udevd.say("add", A)
        wait_for(lambda: run.serves(A, B), "the first function again")
    run.udevd.say("remove", B)
    wait_for(lambda: run.serves(A), "the second function to be let go")
    assert run.end() == [(A, "null", "waiting"), (B, "null", "down")]


def test_removed_and_added_before_anybody_looked(
    stack: contextlib.ExitStack, devices: dict[str, Device]
) -> None:
    run = Run(stack, "null", devices)
    run.udevd.say("add", A)
    wait_for(lambda: run.serves(A), "the function")
    for action in ("remove", "add") * 5:
        run.udevd.say(action, A)
    run.udevd.say("add", B)
    wait_for(lambda: run.serves(A, B), "both functions")
    assert devices[A].describe()["vfio_user"]["clients"] >= 2  # let go in between
    assert run.end() == [(A, "null", "waiting"), (B, "null", "waiting")]


def test_one_vf_serves_each_function_in_turn(
    stack: contextlib.ExitStack, devices: dict[str, Device], tmp_path: Path
) -> None:
    spec = f"pcap:,{tmp_path}/out"
    run = Run(stack, spec, devices)
    run.udevd.say("add", A)
    run.udevd.say("add", B)
    wait_for(lambda: run.serves(A), "the first function")
    run.udevd.say("remove", A)
    wait_for(lambda: run.serves(B), "the other's turn")
    run.udevd.say("add", A)
    run.udevd.say("remove", B)
    wait_for(lambda: run.serves(A), "the first one's second turn")
    assert run.end() == [(A, spec, "waiting")]


def test_numbered_vfs(
    stack: contextlib.ExitStack, devices: dict[str, Device], tmp_path: Path
) -> None:
    run = Run(stack, f"pcap:,{tmp_path}/out{{n}}", devices)
    run.udevd.say("add", B)
    wait_for(lambda: run.serves(B), "the first function")
    run.udevd.say("add", A)
    wait_for(lambda: run.serves(A, B), "the second function")
    specs = [f"pcap:,{tmp_path}/out{number}" for number in (0, 1)]
    assert run.end() == [(B, specs[0], "waiting"), (A, specs[1], "waiting")]


def test_a_function_that_cannot_be_attached_and_one_that_can(
    stack: contextlib.ExitStack, devices: dict[str, Device]
) -> None:
    devices[A].kill()
    assert devices[A].wait() != 0
    run = Run(stack, "null", devices)
    run.udevd.say("add", A)
    run.udevd.say("add", B)
    wait_for(lambda: run.serves(B), "the function that can")
    assert (B, "null", "waiting") in run.end()


def test_a_function_that_the_kernel_is_not_done_with(
    stack: contextlib.ExitStack, devices: dict[str, Device], caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(stack, "null", devices)
    run.sysfs.adding.add(A)
    run.udevd.say("add", A)
    probes = f"drivers_probe {A}"
    wait_for(lambda: run.sysfs.written.count(probes) >= 3, "it to be tried again")
    run.udevd.say("add", B)
    wait_for(lambda: run.serves(B), "the function that the kernel is done with")
    run.sysfs.adding.clear()
    wait_for(lambda: run.serves(A, B), "the other one")
    assert run.slots.due == float("inf")
    (line,) = [line for line in caplog.messages if "no driver has it" in line]
    assert line.startswith(f"cannot bind {A}: the kernel did not take vfio-pci: ")
    assert line.endswith("; dmesg tells why; trying again for as long as it is there")
    run.end()


def test_a_function_that_goes_before_it_could_be_attached(
    stack: contextlib.ExitStack, devices: dict[str, Device]
) -> None:
    run = Run(stack, "null", devices)
    run.sysfs.adding.add(A)
    run.udevd.say("add", A)
    wait_for(lambda: run.slots.due < float("inf"), "the first try")
    run.udevd.say("remove", A)
    wait_for(lambda: run.slots.due == float("inf"), "it to be forgotten")
    run.end()


def test_one_of_two_that_cannot_be_attached_at_first(
    stack: contextlib.ExitStack, devices: dict[str, Device], caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(stack, "", devices, vfs={A: "null", B: "null"}, adding=A)
    wait_for(lambda: run.serves(B), "the function that can")
    assert "; waiting for it" in caplog.text  # no uevent has told of it yet
    run.sysfs.adding.clear()
    run.udevd.say("add", A)
    wait_for(lambda: run.serves(A, B), "the other one")
    assert run.end() == [(A, "null", "waiting"), (B, "null", "waiting")]


def test_one_of_two_whose_vf_cannot_be_opened_at_first(
    stack: contextlib.ExitStack, devices: dict[str, Device], tmp_path: Path
) -> None:
    spec = f"pcap:,{tmp_path}/away/out"
    run = Run(stack, "", devices, vfs={A: spec, B: "null"})
    wait_for(lambda: run.serves(B), "the function that can")
    run.udevd.say("add", A)
    wait_for(lambda: run.slots.due < float("inf"), "it to be tried again")
    (tmp_path / "away").mkdir()
    wait_for(lambda: run.serves(A, B), "the other one")
    assert run.end() == [(A, spec, "waiting"), (B, "null", "waiting")]


def test_none_can_be_attached(
    stack: contextlib.ExitStack, devices: dict[str, Device], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(VhostPciError, match=f"cannot bind {A}: the kernel did not take vfio-pci"):
        Run(stack, "", devices, vfs={A: "null"}, adding=A)
    assert caplog.text == ""  # whoever catches it says it


def test_options_that_cannot_be_meant_end_a_run_that_serves_others(
    stack: contextlib.ExitStack, devices: dict[str, Device]
) -> None:
    with pytest.raises(UsageError, match="this is no PCI address"):
        Run(stack, "", devices, vfs={B: "null", "none": "null"})


def test_a_server_that_dies(
    stack: contextlib.ExitStack, devices: dict[str, Device], tmp_path: Path
) -> None:
    run = Run(stack, "null", devices)
    run.udevd.say("add", A)
    wait_for(lambda: run.serves(A), "the function")
    devices[A].kill()
    wait_for(run.serves, "the loss")
    for path in (devices[A].vhost_user, devices[A].vfio_user):
        path.unlink()
    stack.enter_context(Device(tmp_path, "a"))
    run.udevd.say("remove", A)
    run.udevd.say("add", A)
    wait_for(lambda: run.serves(A), "the function plugged in anew")
    assert run.end() == [(A, "null", "waiting")]


def test_a_server_that_dies_before_it_was_served(
    stack: contextlib.ExitStack, devices: dict[str, Device]
) -> None:
    """Attached, and gone at the first look: it is let go, and what comes next is served."""
    source = SuccessionSource(A, devices[A].vfio_user)
    run = Run(stack, "null", devices, source)
    assert source.first.gone
    wait_for(run.serves, "the loss")
    for action in "remove", "add":
        run.udevd.say(action, A)
    wait_for(lambda: run.serves(A), "the function plugged in anew")
    assert run.end() == [(A, "null", "waiting")]


def test_a_server_that_died_is_told_within_a_second(
    stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """All registers read ones. The first try does not count: only later ones wait for a look."""
    source = TurnsSource(A)
    run = Run(stack, "null", {}, source)

    def served() -> bool:
        return run.serves(A) and Register.ACK in dict(source.function.writes)

    for number in range(TRIES):
        wait_for(served, "the function")
        caplog.clear()
        died_at = time.time()
        source.function.gone = True
        wait_for(run.serves, "the loss")
        (told,) = [each for each in caplog.records if "its device is gone" in each.getMessage()]
        if number and told.created - died_at <= TOLD_WITHIN_S:
            break
        run.udevd.say("remove", A)
        run.udevd.say("add", A)
    else:
        pytest.fail(f"not once in {TRIES} tries within {TOLD_WITHIN_S} s")
