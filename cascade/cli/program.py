"""How the two programs end."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End the process with this exit code, once threads have ended, exit handlers have run and output is flushed.

    The interpreter is left as it stands: to take it down with torch in it takes half a second, and saves nobody anything.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed by its reader, or here
            stream.flush()
    os._exit(code)
