"""What every worker process does first."""

import signal


def leave_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM are for the main process, which saves first and then ends its workers; it
    may need a second SIGTERM for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
