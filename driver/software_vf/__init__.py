"""Software VFs: what `--vf` names, and what each opens for the kernel's ports (pmd/csrc/port*.c).

The ladder: `parse_vf` judges what the user typed; `Vf.open` opens devices and sockets; a port of
the kernel takes each descriptor over; `Vf.close`, once the ports are closed, removes what is left.
"""

from __future__ import annotations

from driver.software_vf.spec import KINDS, parse_vf
from driver.software_vf.vf import FRAME_BYTES_MAX, FRAME_BYTES_MIN, PortSpec, Vf

__all__ = ["FRAME_BYTES_MAX", "FRAME_BYTES_MIN", "KINDS", "PortSpec", "Vf", "parse_vf"]
