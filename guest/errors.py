"""The errors users see: one clear line each."""


class VhostPciError(Exception):
    """An operation failed; the text names operation, object, cause and remedy.

    Args:
        operation: What was attempted, as a verb phrase ("attach to", "map").
        subject: On what (a path, a PCI address, a BAR).
        cause: Why it failed, lower case, no full stop.
        remedy: What the user can do about it, or empty where nothing is known.
    """

    exit_status = 1

    def __init__(self, operation: str, subject: str, cause: str, remedy: str = "") -> None:
        self.operation = operation
        self.subject = subject
        self.cause = cause
        self.remedy = remedy
        line = f"cannot {operation} {subject}: {cause}"
        super().__init__(f"{line}; {remedy}" if remedy else line)


class UsageError(VhostPciError):
    """What the user typed or configured cannot be meant; exit status 2."""

    exit_status = 2


class DeviceGoneError(VhostPciError):
    """The function disappeared: unplugged, or its server went away."""


def errno_text(error: OSError) -> str:
    """The operating system's words for an OSError, lower case, without its number and file name."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
