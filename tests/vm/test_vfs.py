"""A virtio card in VM2 as VM1's way out: its interface by AF_XDP, then itself by its own rings."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from guest.errors import VhostPciError
from tests.kernel.namespace import answerer
from tests.vm.second_card import WIRE, Receive, Send, second_card, tap
from tests.vm.wire import (
    CAPTURED_BYTES,
    goes_on,
    loaded,
    require_each_once,
    require_legal_segments,
    require_segments,
    sends_on,
    told,
    vm1_counters,
)
from tools.lab.check import require_no_copies
from tools.lab.nic import Nic
from tools.lab.picture import OUTSIDE_ADDRESS, STEP_TIMEOUT_S, TRANSFER, VF_KINDS, VM1_ADDRESS

if TYPE_CHECKING:
    from tests.vm.conftest import Stage
    from tools.lab.picture import Picture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

TRANSFER_BYTES = 50_000_000
PORTS = (5001, 5002)
PAIRS = len(PORTS)
EACH_BYTES = 5_000_000  # more than once round each ring
TAP_ADDRESS = "10.77.0.4"
WAY = VF_KINDS["virtio-net"]
# A function-level reset of what its own driver does not have.
RESET = """\
cd /sys/bus/pci/drivers/vfio-pci
for function in $(grep -l 0x1041 */device | cut -d / -f 1); do
    echo flr > $function/reset_method
    echo 1 > $function/reset
