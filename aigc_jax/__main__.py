"""`aigc` and `python -m aigc_jax`."""

import logging
import os
import sys
import threading
from typing import Any

from aigc_jax import runtime


def main() -> None:
    """The console script: prepares the process, then parses the command line."""
    runtime.prepare()
    # Python writes a thread's traceback piece by piece, through whatever line we end with. Nothing
    # is lost: what stops a run reaches the main thread.
    threading.excepthook = sys.unraisablehook = _to_debug_log
    sys.path.insert(0, os.getcwd())  # where a user's own models and methods lie
    from aigc_jax import cli

    code = cli.main()
    if code:  # its line is the last: no words of Orbax's threads as the interpreter ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _to_debug_log(error: Any) -> None:
    exc_info = (error.exc_type, error.exc_value, error.exc_traceback)
    logging.getLogger(__name__).debug("In a thread", exc_info=exc_info)


if __name__ == "__main__":
    main()
