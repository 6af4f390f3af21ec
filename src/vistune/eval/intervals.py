"""How far a figure may be off by chance, where questions share pictures.

Six questions about one picture are not six pieces of evidence: a model that mistakes the picture misses all of them, and an interval that
takes them as independent is too narrow (Miller 2024, "Adding Error Bars to Evals", gives the same advice for means). Here whole pictures
(`image_group`) are left out instead, so one method serves every metric, F1 and MME points too: leave out each of up to sixty parts of the
pictures in turn, summarise anew, and take the spread (the delete-a-group jackknife; with sixty pictures or fewer it is the plain jackknife
over pictures, which for a mean is the usual cluster-robust error).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from vistune.errors import VistuneError
from vistune.eval.benchmark import Metric
from vistune.types import Graded, Question

PARTS = 60
"""With so many parts the spread has 59 degrees of freedom: a t of 2.00 in place of 1.96."""
_Z = 1.959964
_T = (12.706, 4.303, 3.182, 2.776)

Summarise = Callable[[Sequence[Graded]], tuple[Metric, ...]]


def cluster_of(question: Question) -> str:
    """What the question shares with others: its picture, or itself."""
    return f"group {question.image_group}" if question.image_group else f"id {question.id}"


def with_intervals(metrics: Sequence[Metric], graded: Sequence[Graded], summarise: Summarise, *, parts: int = PARTS) -> tuple[Metric, ...]:
    """The metrics of `graded` with their 95 % intervals; None where leaving pictures out leaves nothing to compare.

    Which picture is in which part depends on its name alone, so the order of the questions changes nothing.
    """
    names = [cluster_of(item.question) for item in graded]
    clusters = Counter(names)
    by_digest = sorted(clusters, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
    part_of = {name: place % parts for place, name in enumerate(by_digest)}
    if len(clusters) < 2:
        return tuple(metrics)
    replicates: dict[str, list[float]] = defaultdict(list)
    used = min(parts, len(clusters))
    places = [part_of[name] for name in names]
    for part in range(used):
        for metric in _summarised([item for item, place in zip(graded, places, strict=True) if place != part], summarise):
            replicates[metric.name].append(metric.value)
    per_cluster = len(graded) / len(clusters)
    return tuple(
        replace(metric, interval=interval(metric, replicates[metric.name], max(metric.n / per_cluster, 1.0)))
        if len(replicates[metric.name]) == used
        else metric  # it rests on one part alone
        for metric in metrics
    )


def _summarised(graded: Sequence[Graded], summarise: Summarise) -> tuple[Metric, ...]:
    try:
        return summarise(graded)
    except VistuneError:  # an official script that has no value for what is left
        return ()


def interval(metric: Metric, left_out: Sequence[float], clusters: float) -> tuple[float, float] | None:
    """The 95 % interval of a metric from its values with each part left out.

    Percents and fractions get it on the logit scale, which keeps it between their ends, and where nothing varies (all right, all wrong)
    Wilson's with one piece of evidence per picture; others get it as it comes. Parts without an item of the metric do not change it and
    are not counted.
    """
    top = {"percent": 100.0, "fraction": 1.0}.get(metric.unit)
    changes = [value - metric.value for value in left_out if value != metric.value]
    if len(changes) < 2:
        return wilson(metric.value / top, clusters, top) if top and metric.value in (0.0, top) else None
    error = math.sqrt((len(changes) - 1) / len(changes) * math.fsum(change * change for change in changes))
    half = t_quantile(len(changes) - 1) * error
    if top is None or not 0.0 < metric.value < top:
        low, high = metric.value - half, metric.value + half
        return (low, high) if top is None else (max(low, 0.0), min(high, top))
    share = metric.value / top
    centre, half = math.log(share / (1 - share)), half / top / (share * (1 - share))
    return top * _expit(centre - half), top * _expit(centre + half)


def wilson(share: float, n: float, top: float = 1.0) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n."""
    centre = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z / (1 + _Z * _Z / n) * math.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n))
    return top * max(centre - half, 0.0), top * min(centre + half, 1.0)


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: a table to 4 degrees, from there its expansion around the normal one (off by < 0.004)."""
    if degrees <= len(_T):
        return _T[max(degrees, 1) - 1]
    z, v = _Z, degrees
    first = (z**3 + z) / (4 * v)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return z + first + second + third


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


# --- two models on the same questions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """The mean difference of the scores that two models got for the same items, its 95 % interval, and how surprising it is."""

    difference: float
    interval: tuple[float, float] | None
    p: float
    """Of a difference as large in either direction, if it were chance which model answered which of a picture's questions."""
    n: int
    clusters: int


def paired(differences: Sequence[tuple[str, float]]) -> Paired:
    """Compares by (cluster, difference) of each item: an interval that is robust to shared pictures, and a sign-flip test over pictures."""
    sums: dict[str, float] = defaultdict(float)
    sizes: Counter[str] = Counter()
    for cluster, difference in differences:
        sums[cluster] += difference
        sizes[cluster] += 1
    n, count = len(differences), len(sums)
    if not n:
        return Paired(0.0, None, 1.0, 0, 0)
    mean = math.fsum(sums.values()) / n
    span = None
    if count > 1:
        spread = math.fsum((total - sizes[cluster] * mean) ** 2 for cluster, total in sums.items())
        half = t_quantile(count - 1) * math.sqrt(count / (count - 1) * spread) / n
        span = (mean - half, mean + half)
    return Paired(mean, span, _sign_flips(sums), n, count)


def _sign_flips(sums: Mapping[str, float], draws: int = 10_000) -> float:
    """The share of all ways to flip the pictures' differences (or of `draws` random ways, and the one found) that are as far from 0."""
    import numpy

    values = numpy.array([sums[name] for name in sorted(sums) if sums[name]])
    if not len(values):
        return 1.0
    found = abs(values.sum()) - 1e-9
    if len(values) <= 12:
        signs = 1 - 2 * ((numpy.arange(2 ** len(values))[:, None] >> numpy.arange(len(values))) & 1)
        return float((abs(signs @ values) >= found).mean())
    random = numpy.random.default_rng(0)  # the same draws every time: two looks at the same results agree
    as_far = 0
    for _ in range(draws // 100):
        signs = 1 - 2 * random.integers(0, 2, size=(100, len(values)), dtype=numpy.int8)
        as_far += int((abs(signs @ values) >= found).sum())
    return (as_far + 1) / (draws + 1)
