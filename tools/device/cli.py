"""`vhost-pci-device`: the door. What it opens takes a while to import."""

from __future__ import annotations

from pmd import program


def main() -> None:
    """Entry point of `vhost-pci-device`: runs the command and exits with its status."""
    program.run("vhost-pci-device", _perform)


def _perform(words: list[str]) -> int:
    from tools.device.command_line import perform  # noqa: PLC0415 - SIGINT may come meanwhile

    return perform(words)


if __name__ == "__main__":
    main()
