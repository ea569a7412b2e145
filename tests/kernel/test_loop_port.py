"""The loop port: a patch whose other end is this one, and that waits for buffers."""

from __future__ import annotations

import numpy as np

from driver.offload import PLAIN
from driver.software_vf import PortSpec
from pmd.kernel import DirectionStats, Port, Queue, Work
from pmd.kernel_abi import FRAME_MAX
from tests.kernel.rig import BIG, BIG_SIZE, WRITE, Rig
from tests.kernel.test_offload import drops
from tests.kernel.test_patch import FRAME, received, send, stock


def test_a_loop_waits_for_buffers_and_loses_nothing() -> None:
    frames = [(bytes([number]) * (60 + number), PLAIN) for number in range(8)]
    with Rig(8) as sender, Rig(8) as receiver, Port(PortSpec("loop")) as port:
        send(sender, frames)
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        work = Work(tx, rx, port)
        assert work.turn(32) == 0
        stock(receiver, 3)
        assert work.turn(32) == 3
        assert work.turn(32) == 0
        found = received(receiver, 3)
        stock(receiver, 8)
        assert work.turn(32) == 5
        assert found + received(receiver, 5) == frames
        assert (tx.stats.packets, rx.stats.packets) == (8, 8)
        assert drops(tx.stats) == drops(rx.stats) == {}


def test_a_loop_takes_the_longest_frame() -> None:
    with Rig(8) as sender, Rig(8) as receiver, Port(PortSpec("loop")) as port:
        longest = bytes(range(256)) * 257
        send(sender, [(longest[:FRAME_MAX], PLAIN)])
        receiver.chain(0, [(BIG, BIG_SIZE)], WRITE)
        tx, rx = sender.queue(DirectionStats()), receiver.queue(DirectionStats())
        assert Work(tx, rx, port).turn(32) == 1
        assert received(receiver, 1, BIG_SIZE) == [(longest[:FRAME_MAX], PLAIN)]


def test_a_loop_without_receive_ring_drops() -> None:
    with Rig(8) as sender, Port(PortSpec("loop")) as port:
        send(sender, [(FRAME, PLAIN)])
        tx = sender.queue(DirectionStats())
        assert Work(tx, None, port).turn(32) == 1
    assert drops(tx.stats) == {"vf_down": 1}


def test_a_loop_in_one_memory() -> None:
    """VM1's transmit buffer may be its receive buffer as well: its own trouble."""
    with Rig(8) as rig, Port(PortSpec("loop")) as port:
        config = rig.config()
        rx_rings = config._replace(
            desc=config.desc + 0x200, avail=config.avail + 0x200, used=config.used + 0x200
        )
        map_ = rig.kernel_map()
        rig.chain(0, [(BIG, 2000)])
        rig.poke(rx_rings.desc, np.array([BIG + 40, 4000 | WRITE << 32], "<u8").tobytes())
        rig.poke(rx_rings.avail, bytes([0, 0, 1, 0, 0, 0]))
        rig.poke(rx_rings.used, bytes(4))
        tx = rig.queue(DirectionStats())
        with Queue(rx_rings, map_, DirectionStats(), "receive") as rx:
            assert Work(tx, rx, port).turn(32) == 1
        assert tx.stats.packets == 1