done
"""
SLEEPS = ("--poll", "interrupt")  # each frame that comes has to wake it


@pytest.fixture
def plugged(stage: Stage, cleared: None) -> Picture:  # noqa: ARG001 - what it does comes after
    """A VM1 that leaves nothing to its device, and VM2 with the function and the card."""
    return stage.picture(_bring_up)


def _bring_up(picture: Picture) -> None:
    picture.nic = Nic(queue_pairs=PAIRS)
    picture.start_device()
    picture.start_vm1()
    use_pairs(picture, 1)
    picture.start_vm2(kind="virtio-net")
    picture.bind(picture.plug())
    picture.finish_checksums()


def use_pairs(picture: Picture, count: int) -> None:
    """Have VM1 use so many of its queue pairs."""
    picture.vm1.agent.shell(f"ethtool -L eth0 combined {count}")


def answered(picture: Picture) -> bool:
    """Whether outside answers VM1; a driver that was just given its program may lose the first."""
    look = f"until ping -c 1 -W 2 {OUTSIDE_ADDRESS} >/dev/null; do"
    script = f"n=0; {look} n=$((n+1)); [ $n -lt 15 ] || break; done; [ $n -lt 15 ] && echo yes"
    return "yes" in picture.vm1.agent.shell(f"{script} || true", timeout_s=STEP_TIMEOUT_S)


def traffic(picture: Picture, size_bytes: int) -> None:
    if not answered(picture):
        tell_where_frames_end(picture)
    assert answered(picture)
    picture.ping(3)
    picture.transfer(picture.vm1, picture.outside, size_bytes)
    picture.transfer(picture.outside, picture.vm1, size_bytes)


def leave_offloads(picture: Picture) -> None:
    """Have VM1 leave checksums and segmenting to its device."""
    picture.vm1.agent.shell("ethtool -K eth0 tx on tso on")


def tell_where_frames_end(picture: Picture) -> None:
    for vm in (picture.vm1, picture.vm2, picture.outside):
        print(
            vm.agent.shell("ip -s link; ip neigh; cat /proc/interrupts", timeout_s=STEP_TIMEOUT_S)
        )
    # On a busy machine the emulated card outside has been seen to take no frame at all any more.
    picture.outside.agent.shell("ip link set eth0 down; ip link set eth0 up")


def test_the_interface_by_af_xdp(plugged: Picture) -> None:
    former = vm1_counters(plugged)
    pmd = plugged.run_pmd("--json", *SLEEPS)
    assert "VF auto: xdp:eth0, a network card driven by virtio_net" in pmd.text
    traffic(plugged, TRANSFER_BYTES)
    plugged.sweep(WAY.vlan)
    leave_offloads(plugged)
    require_legal_segments(plugged)
    plugged.finish_checksums()
    with loaded(plugged) as stream:
        plugged.vm2.agent.shell("ip link set eth0 down")
        sends_on(stream)
        plugged.vm2.agent.shell("ip link set eth0 up")
        goes_on(stream)
    (channel,) = plugged.stop_pmd()["channels"]
    assert "copy, driver mode, 1 queue, need_wakeup" in pmd.text
    for direction in ("vm1_to_vf", "vf_to_vm1"):
        assert channel[direction]["bytes"] > TRANSFER_BYTES
    require_each_once(plugged, channel, former)
    assert channel["vm1_to_vf"]["drops"].keys() == {"vf_down"}


def test_the_card_without_a_copy(plugged: Picture) -> None:
    """From here on its driver does not have the card."""
    former = vm1_counters(plugged)
    plugged.start_pmd("virtio-net", "--json", *SLEEPS, "--copy", "never")
    traffic(plugged, TRANSFER_BYTES)
    plugged.sweep(WAY.vlan)
    with loaded(plugged) as stream:
        with told(plugged, "link down"):
            plugged.vm2.qmp.execute("set_link", name="wire0", up=False)
        sends_on(stream)
        plugged.vm2.qmp.execute("set_link", name="wire0", up=True)
        goes_on(stream)
        reset(plugged)
        goes_on(stream)
    (channel,) = plugged.stop_pmd()["channels"]
    require_each_once(plugged, channel, former)
    drops = channel["vm1_to_vf"]["drops"]
    assert {"vf_down"} <= drops.keys() <= {"vf_down", "vf_error"}
    require_uncopied(channel)


def reset(picture: Picture) -> None:
    with told(picture, "it was reset; opening it anew"):
        picture.vm2.agent.shell(RESET)


def require_uncopied(counted: dict[str, Any]) -> None:
    """Nothing was copied by a channel, or a pair of it; nor was what the card lost."""
    there, back = counted["vm1_to_vf"], counted["vf_to_vm1"]
    assert counted["tx_zero_copy"] == there["packets"] + there["drops"].get("vf_error", 0)
    assert counted["rx_zero_copy"] == back["packets"] > 0


def test_two_queue_pairs_by_two_of_a_card(plugged: Picture) -> None:
    """What a processor of VM1's sends is sent on its own pair, and answered there; the card is
    one with SR-IOV, and its VF has packed rings."""
    vm1 = plugged.vm1
    use_pairs(plugged, PAIRS)
    former = vm1_counters(plugged)
    with tap(TAP_ADDRESS, PAIRS) as queues, second_card(plugged, queues) as address:
        spec = WAY.spec.format(address)
        plugged.run_pmd("--json", *SLEEPS, "--copy", "never", "--vf", spec)
        assert f"VF {spec}: packed rings" in plugged.pmd.text
        vm1.agent.run("ping", "-c", "1", "-w", "60", TAP_ADDRESS, timeout_s=STEP_TIMEOUT_S)
        send_by_all_pairs(plugged)
        receive_by_all_pairs(plugged)
        leave_offloads(plugged)
        require_finished_by_the_card(plugged)
        (channel,) = plugged.stop_pmd()["channels"]
    require_each_once(plugged, channel, former)
    plugged.finish_checksums()
    use_pairs(plugged, 1)
    # A little of a stream may go by the other's: what an acknowledgement there lets go.
    for pair in channel["queue_pairs"]:
        require_uncopied(pair)
        for direction in ("vm1_to_vf", "vf_to_vm1"):
            assert pair[direction]["bytes"] > EACH_BYTES // 2


def pinned(number: int) -> list[str]:
    """An end of a transfer on that processor of VM1's."""
    return ["busybox", "taskset", f"{1 << number:x}", *TRANSFER]


