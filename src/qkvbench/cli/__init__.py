"""The command line: parse and check a request, call the library, print text."""

import codecs
import errno
import os
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper

from qkvbench.cli.parser import RequestError, parse_request

# The name of the error handler that writes `PLAIN_LETTERS`.
PLAIN = "qkvbench.plain"
# One letter for one, so that columns stay columns; a mark and its key change alike.
PLAIN_LETTERS = str.maketrans("▼▲▽△≈±−×·–─━│→←↓↑…′≤≥≠Δ•µ", "VAva=/-x,---|><v^.'<>!D*u")

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
THREADS = "OMP_NUM_THREADS"
# The words of commands that keep what they have done.
RESUMED = {"run", "train", "prune", "--heal"}
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main(words: Sequence[str] | None = None) -> int:
    """Carry out the request; the exit status. A wrong request prints a few lines, no traceback."""
    began_s = time.monotonic()
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot encode a character prints another one instead of failing.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=PLAIN)
    try:
        request = parse_request(sys.argv[1:] if words is None else words)
        request.began_s = began_s
        _drop_wrong_threads()
        status = request.answer(request)
        # The end of the interpreter is too late to notice that nobody reads a short table.
        sys.stdout.flush()
        return status
    except RequestError as error:
        print(error, file=sys.stderr)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        given = sys.argv[1:] if words is None else words
        kept = " Results so far are kept; the same command resumes."
        print(f"Interrupted.{kept if RESUMED & {*given} else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, closed the pipe.
        _discard_output()
        return DONE
    except SystemExit as end:
        # A rich console ends the program with status 1 instead.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return DONE
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        _discard_output()
        print(f"The output cannot be written: {error.strerror}.", file=sys.stderr)
        return FAILED


def _replace_closed_streams() -> None:
    """Discard what is printed to a closed stream: Python has None in its place.

    Printing to stderr, it would otherwise go to stdout.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(null, "w", encoding="utf-8"))


def _plain_letters(error: UnicodeError) -> tuple[str, int]:
    """Letters for those that the terminal does not have; question marks if there are none."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    plain = missing.translate(PLAIN_LETTERS).encode("ascii", "replace").decode()
    return plain, error.end


codecs.register_error(PLAIN, _plain_letters)


def _discard_output() -> None:
    """Let what is still to be printed go nowhere: Python flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _drop_wrong_threads() -> None:
    """Say that the number of threads in the environment is none, before a library complains."""
    text = os.environ.get(THREADS)
    if text is None or all(_is_count(each.strip()) for each in text.split(",")):
        return
    print(f"{THREADS} is {text!r}, which is no number of threads: ignored.", file=sys.stderr)
    del os.environ[THREADS]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0
