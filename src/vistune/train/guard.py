"""Steps that are not to be trusted: a loss or gradient that is not finite, or a loss that jumps.

Such a step is computed again first. If it comes out well it was a fault of the machine, and the run goes on with the second result. If it
comes out badly again it is the doing of the data or the model: the run stops and names the rows, or leaves the step out. Nothing of a bad
step ever reaches the weights or the optimizer's moments. All processes of a run decide alike.

What is decided depends on the steps before it, and these are remembered in `Progress`, which checkpoints hold: a run that was stopped and
goes on decides as it would have.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.errors import NonFiniteError
from vistune.journal import atomic_write
from vistune.train.config import GuardConfig
from vistune.train.keep import Progress
from vistune.train.step import Computed

LOSSES = 50
"""Steps whose median loss a spike is measured by."""
_ENOUGH_LOSSES = 10  # before that a median says little
_WINDOW = 100  # steps among which skips are counted


@dataclass(frozen=True)
class Checked:
    """A step as it was computed last, and what the guard thinks of it."""

    computed: Computed
    recomputed: bool = False
    """It was bad the first time and good the second."""
    skipped: bool = False
    """It was bad twice, and the weights are to stay as they are."""


class Guard:
    """Stands between computing a step and taking it.

    Args:
        quarantine: the file that gets a line with the rows of each skipped step.
        anywhere: whether a flag is set in any process of the run.
        main: whether this process writes for all.
        say: shows a sentence to whoever watches.
    """

    def __init__(
        self,
        config: GuardConfig,
        progress: Progress,
        quarantine: Path,
        *,
        anywhere: Callable[[bool], bool] = bool,
        main: bool = True,
        say: Callable[[str], None] = print,
    ):
        self._config, self._progress, self._quarantine = config, progress, quarantine
        self._anywhere, self._main, self._say = anywhere, main, say
        if main:
            self._forget_after(progress.step)

    def check(self, step: int, compute: Callable[[int], Computed], *, go_on_from: Callable[[], str]) -> Checked:
        """Computes a step, and once more if it is bad.

        Args:
            compute: leaves the gradient of a step in the parameters; a pure function of the step and the weights.
            go_on_from: says where a run that stops here can be taken up.

        Raises:
            NonFiniteError: the step is bad and the run is to stop at that, or has skipped too many.
        """
        first = compute(step)
        fault = self._fault(first)
        if fault is None:
            self._remember(first.loss)
            return Checked(first)
        self._say(f"WARNING: step {step + 1} has {fault}; it is computed again.")
        second = compute(step)
        fault_again = self._fault(second)
        if fault_again is None:
            self._say(f"WARNING: step {step + 1} came out well the second time (loss {second.loss:.4g}): a passing fault of this machine.")
            self._remember(second.loss)
            return Checked(second, recomputed=True)
        self._skip_or_stop(step, fault_again, second.ids, go_on_from)
        return Checked(second, skipped=True)

    def _fault(self, computed: Computed) -> str | None:
        """What is wrong with a step in any process, None if all is well."""
        fault = None
        if not (math.isfinite(computed.loss) and math.isfinite(computed.gradient_norm)):
            fault = f"loss {computed.loss} and gradient norm {computed.gradient_norm}"
        elif self._config.spike is not None and len(self._progress.losses) >= _ENOUGH_LOSSES:
            median = statistics.median(self._progress.losses)
            if computed.loss > self._config.spike * median:
                fault = f"loss {computed.loss:.4g}, {computed.loss / median:.1f} times the median of the steps before it"
        return (fault or "a loss or gradient that another process does not trust") if self._anywhere(fault is not None) else None

    def _remember(self, loss: float) -> None:
        self._progress.losses = [*self._progress.losses, loss][-LOSSES:]

    def _skip_or_stop(self, step: int, fault: str, rows: Sequence[str], go_on_from: Callable[[], str]) -> None:
        skipped = [each for each in self._progress.skipped if each > step - _WINDOW] + [step]
        found = f"Step {step + 1} has {fault}, twice; the weights were not changed by it. Its rows are {_listed(rows)}."
        if self._config.bad_step == "stop":
            raise NonFiniteError(
                f"{found} Lower optim.lr, look at these rows, or leave such steps out (guard.bad_step=skip); the run goes on from "
                f"{go_on_from()}."
            )
        if self._main:
            self._write_quarantine([*self._quarantined(before=step), {"step": step + 1, "fault": fault, "rows": list(rows)}])
        if len(skipped) > self._config.max_skips:
            raise NonFiniteError(
                f"{found} {len(skipped)} of the last {_WINDOW} steps were bad, and guard.max_skips is {self._config.max_skips}. Their rows "
                f"are in {self._quarantine}. Lower optim.lr, or mend the rows; the run goes on from {go_on_from()}."
            )
        self._progress.skipped = skipped
        self._say(f"WARNING: step {step + 1} has {fault}, twice. It is left out; its rows are in {self._quarantine}.")

    # --- the file ---

    def _forget_after(self, step: int) -> None:
        """Steps from here on will be lived again, and so will what was wrong with them."""
        kept = self._quarantined(before=step)
        if self._quarantine.exists() and kept != self._quarantined():
            self._write_quarantine(kept)

    def _quarantined(self, *, before: int | None = None) -> list[dict[str, Any]]:
        if not self._quarantine.exists():
            return []
        lines = [json.loads(line) for line in self._quarantine.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if before is None or line["step"] <= before]

    def _write_quarantine(self, lines: Sequence[dict[str, Any]]) -> None:
        atomic_write(self._quarantine, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _listed(rows: Sequence[str]) -> str:
    return ", ".join(rows[:8]) + (", ..." if len(rows) > 8 else "")
