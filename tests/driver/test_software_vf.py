"""VF specs, and what opening them does to the machine, errors first."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from driver.offloads import Offloads
from driver.software_vf import FRAME_BYTES_MAX, KINDS, PortSpec, abi, parse_vf
from guest.errors import UsageError, VhostPciError
from pmd.kernel_abi import FRAME_MAX
from tests.driver.opening import few_descriptors, opened, without_capabilities
from tests.kernel.namespace import ip, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


TUNGETIFF = 0x800454D2  # linux/if_tun.h


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ("", "there is no such kind; use null, copy, loop, patch, gen, tap, packet, dgram, pcap"),
        ("ring", "there is no such kind"),
        ("Null", "there is no such kind"),
        ("null:", "nothing follows the colon"),
        ("null:x", "it takes no parameters; the form is null: takes every frame"),
        ("loop:1", "it takes no parameters"),
        ("gen:", "nothing follows the colon"),
        ("gen:59", f"frames have 60 to {FRAME_BYTES_MAX} bytes"),
        (f"gen:{FRAME_BYTES_MAX + 1}", f"frames have 60 to {FRAME_BYTES_MAX} bytes"),
        ("gen:" + "9" * 5000, f"frames have 60 to {FRAME_BYTES_MAX} bytes"),
        ("gen:-64", "the frame size is not a number"),
        ("gen:64,64", "the frame size is not a number"),
        ("gen:\u0663\u0664\u0665", "the frame size is not a number"),
        ("tap", "the interface's name is missing"),
        ("tap:", "nothing follows the colon"),
        ("tap:" + "x" * 16, "an interface's name has at most 15 bytes"),
        ("tap:\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9", "at most 15 bytes"),
        ("tap:a/b", "this cannot be an interface's name"),
        ("tap:t%d", "this cannot be an interface's name"),
        ("tap:..", "this cannot be an interface's name"),
        ("packet", "the interface's name is missing"),
        ("packet:a b", "this cannot be an interface's name"),
        ("xdp", "the interface's name is missing"),
        ("xdp:a/b", "this cannot be an interface's name"),
        ("dgram", "it takes two names with one comma between them"),
        ("dgram:/a", "it takes two names with one comma between them"),
        ("dgram:/a,/b,/c", "it takes two names with one comma between them"),
        ("dgram:,/b", "both sockets need a path"),
        ("dgram:/a,", "both sockets need a path"),
        ("dgram:/a,/a", "LOCAL and REMOTE are the same"),
        ("dgram:/a,/" + "b" * 107, "a socket's path has at most 107 bytes"),
        ("dgram:/a,/b\0", "a name cannot hold a zero byte"),
        ("pcap", "it takes two names"),
        ("pcap:in", "it takes two names"),
        ("pcap:,", "at least one file is needed"),
        ("igbvf", "nothing is no PCI address"),
        ("igbvf:eth0", "eth0 is no PCI address"),
        ("igbvf:01:10.0,", "nothing is no MAC address"),
        ("igbvf:01:10.0,52:54:00:12:34", "52:54:00:12:34 is no MAC address"),
        ("igbvf:01:10.0,00:00:00:00:00:00", "it is all zeros"),
        ("igbvf:01:10.0,01:00:5e:00:00:01", "it is a multicast address"),
        ("igbvf:01:10.0,mtu=67", "its MTU is 68 to 9216"),
        ("igbvf:01:10.0,mtu=9217", "its MTU is 68 to 9216"),
        ("igbvf:01:10.0,mtu=+68", "its MTU is 68 to 9216"),
        ("igbvf:01:10.0,mtu=", "its MTU is 68 to 9216"),
        ("igbvf:01:10.0,mtu=1500,mtu=1500", "its options are mtu and vlans, once each"),
        ("igbvf:01:10.0,size=1500", "its options are mtu and vlans, once each"),
        ("igbvf:01:10.0,vlans=", "VLANs are 1 to 4094, with + between them"),
        ("igbvf:01:10.0,vlans=5+4095", "VLANs are 1 to 4094, with + between them"),
        ("igbvf:01:10.0,vlans=0", "VLANs are 1 to 4094, with + between them"),
        ("virtio-net", "nothing is no PCI address"),
        ("virtio-net:01:00.0,1:2", "1:2 is no MAC address"),
        ("virtio-net:0000:01:00.0,01:00:5e:00:00:01", "it is a multicast address"),
    ],
)
def test_what_cannot_be_meant(spec: str, cause: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_vf(spec)
    assert cause in str(refusal.value)
    assert refusal.value.exit_status == 2


def test_every_kind_has_its_help_and_an_example() -> None:
    examples = ["null", "copy", "loop", "patch:lan", "gen", "tap:t0", "packet:v0", "dgram:/a,/b"]
    examples += ["pcap:a,", "xdp:v0"]
    examples += [f"{kind}:01:10.0,52:54:00:12:34:56" for kind in ("igbvf", "virtio-net")]
    assert [parse_vf(example).kind for example in examples] == list(KINDS)
    for options in ("mtu=9000", "52:54:00:12:34:56,mtu=68,vlans=1", "vlans=7+4094"):
        assert parse_vf(f"igbvf:01:10.0,{options}").kind == "igbvf"
    assert [parse_vf(example).spec for example in examples] == examples
    for kind, words in KINDS.items():
        assert words.startswith(kind)
        assert "\n" not in words


def test_frame_size_is_the_kernels() -> None:
    assert FRAME_BYTES_MAX == FRAME_MAX


def test_plain_kinds_open_nothing() -> None:
    assert parse_vf("null").open(2) == [PortSpec("null")] * 2
    assert parse_vf("copy").open(1) == [PortSpec("copy")]
    assert parse_vf("loop").open(1) == [PortSpec("loop")]
    assert parse_vf("gen").open(1) == [PortSpec("gen", frame_bytes=60)]
    assert parse_vf("gen:1514").open(1) == [PortSpec("gen", frame_bytes=1514)]


class TestTap:
    @pytest.fixture(autouse=True)
    def _network(self) -> Iterator[None]:
        with namespace():
            yield

    @pytest.mark.parametrize("queue_pairs", [1, 4])
    def test_each_queue_pair_has_a_queue_of_the_named_device(self, queue_pairs: int) -> None:
        with opened(parse_vf("tap:t0"), queue_pairs) as specs:
            assert len({spec.fd for spec in specs}) == queue_pairs
            for spec in specs:
                answer = fcntl.ioctl(spec.fd, TUNGETIFF, bytes(abi.IFREQ.size))
                name, flags = abi.IFREQ.unpack(answer)
                assert name.rstrip(b"\0") == b"t0"
                assert flags & abi.IFF_TAP
                assert flags & abi.IFF_NO_PI
                assert flags & abi.IFF_VNET_HDR
                assert not os.get_blocking(spec.fd)
                assert not os.get_inheritable(spec.fd)
            offloads = specs[0].offloads
            assert Offloads.CSUM | Offloads.TSO4 | Offloads.TSO6 | Offloads.ECN in offloads
            assert all(spec == PortSpec("tap", spec.fd, offloads=offloads) for spec in specs)

    def test_a_device_of_one_queue_is_that_of_all(self) -> None:
        ip("tuntap add t0 mode tap")
        with opened(parse_vf("tap:t0"), 4) as specs:
            assert len(specs) == 1

    def test_a_persistent_device_stays(self) -> None:
        ip("tuntap add t0 mode tap")
        with opened(parse_vf("tap:t0")):
            pass
        ip("link show t0")

    @pytest.mark.parametrize(
        ("prepare", "queue_pairs", "cause"),
        [
            ("tuntap add t0 mode tun", 1, "exists and is not a TAP device for 1 queue pairs"),
            ("tuntap add t0 mode tap multi_queue", 1, "is not a TAP device for 1 queue pairs"),
            ("link add t0 type veth", 1, "exists and is not a TAP device"),
        ],
    )
    def test_another_device_of_that_name(self, prepare: str, queue_pairs: int, cause: str) -> None:
        ip(prepare)
        with pytest.raises(VhostPciError, match=cause):
            parse_vf("tap:t0").open(queue_pairs)

    def test_a_device_in_use(self) -> None:
        with (
            opened(parse_vf("tap:t0")),
            pytest.raises(VhostPciError, match="VF tap:t0: the interface is in use; stop"),
        ):
            parse_vf("tap:t0").open(1)

    def test_no_permission(self) -> None:
        with (
            without_capabilities(),
            pytest.raises(VhostPciError, match="no permission; run as root, or with CAP_NET_ADMIN"),
        ):
            parse_vf("tap:t0").open(1)

    def test_all_or_nothing(self) -> None:
        with few_descriptors(2), pytest.raises(VhostPciError, match="too many open files"):
            parse_vf("tap:t0").open(5)
        with pytest.raises(subprocess.CalledProcessError):
            ip("link show t0")


class TestPacket:
    @pytest.fixture(autouse=True)
    def _network(self) -> Iterator[None]:
        with namespace():
            ip("link add v0 type veth peer name v1")
            yield

    def test_a_missing_interface(self) -> None:
        with pytest.raises(VhostPciError, match="packet:v9: there is no such interface"):
            parse_vf("packet:v9").open(1)

    def test_an_interface_that_is_down(self) -> None:
        with pytest.raises(VhostPciError, match="the interface is down; ip link set v0 up"):
            parse_vf("packet:v0").open(1)

    def test_an_interface_without_ethernet(self) -> None:
        ip("tuntap add n0 mode tun")
        ip("link set n0 up")
        with pytest.raises(VhostPciError, match="it is not an Ethernet interface"):
            parse_vf("packet:n0").open(1)

    def test_no_permission(self) -> None:
        ip("link set v0 up")
        with (
            without_capabilities(),
            pytest.raises(VhostPciError, match="no permission; run as root, or with CAP_NET_RAW"),
        ):
            parse_vf("packet:v0").open(1)

    @pytest.mark.parametrize("queue_pairs", [1, 3])
    def test_each_queue_pair_has_a_bound_socket(self, queue_pairs: int) -> None:
        ip("link set v0 up")
        with opened(parse_vf("packet:v0"), queue_pairs) as specs:
            assert len({spec.fd for spec in specs}) == queue_pairs
            groups = set()
            for spec in specs:
                assert spec == PortSpec("packet", spec.fd)
                with socket.socket(fileno=os.dup(spec.fd)) as each:
                    assert each.getsockname()[:2] == ("v0", abi.ETH_P_ALL)
                    assert not os.get_blocking(spec.fd)
                    groups.add(each.getsockopt(abi.SOL_PACKET, abi.PACKET_FANOUT))
            assert len(groups) == 1
            assert (groups == {0}) == (queue_pairs == 1)

    def test_two_vfs_on_one_interface_are_two_groups(self) -> None:
        ip("link set v0 up")
        groups = set()
        with opened(parse_vf("packet:v0"), 2) as one, opened(parse_vf("packet:v0"), 2) as other:
            for spec in one + other:
                with socket.socket(fileno=os.dup(spec.fd)) as each:
                    groups.add(each.getsockopt(abi.SOL_PACKET, abi.PACKET_FANOUT) & 0xFFFF)
        assert len(groups) == 2

    def test_all_or_nothing(self) -> None:
        ip("link set v0 up")
        with few_descriptors(2), pytest.raises(VhostPciError, match="too many open files"):
            parse_vf("packet:v0").open(5)


class TestDgram:
    def test_the_socket_is_there_while_the_vf_is(self, tmp_path: Path) -> None:
        ours, peer = tmp_path / "ours", str(tmp_path / "peer")
        with opened(parse_vf(f"dgram:{ours},{peer}")) as specs:
            assert stat.S_ISSOCK(ours.stat().st_mode)
            assert specs == [PortSpec("dgram", specs[0].fd, output=peer)]
            assert not os.get_blocking(specs[0].fd)
        assert not ours.exists()

    def test_a_path_in_use(self, tmp_path: Path) -> None:
        spec = f"dgram:{tmp_path}/ours,{tmp_path}/peer"
        with opened(parse_vf(spec)):
            with pytest.raises(VhostPciError, match=r"/ours is in use; stop the process"):
                parse_vf(spec).open(1)
            assert (tmp_path / "ours").exists()

    def test_a_path_in_use_by_a_stream_socket(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(str(tmp_path / "ours"))
            other.listen()
            with pytest.raises(VhostPciError, match=r"/ours is in use"):
                parse_vf(f"dgram:{tmp_path}/ours,{tmp_path}/peer").open(1)
        assert (tmp_path / "ours").exists()

    def test_a_socket_file_left_behind_is_replaced(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
            gone.bind(str(tmp_path / "ours"))
        with (
            opened(parse_vf(f"dgram:{tmp_path}/ours,{tmp_path}/peer")),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer,
        ):
            peer.sendto(b"hello", str(tmp_path / "ours"))

    def test_a_file_that_is_no_socket_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "ours").write_text("precious")
        with pytest.raises(VhostPciError, match="exists and is not a socket; name another path"):
            parse_vf(f"dgram:{tmp_path}/ours,{tmp_path}/peer").open(1)
        assert (tmp_path / "ours").read_text() == "precious"

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(VhostPciError, match="no such file or directory"):
            parse_vf(f"dgram:{tmp_path}/none/ours,{tmp_path}/peer").open(1)

    def test_all_or_nothing(self, tmp_path: Path) -> None:
        with few_descriptors(0), pytest.raises(VhostPciError, match="too many open files"):
            parse_vf(f"dgram:{tmp_path}/ours,{tmp_path}/peer").open(1)
        assert list(tmp_path.iterdir()) == []

    def test_another_ones_file_at_our_path_stays(self, tmp_path: Path) -> None:
        vf = parse_vf(f"dgram:{tmp_path}/ours,{tmp_path}/peer")
        with opened(vf):
            (tmp_path / "ours").unlink()
            (tmp_path / "other").write_text("another one's")
            (tmp_path / "other").rename(tmp_path / "ours")
        vf.close()
        assert (tmp_path / "ours").exists()

    def test_it_opens_again(self, tmp_path: Path) -> None:
        vf = parse_vf(f"dgram:{tmp_path}/ours,{tmp_path}/peer")
        os.close(vf.open(1)[0].fd)
        with opened(vf, 2):
            assert (tmp_path / "ours").exists()
        assert not (tmp_path / "ours").exists()


class TestPcap:
    def test_input_and_output(self, tmp_path: Path) -> None:
        (tmp_path / "in").touch()
        paths = str(tmp_path / "in"), str(tmp_path / "out")
        assert parse_vf("pcap:{},{}".format(*paths)).open(1) == [
            PortSpec("pcap", input=paths[0], output=paths[1])
        ]
        assert parse_vf(f"pcap:{paths[0]},").open(1) == [PortSpec("pcap", input=paths[0])]
        assert parse_vf(f"pcap:,{paths[1]}").open(1) == [PortSpec("pcap", output=paths[1])]

    def test_a_missing_input_leaves_the_output_as_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("precious")
        with pytest.raises(VhostPciError, match="no such file or directory"):
            parse_vf(f"pcap:{tmp_path}/in,{tmp_path}/out").open(1)
        assert (tmp_path / "out").read_text() == "precious"

    def test_input_and_output_in_one_file(self, tmp_path: Path) -> None:
        (tmp_path / "in").write_text("precious")
        (tmp_path / "out").symlink_to("in")
        with pytest.raises(VhostPciError, match="input and output are the same file"):
            parse_vf(f"pcap:{tmp_path}/in,{tmp_path}/out").open(1)
        assert (tmp_path / "in").read_text() == "precious"

    def test_an_output_that_cannot_be(self, tmp_path: Path) -> None:
        with pytest.raises(VhostPciError, match="is a directory"):
            parse_vf(f"pcap:,{tmp_path}").open(1)
