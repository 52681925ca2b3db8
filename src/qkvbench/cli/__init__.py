"""The command line: words in, a request checked, the library called, text out."""

import sys
from collections.abc import Sequence

from qkvbench.cli.parser import RequestError, parsed

DONE, SOME_FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words say; the exit status. A wrong request is a few lines and no traceback."""
    try:
        request = parsed(sys.argv[1:] if words is None else words)
        return request.answer(request)
    except RequestError as error:
        print(error, file=sys.stderr)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        print("Interrupted. What was measured is kept; the same command goes on.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough, as `head` has.
        sys.stderr.close()
        return DONE
