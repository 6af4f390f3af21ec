"""Measures the filters of the data engine on a scripted teacher whose faults are known, and writes benchmarks/results/filters.json.

    python benchmarks/filters.py

For each filter: the share of its own faults that it drops (recall), the share of those that the filters together drop, how many of the good
replies it drops, and its precision among its faults and all good replies. Refusals are measured besides on single sentences in five
languages, with as many look-alikes; the held-out part was written after the rules. All replies and faults are in tests/datagen.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.datagen.faults import exact_duplicates, faulty_candidates, good_candidates, near_duplicates, refusals  # noqa: E402

from vistune.datagen.filters import DUPLICATE_FILTERS, FILTERS, Candidate, DuplicateFilter, run_filters  # noqa: E402
from vistune.datagen.refusals import refusal_in  # noqa: E402

RESULT = HERE / "results" / "filters.json"


def ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def figures_of(name: str) -> dict[str, object]:
    """The figures of a filter that judges a row alone."""
    faulty, good = faulty_candidates(name), good_candidates()
    verdicts = [{verdict.filter: verdict.kept for verdict in run_filters(each, FILTERS)} for each in faulty]
    found = sum(not kept[name] for kept in verdicts)
    wrong = sum(FILTERS[name].check(each) is not None for each in good)
    return {
        "filter": name,
        "faults": len(faulty),
        "recall": ratio(found, len(faulty)),
        "recall_of_all_filters": ratio(sum(not all(kept.values()) for kept in verdicts), len(faulty)),
        "good": len(good),
        "good_dropped": wrong,
        "precision": ratio(found, found + wrong),
    }


def duplicate_figures(name: str, again: list[Candidate]) -> dict[str, object]:
    """The figures of a filter of duplicates: good replies come first, each checked and kept; then their duplicates."""
    duplicates = DuplicateFilter()
    wrong = 0
    for each in good_candidates():
        wrong += any(verdict.filter == name and not verdict.kept for verdict in duplicates.check(each))
        duplicates.keep(each)
    verdicts = [{verdict.filter: verdict.kept for verdict in duplicates.check(each)} for each in again]
    found = sum(not kept[name] for kept in verdicts)
    return {
        "filter": name,
        "faults": len(again),
        "recall": ratio(found, len(again)),
        "recall_of_all_filters": ratio(sum(not all(kept.values()) for kept in verdicts), len(again)),
        "good": len(good_candidates()),
        "good_dropped": wrong,
        "precision": ratio(found, found + wrong),
    }


def refusal_figures(part: str) -> list[dict[str, object]]:
    """Recall and precision on single sentences, by language and over all."""
    cases = [(case.language, case.refuses, refusal_in(case.text) is not None) for case in refusals(part)]
    rows = []
    for language in ("all", *sorted({language for language, _, _ in cases})):
        chosen = [(refuses, found) for each, refuses, found in cases if language in ("all", each)]
        hits = sum(refuses and found for refuses, found in chosen)
        rows.append(
            {
                "part": part,
                "language": language,
                "refusals": sum(refuses for refuses, _ in chosen),
                "look_alikes": sum(not refuses for refuses, _ in chosen),
                "recall": ratio(hits, sum(refuses for refuses, _ in chosen)),
                "precision": ratio(hits, sum(found for _, found in chosen)),
            }
        )
    return rows


def milliseconds_a_row() -> float:
    """What all filters cost for one good reply, the parser of English loaded."""
    good = good_candidates()
    run_filters(good[0], FILTERS)
    started = time.process_time()
    for each in good:
        run_filters(each, FILTERS)
    return round((time.process_time() - started) / len(good) * 1000, 2)


def print_table(rows: list[dict[str, object]]) -> None:
    print("  ".join(f"{head:>22}" for head in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>22}" for value in row.values()))
    print()


def main() -> None:
    filters = [figures_of(name) for name in FILTERS]
    filters += [
        duplicate_figures(name, again) for name, again in zip(DUPLICATE_FILTERS, (exact_duplicates(), near_duplicates()), strict=True)
    ]
    by_language = [row for part in ("development", "held_out") for row in refusal_figures(part)]
    dropped = sum(not all(verdict.kept for verdict in run_filters(each, FILTERS)) for each in good_candidates())
    print_table(filters)
    print_table(by_language)
    page = {
        "filters": filters,
        "refusals": by_language,
        "good_replies": len(good_candidates()),
        "good_replies_dropped": dropped,
        "cpu_ms_a_row": milliseconds_a_row(),
    }
    print(f"{dropped} of {page['good_replies']} good replies dropped; {page['cpu_ms_a_row']} ms of one core a row")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
