"""The command line: parse and check a request, call the library, print text."""

import os
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper

from qkvbench.cli.parser import RequestError, parse_request

DONE, WRONG_REQUEST, INTERRUPTED = 0, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Carry out the request; the exit status. A wrong request prints a few lines, no traceback."""
    began_s = time.monotonic()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot encode a character prints a question mark instead of failing.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        request = parse_request(sys.argv[1:] if words is None else words)
        request.began_s = began_s
        status = request.answer(request)
        # The end of the interpreter is too late to notice that nobody reads a short table.
        sys.stdout.flush()
        return status
    except RequestError as error:
        print(error, file=sys.stderr)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        print("Interrupted. Results so far are kept; the same command resumes.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, closed the pipe. Python flushes stdout at exit, so discard it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
