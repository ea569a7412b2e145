"""The statistics of a run that goes on, as a table on the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from pmd.report import both, gbps, mpps, summary, takes

if TYPE_CHECKING:
    from pmd.stats import Snapshot


class LiveTable:
    """A table on the terminal, rewritten every period. NO_COLOR is rich's business and honoured."""

    def __init__(self) -> None:
        # Log lines on stderr are for the terminal too: rich prints them above the table.
        self._live = Live(console=Console(), auto_refresh=False, redirect_stdout=False)

    def show(self, before: Snapshot, now: Snapshot) -> None:
        """Rewrite the table."""
        if not takes(sys.stdout):
            return
        self._live.start()
        self._live.update(table(before, now), refresh=True)

    def tell(self, first: Snapshot, now: Snapshot) -> None:
        """The summary, above the table while there is one."""
        self._live.console.print(summary(first, now), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Give the cursor back."""
        self._live.stop()


def table(before: Snapshot, now: Snapshot) -> Table:
    """Rates between two snapshots, one row a direction of each channel."""
    seconds = now.time_s - before.time_s
    busy = ", ".join(
        f"{new.cpu} {(new - old).busy_ratio:.0%}"
        for old, new in zip(before.lcores, now.lcores, strict=True)
    )
    shown = Table(caption=f"lcores busy: {busy}    Gbit/s of frames without FCS and preamble")
    for name in ("device", "direction"):
        shown.add_column(name)
    for name in ("Mpps", "Gbit/s", "drops", "cycles/packet"):
        shown.add_column(name, justify="right")
    shown.add_column("state")
    for old, new in both(before, now):
        moved = new.total - old.total
        for name, direction, total in (
            ("VM1 -> " + new.vf, moved.vm1_to_vf, new.total.vm1_to_vf),
            (new.vf + " -> VM1", moved.vf_to_vm1, new.total.vf_to_vm1),
        ):
            shown.add_row(
                escape(new.device),
                escape(name),
                f"{mpps(direction, seconds):.3f}",
                f"{gbps(direction, seconds):.3f}",
                str(total.dropped),
                f"{direction.cycles_per_packet:.0f}",
                new.state,
            )
    return shown
