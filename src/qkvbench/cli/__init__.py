"""The command line: words in, a request checked, the library called, text out."""

import os
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper

from qkvbench.cli.parser import RequestError, parsed

DONE, WRONG_REQUEST, INTERRUPTED = 0, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words say; the exit status. A wrong request is a few lines and no traceback."""
    began_s = time.monotonic()
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal has no letter for a sign, a question mark is better than no table.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        request = parsed(sys.argv[1:] if words is None else words)
        request.began_s = began_s
        status = request.answer(request)
        # The end of the interpreter is too late to notice that nobody reads a short table.
        sys.stdout.flush()
        return status
    except RequestError as error:
        print(error, file=sys.stderr)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        print("Interrupted. What was measured is kept; the same command goes on.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough, as `head` has; what is still to be flushed goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
