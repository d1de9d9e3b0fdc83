"""The command line. Exit status 0 on success, 1 with one sentence for a mistake, 2 for usage.

parser.py says which options each command has, options.py what their words mean; commands.py and inspect.py have a
function for each command, output.py what they print.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Sequence

from tvmcnn.cli.output import fail
from tvmcnn.cli.parser import parser
from tvmcnn.errors import explained


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the entry point of `tvmcnn`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # "µs" on a terminal of ASCII, a path that is no text
        sys.stdout.reconfigure(errors="replace")
    options = parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return fail(str(explained(error, f"tvmcnn {shlex.join(sys.argv[1:] if arguments is None else arguments)}")))
