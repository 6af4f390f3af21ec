"""The door: runs the command line and turns every outcome into an exit code.

The only place where errors become text for a person. Whatever vistune raises on purpose prints as one paragraph on stderr and exits with
its own code (the table in `errors.py`); a traceback appears only for a bug of ours, or with `--debug`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from vistune.errors import OutOfMemory, SaveError, UsageError, VistuneError, tells_of_memory

INTERRUPTED = 130  # 128 + SIGINT, as shells and typer report it
BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output went away, as in `vistune … | head`


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    arguments, debug = _take_debug(arguments)
    try:
        from vistune.cli import app

        app(arguments, prog_name="vistune")
    except SystemExit as finished:  # how typer ends, also after it has explained a wrong option or met Ctrl-C or a closed pipe
        return BROKEN_PIPE if isinstance(finished.__context__, BrokenPipeError) else _flushed(int(finished.code or 0))
    except KeyboardInterrupt:  # while importing: inside a verb typer turns it into SystemExit(130)
        return INTERRUPTED
    except (VistuneError, OSError, MemoryError, RuntimeError) as error:
        explained = _explained(error)
        if debug or explained is None:
            raise
        print("error:", explained, *getattr(error, "__notes__", ()), file=sys.stderr)
        return explained.exit_code
    return 0


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Removes `--debug` wherever it stands before a bare `--`: it is about how errors print, so it belongs to every verb."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    return options + arguments[end:], len(options) < end


def _explained(error: BaseException) -> VistuneError | None:
    """The error as one of ours where the operating system's own words leave out the remedy; None for what must be a bug."""
    if isinstance(error, VistuneError):
        return error
    if tells_of_memory(error):
        return OutOfMemory("The machine ran out of memory; close other programs, or use a smaller model, batch or picture.")
    if not isinstance(error, OSError) or (error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT)):
        return None
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SaveError(f"The disk is full{where}; free some space, or choose another place ($VISTUNE_CACHE moves the weights).")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SaveError(f"{os.strerror(error.errno)}{where}; choose a place you may read and write.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return UsageError(f"{os.strerror(error.errno)}{where}; check the path.")
    return None


def _flushed(code: int) -> int:
    """Flushes now, while a closed pipe can still be handled; at interpreter exit it would print a traceback of its own."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


if __name__ == "__main__":
    sys.exit(main())
