"""Queue pairs that are switched on and off (`ethtool -L`) while others carry frames."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tests.pmd.many_pairs import Vm1
from tests.pmd.processes import Device, pmd
from tests.pmd.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = 16
BURST = 32


def test_pairs_come_and_go_under_traffic(tmp_path: Path) -> None:
    """No frame of a pair that stays is lost, doubled or late, whatever the other fifteen do."""
    arguments = ("run", "--json", "--lcores", "0-1", "--vf", "loop")
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(tmp_path, "a", "--queue-pairs", str(PAIRS)))
        daemon = stack.enter_context(pmd(*arguments, "--device", device.name))
        vm1 = stack.enter_context(Vm1(device.vhost_user, PAIRS))
        steady, arrived, rounds = vm1.pairs[0], [], 0
        for other in range(1, PAIRS):
            for value in (0, 1):
                steady.send(BURST)
                vm1.enable(other, value)  # answered only once the driver has followed
                arrived += steady.take()
                rounds += 1
                wait_for(steady.all_sent, "the steady pair")
        sent = rounds * BURST

        def all_arrived() -> bool:
            arrived.extend(steady.take())
            return len(arrived) >= sent

        wait_for(all_arrived, "the steady pair's frames")
        assert arrived == list(range(sent))
        for pair in vm1.pairs[1:]:  # and each of the others carries frames again
            pair.send(BURST)
            wait_for(pair.all_sent, "a pair that was off")
            got: list[int] = []
            wait_for(lambda got=got, pair=pair: got.extend(pair.take()) or len(got) == BURST, "it")  # type: ignore[misc]
            assert got == list(range(BURST))
        assert daemon.stop() == 0
        (channel,) = daemon.json()["channels"]
        assert channel["reconfigurations"] >= 2 * (PAIRS - 1)
        assert channel["vm1_to_vf"]["drops"] == channel["vf_to_vm1"]["drops"] == {}


def test_a_pair_that_is_off_gives_its_frames_back_unsent(tmp_path: Path) -> None:
    """vhost-user, "ring states": transmit buffers are returned, receive buffers left alone."""
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(tmp_path, "a", "--queue-pairs", str(PAIRS)))
        daemon = stack.enter_context(
            pmd("run", "--json", "--lcores", "0", "--vf", "loop", "--device", device.name)
        )
        vm1 = stack.enter_context(Vm1(device.vhost_user, PAIRS))
        first, last = vm1.pairs[0], vm1.pairs[-1]
        vm1.enable(PAIRS - 1, 0)
        last.send(BURST)
        first.send(1)
        wait_for(last.all_sent, "the buffers")
        wait_for(lambda: first.take() == [0], "a frame of another pair")
        assert last.take() == []
        vm1.enable(PAIRS - 1, 1)
        last.send(1)
        wait_for(lambda: last.take() == [BURST], "the first frame after")
        assert daemon.stop() == 0
        (channel,) = daemon.json()["channels"]
        assert channel["vm1_to_vf"]["drops"] == {"disabled": BURST}


def test_frames_for_pairs_that_are_off_come_by_those_that_are_not(tmp_path: Path) -> None:
    """virtio 1.3, 5.1.6.5.6: the VF still gives them their flows, here what they sent."""
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(tmp_path, "a", "--queue-pairs", str(PAIRS)))
        arguments = ("run", "--json", "--lcores", "0-1", "--vf", "loop", "--device", device.name)
        daemon = stack.enter_context(pmd(*arguments))
        vm1 = stack.enter_context(Vm1(device.vhost_user, PAIRS))
        for number in range(2, PAIRS):
            vm1.enable_ring(2 * number, 0)  # receiving alone: what they send comes back
        for pair in vm1.pairs:
            pair.send(BURST)
        got: tuple[list[int], list[int]] = ([], [])

        def all_came() -> bool:
            for numbers, pair in zip(got, vm1.pairs, strict=False):
                numbers.extend(pair.take())
            return sum(map(len, got)) >= PAIRS * BURST

        wait_for(all_came, "the frames of all pairs")
        for numbers in got:
            assert sorted(numbers) == sorted([*range(BURST)] * (PAIRS // 2))
        assert [pair.take() for pair in vm1.pairs[2:]] == [[]] * (PAIRS - 2)
        for number in range(2, PAIRS):
            vm1.enable_ring(2 * number, 1)
        for pair in vm1.pairs[2:]:
            pair.send(1)
            wait_for(lambda pair=pair: pair.take() == [BURST], "a frame by its own ring")  # type: ignore[misc]
        assert daemon.stop() == 0
        (channel,) = daemon.json()["channels"]
        assert channel["vm1_to_vf"]["drops"] == channel["vf_to_vm1"]["drops"] == {}
