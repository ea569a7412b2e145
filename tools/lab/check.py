"""`vhost-pci-lab check`: the whole picture once, a line a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError
from tools.lab.picture import VF_KINDS, VM1_MEMORY_MIB

if TYPE_CHECKING:
    from tools.lab.picture import Picture
    from tools.lab.prepare import Steps

_MIB = 1 << 20
# By kind of VF; later kernels' drivers do without copies.
_SAYS = {
    "xdp": "copy, generic mode",
    "xdp-igb": "zero-copy, driver mode",
    "xdp-virtio-net": "zero-copy, driver mode",
}
NEXT_MEMORY_MIB = VM1_MEMORY_MIB + 128  # of the VM1 that takes the first one's place


def check(picture: Picture, steps: Steps, kind: str, size_mib: int) -> None:
    """Bring the picture up, prove it, replace VM1, prove it again.

    Args:
        picture: Nothing of it is up yet; the caller closes it.
        steps: Where each step is told.
        kind: Of the VF, one of `picture.VF_KINDS`.
        size_mib: What TCP moves each way.

    Raises:
        VhostPciError: The first thing that did not hold.
    """
    with steps.step("device server"):
        picture.start_device()
    with steps.step("VM1 with the stock virtio-net driver") as facts:
        picture.start_vm1()
        facts.append(f"restored in {picture.vm1.restored_in_s:.1f} s")
    with steps.step("VM2, and a machine outside") as facts:
        picture.start_vm2(kind=kind)
        facts.append(f"restored in {picture.vm2.restored_in_s:.1f} s")
    with steps.step("plug the function into VM2") as facts:
        address = picture.plug()
        facts.append(address)
    with steps.step("pmd bind"):
        picture.bind(address)
    with steps.step(f"pmd run --bar 2, VF {kind}") as facts:
        # One that sleeps leaves its processor to the machines, of which there are more.
        options = ("--json", "--poll", "adaptive", *VF_KINDS[kind].options)
        pmd = picture.start_pmd(kind, *options)
        if kind in _SAYS:
            facts.append(require_said(pmd.text, _SAYS[kind]))
    _prove(picture, steps, kind, size_mib)
    with steps.step("unplug the function"):
        picture.unplug()
    with steps.step("shut VM1 down"):
        picture.stop_vm1()
    with steps.step(f"another VM1, {NEXT_MEMORY_MIB} MiB"):
        picture.start_vm1(NEXT_MEMORY_MIB)
    with steps.step("plug the function again") as facts:
        facts.append(picture.plug())
    with steps.step("the same pmd binds and serves it"):
        picture.wait_until_served()
    _prove(picture, steps, kind, size_mib)
    with steps.step("end pmd"):
        statistics = picture.stop_pmd()
    if not VF_KINDS[kind].copies:
        with steps.step("none of it was copied") as facts:
            facts.append(", ".join(require_no_copies(statistics)))
    with steps.step("unplug, and end everything"):
        picture.unplug()
        picture.close()


def require_no_copies(statistics: dict[str, Any]) -> list[str]:
    """Refuse statistics of a `pmd` that copied a frame; how many it did not, in words.

    Raises:
        VhostPciError: One was copied, or none was forwarded.
    """
    told = []
    for direction, counter, words in (
        ("vm1_to_vf", "tx_zero_copy", "read from VM1's memory by the VF"),
        ("vf_to_vm1", "rx_zero_copy", "written to it"),
    ):
        packets = sum(channel[direction]["packets"] for channel in statistics["channels"])
        uncopied = sum(channel[counter] for channel in statistics["channels"])
        if not packets or uncopied != packets:
            cause = f"{counter} is {uncopied}, {direction} {packets} frames"
            raise VhostPciError("forward", "without copies", cause)
        told.append(f"{packets} frames {words}")
    return told


def require_said(text: str, words: str) -> str:
    """The line with these words of those in which `pmd` tells of its VF.

    Raises:
        VhostPciError: There is none.
    """
    told = [line.removeprefix("pmd: ") for line in text.splitlines() if line.startswith("pmd: VF ")]
    for line in told:
        if words in line:
            return line
    cause = f"of '{words}' pmd says only: {' / '.join(told) or 'nothing'}"
    raise VhostPciError("serve", "VM1", cause, "another kernel may: --kernel backports")


def _prove(picture: Picture, steps: Steps, kind: str, size_mib: int) -> None:
    """Traffic between VM1 and outside, both ways."""
    if not VF_KINDS[kind].copies and not VF_KINDS[kind].offloads:
        picture.finish_checksums()
    with steps.step("ping both ways") as facts:
        facts.append(picture.ping())
    for vlan in sorted({0, VF_KINDS[kind].vlan}):
        what = f"with VLAN tag {vlan}" if vlan else "untagged"
        with steps.step(f"frames of all sizes there and back, {what}") as facts:
            facts.append(f"{picture.sweep(vlan)} frames")
    vm1, outside = picture.vm1, picture.outside
    for what, source, target in (
        ("VM1 to outside", vm1, outside),
        ("outside to VM1", outside, vm1),
    ):
        with steps.step(f"TCP, {size_mib} MiB, {what}") as facts:
            digest, duration_s = picture.transfer(source, target, size_mib * _MIB)
            rate = size_mib * _MIB * 8 / duration_s / 1e6
            facts += [f"{rate:.0f} Mbit/s", f"SHA-256 equal at both ends ({digest[:12]}...)"]