def send_by_all_pairs(picture: Picture) -> None:
    with contextlib.ExitStack() as ends:
        receives = [ends.enter_context(Receive(TAP_ADDRESS, port)) for port in PORTS]
        sends = []
        for number, port in enumerate(PORTS):
            words = ["send", TAP_ADDRESS, str(port), str(EACH_BYTES)]
            sends.append(picture.vm1.agent.start(*pinned(number), *words))
        for receive, send in zip(receives, sends, strict=True):
            assert send.wait(STEP_TIMEOUT_S) == 0, send.text
            assert receive.digest() == send.output.decode().strip()


def receive_by_all_pairs(picture: Picture) -> None:
    """A flow comes by the pair that it was last acknowledged on: that of its receiver. What is
    under way when the card is reset comes again."""
    receives = []
    for number, port in enumerate(PORTS):
        words = ["receive", VM1_ADDRESS, str(port)]
        receives.append(picture.vm1.agent.start(*pinned(number), *words))
    with contextlib.ExitStack() as ends:
        for receive in receives:
            receive.wait_for("ready", STEP_TIMEOUT_S)
        sends = [ends.enter_context(Send(VM1_ADDRESS, port, EACH_BYTES)) for port in PORTS]
        reset(picture)
        for receive, send in zip(receives, sends, strict=True):
            sent = send.digest()
            assert receive.wait(STEP_TIMEOUT_S) == 0, receive.text
            assert receive.output.decode().split()[-2] == sent


def require_finished_by_the_card(picture: Picture) -> None:
    """What VM1 leaves to its device is left to the card, and on the wire it is done."""
    before, _ = vm1_counters(picture)
    with answerer(WIRE) as wire, Receive(TAP_ADDRESS, PORTS[0]) as receive:
        words = [*TRANSFER, "send", TAP_ADDRESS, str(PORTS[0]), str(CAPTURED_BYTES)]
        sent = picture.vm1.agent.run(*words, timeout_s=STEP_TIMEOUT_S).strip()
        assert receive.digest() == sent
        wire.setblocking(False)
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frames.append(wire.recv(1 << 16))
    after, _ = vm1_counters(picture)
    require_segments(frames, CAPTURED_BYTES, after - before)


def test_the_card_goes_under_load_and_comes_back(plugged: Picture) -> None:
    """The last one: the card is another one then. What VM1 leaves to it is done by us, who copy."""
    vm2, way = plugged.vm2, WAY
    pmd = plugged.start_pmd("virtio-net", "--json")
    leave_offloads(plugged)
    assert answered(plugged)
    require_legal_segments(plugged)
    load = plugged.vm1.agent.start("ping", "-i", "0.01", "-s", "1000", OUTSIDE_ADDRESS)
    load.wait_for("bytes from", STEP_TIMEOUT_S)
    vm2.unplug("wire0")
    pmd.wait_for("the kernel wants it back", STEP_TIMEOUT_S)
    pmd.wait_for("dropping frames meanwhile", STEP_TIMEOUT_S)
    assert pmd.status is None
    card = {"netdev": "wire0", "mac": "52:54:00:77:00:02"}
    vm2.plug("wire0", way.card, named={**way.properties, **card})
    vm2.agent.shell(
        "until [ -e /sys/class/net/eth0 ]; do sleep 0.2; done", timeout_s=STEP_TIMEOUT_S
    )
    vm2.agent.shell(way.prepare, timeout_s=STEP_TIMEOUT_S)
    plugged.wait_until_served()
    plugged.ping(3)
    load.signal()
    statistics = plugged.stop_pmd()
    assert statistics["channels"][0]["vm1_to_vf"]["drops"].keys() <= {"vf_down", "vf_error"}
    with pytest.raises(VhostPciError, match="without copies"):
        require_no_copies(statistics)
