"""Opening and closing an interface's XDP program and sockets, errors first."""

from __future__ import annotations

import functools
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from driver.software_vf import PortSpec, abi, parse_vf
from driver.software_vf.xdp_socket import XdpSocket
from guest import bpf
from guest.errors import VhostPciError
from pmd.ports import Ports
from tests.driver.opening import few_descriptors, opened, without_capabilities
from tests.kernel.namespace import ip, namespace
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

CAP_IPC_LOCK = 14  # linux/capability.h
HOLDER = """
import sys, time
from driver.software_vf import parse_vf
vf = parse_vf("xdp:v0")
specs = vf.open(2)
print("open", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _network() -> Iterator[None]:
    """v0 is the VF's, with two channels; v1 is the wire's."""
    with namespace():
        ip("link add v0 numrxqueues 2 numtxqueues 2 type veth peer name v1")
        ip("link set v0 up")
        ip("link set v1 up")
        yield


def index(name: str = "v0") -> int:
    return socket.if_nametoindex(name)


def test_a_missing_interface() -> None:
    with pytest.raises(VhostPciError, match="xdp:v9: there is no such interface; see: ip link"):
        parse_vf("xdp:v9").open(1)
    assert parse_vf("xdp:v9").queue_pairs_max is None
    assert parse_vf("xdp:v9").look() == ""


def test_an_interface_that_is_down() -> None:
    ip("link set v0 down")
    with pytest.raises(VhostPciError, match="the interface is down; ip link set v0 up"):
        parse_vf("xdp:v0").open(1)


@pytest.mark.parametrize("make", ["tuntap add n0 mode tun", "link set lo name n0"])
def test_an_interface_without_ethernet(make: str) -> None:
    ip(make)
    ip("link set n0 up")
    with pytest.raises(VhostPciError, match="xdp:n0: it is not an Ethernet interface"):
        parse_vf("xdp:n0").open(1)


def test_no_permission() -> None:
    with (
        without_capabilities(),
        pytest.raises(VhostPciError, match="no permission; run as root, or with CAP_NET_ADMIN"),
    ):
        parse_vf("xdp:v0").open(1)


def test_more_queue_pairs_than_channels() -> None:
    vf = parse_vf("xdp:v0")
    assert vf.queue_pairs_max == 2
    with pytest.raises(VhostPciError, match="2 channels, not 3; ethtool -L v0 combined 3"):
        vf.open(3)


@pytest.mark.parametrize("mode", [bpf.XDP_DRIVER_MODE, bpf.XDP_GENERIC_MODE])
def test_another_ones_program_is_left_alone(mode: int) -> None:
    sockets = bpf.create_socket_map(1, "other")
    passing = bpf.instruction(0xB7, value=2) + bpf.instruction(0x95)  # return XDP_PASS
    program = bpf.load_xdp_program(passing, 0, "other")
    link = bpf.attach_xdp(program, index(), mode)
    with pytest.raises(VhostPciError, match="xdp:v0: it has an XDP program or socket of another"):
        parse_vf("xdp:v0").open(1)
    assert "name other" in ip("link show v0")
    assert bpf.attached_interface(link) == index()
    for fd in (sockets, program, link):
        os.close(fd)
    with opened(parse_vf("xdp:v0")):
        assert "name pmd" in ip("link show v0")


def test_two_at_once() -> None:
    with (
        opened(parse_vf("xdp:v0")),
        pytest.raises(VhostPciError, match="it has an XDP program or socket of another process"),
    ):
        parse_vf("xdp:v0").open(1)


def test_another_ones_socket_on_a_queue() -> None:
    with (
        XdpSocket(index(), 1, abi.XDP_COPY, sends=True),
        pytest.raises(VhostPciError, match="it has an XDP program or socket of another process"),
    ):
        parse_vf("xdp:v0").open(1)
    assert "xdp" not in ip("link show v0")


@pytest.mark.parametrize("queue_pairs", [1, 2])
def test_a_port_has_every_so_manyth_queue(queue_pairs: int) -> None:
    with opened(parse_vf("xdp:v0"), queue_pairs) as specs:
        assert len(specs) == queue_pairs
        queues = [spec.xdp.queues if spec.xdp else () for spec in specs]
        assert [len(each) for each in queues] == [2 // queue_pairs] * queue_pairs
        assert len({queue.fd for each in queues for queue in each}) == 2
        # A port sends on its first queue alone.
        assert [[bool(q.tx_count) for q in each] for each in queues] == (
            [[True, False]] if queue_pairs == 1 else [[True], [True]]
        )
        assert all(spec == PortSpec("xdp", xdp=spec.xdp) for spec in specs)
        assert not any(os.get_inheritable(queue.fd) for each in queues for queue in each)


def test_how_it_was_opened_and_what_the_kernel_counted() -> None:
    """Nobody takes frames off its sockets, nor gave them buffers: they are lost, and told."""
    vf = parse_vf("xdp:v0")
    assert (vf.mode, set(vf.counters().values())) == ("", {0})
    lost = 0

    def more_than(count: int) -> bool:
        return vf.counters()["rx_dropped"] > count

    for _ in range(2):
        with opened(vf, 2), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            assert vf.mode == "copy, driver mode, 2 queues, need_wakeup"
            wire.bind(("v1", 0))
            wire.send(bytes(60))
            wait_for(functools.partial(more_than, lost), "the count")
            lost = vf.counters()["rx_dropped"]
        assert vf.counters()["rx_dropped"] >= lost  # of both openings
        lost = vf.counters()["rx_dropped"]
    assert vf.counters()["fill_ring_empty"] == lost
    assert vf.counters()["tx_ring_empty"] == 0


def test_one_that_is_prepared_is_opened_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whether VM1 then has one queue pair or two: for a card's driver each is a reset."""
    caplog.set_level(logging.INFO)
    ports = Ports(parse_vf("xdp:v0"))
    ports.prepare()
    for pairs in (1, 2, 1):
        ports.ensure(pairs)
        assert len(ports) == 2
    ports.close()
    assert caplog.text.count("driver mode, 2 queues") == 1


