"""The command line. Exit status 0 on success, 1 with one sentence for a mistake, 2 for usage.

parser.py has the options, commands.py and looking.py a function for each command, words.py what options mean.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tvmcnn.cli.parser import parser
from tvmcnn.cli.words import fail
from tvmcnn.errors import TvmcnnError

PAGES = ("igraph", "jinja2", "markupsafe")  # modules of the extra "report"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the entry point of `tvmcnn`."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except TvmcnnError as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "tvmcnn":
            raise
        extra = "report" if error.name in PAGES else "compiler"
        return fail(f"this command needs {error.name}: install it by pip install 'tvmcnn[{extra}]'")
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
