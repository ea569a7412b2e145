"""`vhost-pci-device`: serves one vhost-pci function, VM1 at one socket and VM2 at another."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from guest.errors import UsageError, VhostPciError, errno_text
from guest.log_limit import LogLimit
from pmd import command_line
from tools.device.backend import Backend, Endpoint
from tools.device.control import serve_control
from tools.device.function import VhostPciDevice
from tools.device.offer import MTU_MAX, MTU_MIN, NAMES, Offer
from tools.device.vfio_user_server import VfioUserServer
from tools.device.vm1_state import Span
from tools.unix_socket import UnixListener

log = logging.getLogger("tools.device")

SOCKET_UMASK = 0o117  # sockets are for owner and group: mode 0660

_FEATURES_HELP = f"Offer VM1 only these: 0xBITS, or names with commas: {', '.join(NAMES)}."
# As QEMU's users spell a property that is off.
_WITHOUT = {f"--no-{name.replace('_', '-')}": name for name in NAMES}

_NAME = "vhost-pci-device"

app = App(
    name=_NAME,
    version=lambda: command_line.version(_NAME),
    suppress_keyboard_interrupt=False,
)


@app.default
def run(
    *,
    vhost_user: Annotated[str, Parameter(name="--vhost-user")],
    vfio_user: Annotated[Path, Parameter(name="--vfio-user")],
    queue_pairs: Annotated[int, Parameter(validator=Number(gte=1, lte=16))] = 8,
    features: Annotated[str | None, Parameter(help=_FEATURES_HELP)] = None,
    no_features: Annotated[list[str] | None, Parameter(name="--no-features", negative="")] = None,
    mtu: Annotated[int, Parameter(validator=Number(gte=MTU_MIN, lte=MTU_MAX))] = MTU_MAX,
    control: Path | None = None,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False,
) -> None:
    """Serve one vhost-pci function until SIGTERM or SIGINT.

    Args:
        vhost_user: PATH of the socket for VM1's VMM to connect to; with ",connect" behind it, of
            the one to connect to.
        vfio_user: Path of the socket for VM2's VMM, or a driver's process, to connect to.
        queue_pairs: How many queue pairs VM1 may use.
        features: See above.
        no_features: Offer VM1 all but these, and but those that require them. May be repeated;
            --no-mrg-rxbuf is --no-features mrg_rxbuf, and so for each.
        mtu: The largest MTU that VM1's VMM may give VM1.
        control: Path of a socket that tells each connection the device's state as JSON.
        verbose: Also say which requests were refused.
    """
    endpoint = Endpoint.parse(vhost_user)
    offer = Offer.parse(features, ",".join(no_features) if no_features else None, mtu)
    paths = [path.absolute() for path in (endpoint.path, vfio_user, control) if path]
    if len(set(paths)) < len(paths):
        raise UsageError("use", str(paths[-1]), "one path for two sockets")
    handler = logging.StreamHandler()
    handler.addFilter(LogLimit())
    logging.basicConfig(format="%(message)s", handlers=[handler])
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    os.umask(SOCKET_UMASK)
    asyncio.run(_serve(endpoint, vfio_user, control, queue_pairs, offer))


async def _serve(
    endpoint: Endpoint, vfio_user: Path, control: Path | None, queue_pairs: int, offer: Offer
) -> None:
    """Bring everything up, serve until a signal or a failure, and take it down in reverse."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)

    def queue_error(ring: int) -> None:
        backend.error(ring)

    def missed(spans: list[Span]) -> None:
        backend.miss(spans)

    with contextlib.ExitStack() as stack:
        device = _device(queue_pairs, queue_error, missed)
        stack.callback(device.close)
        backend = Backend(endpoint, queue_pairs, device.publish, device.commits, offer=offer)
        backend.open()
        stack.callback(backend.close)
        if not endpoint.connect:
            log.info("vhost-user: listening at %s", endpoint.path)
        server = VfioUserServer(device, _listen(stack, "vfio-user", vfio_user))
        told = _listen(stack, "control", control) if control else None

        def describe() -> dict[str, Any]:
            return {
                "cpu_s": time.process_time(),
                "vhost_user": backend.describe(),
                "vfio_user": server.describe(),
                "function": device.describe(),
            }

        services = [backend.serve(), server.serve()]
        if told:
            services.append(serve_control(told, describe))
        tasks = {asyncio.create_task(service) for service in services}
        until = asyncio.create_task(stopped.wait())
        await asyncio.wait({until, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
        for task in (until, *tasks):
            task.cancel()
        await asyncio.gather(until, *tasks, return_exceptions=True)
        for task in ended:
            task.result()


def _device(
    queue_pairs: int,
    queue_error: Callable[[int], None],
    missed: Callable[[list[Span]], None],
) -> VhostPciDevice:
    try:
        return VhostPciDevice(2 * queue_pairs, queue_error, missed)
    except OSError as error:
        raise VhostPciError("make", "BAR 0", errno_text(error)) from error


def _listen(stack: contextlib.ExitStack, name: str, path: Path) -> socket.socket:
    listener = stack.enter_context(UnixListener(path))
    log.info("%s: listening at %s", name, path)
    return listener.socket


def _written_out(words: Iterable[str]) -> Iterator[str]:
    """Words of a command line with each --no-FEATURE as --no-features FEATURE."""
    for word in words:
        yield from ("--no-features", _WITHOUT[word]) if word in _WITHOUT else (word,)


def perform(words: list[str]) -> int:
    """Run what these words ask for; its exit status: 0, 1 on failure, 2 on wrong use.

    Raises:
        VhostPciError: It failed.
    """
    return command_line.perform(app, _written_out(words))