def test_nothing_stays() -> None:
    vf = parse_vf("xdp:v0")
    for _ in range(3):
        with opened(vf, 2):
            assert "prog/xdp" in ip("link show v0")
            assert "promiscuity 1 " in ip("-d link show v0")
        assert "xdp" not in ip("link show v0")
        assert "promiscuity 0 " in ip("-d link show v0")


def test_nothing_stays_of_a_process_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert "prog/xdp" in ip("link show v0")
        holder.send_signal(signal.SIGKILL)
    assert "xdp" not in ip("link show v0")
    assert "promiscuity 0 " in ip("-d link show v0")
    with opened(parse_vf("xdp:v0"), 2):
        pass


@pytest.mark.parametrize("more", range(1, 9))
def test_all_or_nothing(more: int) -> None:
    with few_descriptors(more), pytest.raises(VhostPciError, match="too many open files"):
        parse_vf("xdp:v0").open(2)
    assert "xdp" not in ip("link show v0")
    assert "promiscuity 0 " in ip("-d link show v0")


def test_memory_that_may_not_be_locked() -> None:
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, before[1]))
    try:
        with (
            without_capabilities(CAP_IPC_LOCK),
            pytest.raises(VhostPciError, match="no more memory may be locked; ulimit -l unlimited"),
        ):
            parse_vf("xdp:v0").open(1)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    assert "xdp" not in ip("link show v0")


def test_it_says_what_it_got(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pmd")
    with opened(parse_vf("xdp:v0"), 1):
        assert "VF xdp:v0: copy, driver mode, 2 queues, need_wakeup" in caplog.messages
    caplog.clear()
    ip("link set v0 name lower")
    ip("link add link lower name v0 type macvlan mode passthru")
    ip("link set v0 up")
    with opened(parse_vf("xdp:v0"), 1):
        assert "VF xdp:v0: copy, generic mode, 1 queue, need_wakeup" in caplog.messages
        assert any("its driver takes no XDP program: " in each for each in caplog.messages)
