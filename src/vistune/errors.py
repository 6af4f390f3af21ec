"""Every error that vistune raises on purpose, and the one table of exit codes.

    VistuneError                     1   anything below that has no code of its own
    ├── UsageError                   2   an option or argument that cannot be used
    │   ├── UnknownName             11   a model, template, recipe, ... that is in no table
    │   └── ResponseSchemaError     27   a JSON schema that replies cannot be kept to
    ├── DataError                   21   a row of data that cannot be used
    │   ├── ImageError              12   a picture that is missing, broken or over a limit
    │   ├── VideoError              26   a video that is missing, broken or over a limit, or lacks the frames asked for
    │   ├── ImageCountError         16   placeholders and images do not match
    │   ├── EmptyAnswerError        17   an assistant turn without words in training data
    │   ├── EmptyMaskError          18   an example in which no token would be supervised
    │   └── ScoringError            25   predictions or answers that an official scorer has no value for
    ├── ContextLengthError          15   a prompt longer than the model's context
    ├── CheckpointError             13   a folder that is not, or not quite, a checkpoint
    │   ├── TensorError             14   a tensor missing, left over, wrongly shaped or not finite
    │   ├── UnsupportedModel        19   a language model family or RoPE type outside the parity test
    │   └── ConversionError          8   a pickled file that could not be converted safely
    ├── ResumeMismatch               3   a run that would not continue as it began
    ├── SaveError                    4   a save that failed (disk full, read-only, ...); nothing half-written remains
    ├── NonFiniteError               5   training met a loss or gradient that is not finite
    ├── WorkerError                  6   a data worker died or hung, or a served model's thread did
    ├── OutOfMemory                  7   the batch does not fit
    ├── CostCapReached               9   a paid run stopped at its cap
    ├── EvaluationIncomplete        10   too many items could not be scored
    ├── DownloadError               20   a pull that broke off or did not match its digest
    ├── MissingDependency           22   an optional package is needed; the message names the extra
    ├── Locked                      23   another process is using the folder or log
    ├── Preempted                  143   training was asked to stop by SIGTERM or SIGUSR1, and has saved a checkpoint
    └── RemoteError                 24   a model server that could not be reached, refused, or broke off

A message is one paragraph: what was found, what was expected, what to do. Exit code 1 with a traceback is a bug of ours.

130 is Ctrl-C. Training then finishes its step and saves a checkpoint, as for SIGTERM; a second Ctrl-C leaves at once, and the run goes on
from the checkpoint before. 143 is what a shell says of a process that SIGTERM ended, so whoever restarts such a one restarts ours.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class VistuneError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(VistuneError):
    exit_code = 2


class UnknownName(UsageError):
    """A name that is in no table; the message lists the right ones, the nearest first."""

    exit_code = 11

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        names = sorted(known)
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
        super().__init__(f"There is no {kind} called {name!r}. {hint}Known: {', '.join(names) or 'none'}.")
        self.kind, self.name, self.known = kind, name, tuple(names)


class ResponseSchemaError(UsageError):
    exit_code = 27


class DataError(VistuneError):
    exit_code = 21


class ImageError(DataError):
    """A picture that was refused. `reason` is a short fixed code, fit for counting."""

    exit_code = 12

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class VideoError(DataError):
    """A video that was refused. `reason` is a short fixed code, fit for counting."""

    exit_code = 26

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class ImageCountError(DataError):
    exit_code = 16


class EmptyAnswerError(DataError):
    exit_code = 17


class EmptyMaskError(DataError):
    exit_code = 18


class ScoringError(DataError):
    """Predictions, references or counts that a benchmark's official scorer has no value for."""

    exit_code = 25


class ContextLengthError(VistuneError):
    exit_code = 15


class CheckpointError(VistuneError):
    exit_code = 13


class TensorError(CheckpointError):
    exit_code = 14


class UnsupportedModel(CheckpointError):
    exit_code = 19


class ConversionError(CheckpointError):
    exit_code = 8


class ResumeMismatch(VistuneError):
    exit_code = 3


class SaveError(VistuneError):
    exit_code = 4


class NonFiniteError(VistuneError):
    exit_code = 5


class WorkerError(VistuneError):
    exit_code = 6


class OutOfMemory(VistuneError):
    exit_code = 7


class CostCapReached(VistuneError):
    exit_code = 9


class EvaluationIncomplete(VistuneError):
    exit_code = 10


class DownloadError(VistuneError):
    exit_code = 20


class MissingDependency(VistuneError):
    exit_code = 22


class Locked(VistuneError):
    exit_code = 23


class Preempted(VistuneError):
    """Whoever lent the machine wants it back. The same command with `--resume` goes on as if nothing had happened."""

    exit_code = 143  # 128 + SIGTERM


class RemoteError(VistuneError):
    """What came from a model server in place of a reply.

    Attributes:
        status: the HTTP status, None where no answer came; 200 for an answer that is no reply.
        code: the server's own word for the failure, such as `insufficient_quota`.
        retry_after: the seconds that it asks to wait.
        reached: False where no connection was made, so that the server cannot have worked, nor billed.
        body: the beginning of what it sent, where that could not be used.
    """

    exit_code = 24

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        reached: bool = True,
        body: str = "",
    ):
        super().__init__(message)
        self.status, self.code, self.retry_after, self.reached, self.body = status, code, retry_after, reached, body


def tells_of_memory(error: BaseException) -> bool:
    """Whether an error is about memory that is not there. torch raises a kind of its own only on a GPU; on a CPU, only its words tell."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
    )


def optional_import(module: str, *, extra: str) -> ModuleType:
    """Imports an optional package, or says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(f"{module} is not installed ({error}); install it with: pip install 'vistune[{extra}]'") from error
