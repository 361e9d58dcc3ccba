"""`aigc` and `python -m aigc_jax`."""

import os
import sys

from aigc_jax import runtime


def main() -> None:
    """The console script: prepares the process, then parses the command line."""
    runtime.prepare()
    sys.path.insert(0, os.getcwd())  # where a user's own models and methods lie
    from aigc_jax import cli

    code = cli.main()
    if code:  # its line is the last: no words of Orbax's threads as the interpreter ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
