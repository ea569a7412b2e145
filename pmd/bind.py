"""`pmd bind` and `pmd unbind`: what they say and do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest.binding import VFIO_DRIVER, Binding, obstructing
from guest.discovery import full_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest.binding import Step


def bind(address: str, *, force: bool, dry_run: bool) -> Iterator[str]:
    """Give a function to vfio-pci; lines for the user, each once what it says is so.

    Args:
        address: The function's PCI address; without a domain, of domain 0000.
        force: Also where it is in use, or kept for another driver.
        dry_run: Change nothing, and say what would be done.

    Raises:
        UsageError: This is no PCI address.
        VhostPciError: It is not there or not to be had, or the kernel refuses.
    """
    binding = Binding(full_address(address))
    yield from _group(binding)
    yield from _viability(binding)
    if dry_run:
        yield from _dry(binding.bind_steps(), f"{binding.driver} has it already")
        binding.check_bind(force=force)
        return
    former = binding.driver
    binding.bind(force=force)
    name, now = binding.function.address, binding.driver
    since = "already" if now == former else f"now, before: {former or 'none'}"
    yield f"{name}: {now} has it {since}"
    yield f"to keep that when the machine restarts: driverctl set-override {name} {VFIO_DRIVER}"


def unbind(address: str, *, force: bool, dry_run: bool) -> Iterator[str]:
    """Give a function back to the kernel's choice of driver; see `bind`."""
    binding = Binding(full_address(address))
    former = binding.driver
    yield from _group(binding)
    if dry_run:
        yield from _dry(binding.unbind_steps(), f"{VFIO_DRIVER} does not have it")
        binding.check_unbind(force=force)
        return
    steps = binding.unbind_steps()
    binding.unbind(force=force)
    name = binding.function.address
    if not steps:
        yield f"{name}: {former or 'no driver'} has it, which is the kernel's choice already"
        return
    yield f"{name}: {binding.driver or 'no driver'} has it now, before: {former or 'none'}"
    yield f"if driverctl keeps it for {VFIO_DRIVER}: driverctl unset-override {name}"


def _group(binding: Binding) -> Iterator[str]:
    """The function's IOMMU group, and who has its members."""
    number = binding.function.iommu_group
    if number is None:
        return
    yield f"IOMMU group {number}:"
    for member in binding.members:
        ids = f"{member.vendor:04x}:{member.device:04x}"
        yield f"  {member.address} {ids} {member.driver or 'no driver'}"


def _viability(binding: Binding) -> Iterator[str]:
    """What else has to be bound before VFIO can use the group."""
    others = [m for m in obstructing(binding.members) if m.address != binding.function.address]
    if others:
        names = ", ".join(f"{member.address} ({member.driver})" for member in others)
        yield f"not viable: VFIO can use none of the group before {names} is bound to it too"


def _dry(steps: list[Step], nothing: str) -> Iterator[str]:
    yield from (str(step) for step in steps)
    if not steps:
        yield f"nothing to do: {nothing}"
