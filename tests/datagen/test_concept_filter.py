"""The concept filter: which captions it keeps under which settings."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vistune.__main__ import main
from vistune.datagen import concept_filter
from vistune.datagen.concept_filter import ConceptSettings, filter_captions
from vistune.datagen.concepts import parse_noun_phrases
from vistune.errors import DataError, SaveError, UsageError

NAMES = "dog cat cow horse bird fish tree house boat car train table chair lamp plate cup spoon kite ball hat"
THINGS = NAMES.split()


def captions_file(path: Path, count: int = 600, *, seed: int = 0) -> Path:
    """Captions in which the n-th thing is n times as rare as the first."""
    rng = random.Random(seed)
    weights = [1 / (place + 1) for place in range(len(THINGS))]
    lines = []
    for number in range(count):
        one, other = rng.choices(THINGS, weights, k=2)
        lines.append(f"{rng.choice(['a', 'the', 'Two'])} {one}{rng.choice(['', 's'])} near the {other}\tpicture{number}.jpg\n")
    path.write_text("".join(lines))
    return path


def phrases_and_captions_always_in(path: Path, settings: ConceptSettings) -> tuple[int, set[str]]:
    """The number of different phrases, and the captions of those within the cap: the first half of the filter, with dictionaries."""
    lines = path.read_text().splitlines()
    having: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        phrases = {
            phrase.normalised(lower_case=settings.lower_case, strip_determiners=settings.strip_determiners, lemmatise=settings.lemmatise)
            for phrase in parse_noun_phrases(line.partition("\t")[0])
        }
        for phrase in phrases:
            having.setdefault(phrase, []).append(number)
    rare = {number for numbers in having.values() if settings.min_frequency <= len(numbers) <= settings.cap for number in numbers}
    return len(having), {lines[number] for number in rare}


@pytest.mark.parametrize("normalisation", [(True, True, True), (False, True, False), (True, False, True), (False, False, False)])
@pytest.mark.parametrize("counted", ["all", "unpooled", "fill"])
def test_all_captions_of_rare_phrases_are_kept_and_common_phrases_are_capped(tmp_path: Path, normalisation: tuple[bool, ...], counted: str):
    path = captions_file(tmp_path / "c.tsv")
    lower, strip, lemmas = normalisation
    settings = ConceptSettings(cap=20, lower_case=lower, strip_determiners=strip, lemmatise=lemmas, counted=counted)  # type: ignore[arg-type]
    report = filter_captions(path, tmp_path / "out", settings)
    written = (tmp_path / "out" / "captions.tsv").read_text().splitlines()
    phrases, always_in = phrases_and_captions_always_in(path, settings)
    assert always_in <= set(written)
    assert report.chosen.captions == len(written) < report.captions == 600
    assert report.chosen.phrases == phrases
    assert written == [line for line in path.read_text().splitlines() if line in set(written)]


def test_what_is_counted_decides_how_many_captions_of_a_common_phrase_are_kept(tmp_path: Path):
    lines = [f"a dog {number}" for number in range(50)] + [f"a dog beside a rare thing {number}" for number in range(4)]
    (tmp_path / "c.txt").write_text("\n".join(lines))
    kept: dict[str, int] = {}
    for counted in ("all", "unpooled", "fill"):
        settings = ConceptSettings(cap=10, counted=counted)  # type: ignore[arg-type]
        filter_captions(tmp_path / "c.txt", tmp_path / counted, settings)
        written = (tmp_path / counted / "captions.txt").read_text().splitlines()
        assert sum("rare" in line for line in written) == 4
        kept[counted] = sum("rare" not in line for line in written)
    # the four are in the pool already: 10 of all 54 may hit them, 10 of the other 50, 6 more to have 10
    assert 6 <= kept["all"] <= 10
    assert (kept["unpooled"], kept["fill"]) == (10, 6)


def test_the_choice_depends_on_the_seed_and_on_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = captions_file(tmp_path / "c.tsv")
    monkeypatch.setattr(concept_filter, "PART_BYTES", 2000)

    def chosen(name: str, seed: int, workers: int) -> bytes:
        filter_captions(path, tmp_path / name, ConceptSettings(cap=5, seed=seed), workers=workers)
        return (tmp_path / name / "captions.tsv").read_bytes()

    assert chosen("a", 0, 1) == chosen("b", 0, 2) != chosen("c", 1, 1)


def test_every_caption_of_a_common_phrase_is_equally_likely():
    drawn: Counter[int] = Counter()
    for seed in range(200):
        lots = concept_filter._lots(np.arange(20, dtype=np.uint32), 7, seed)
        drawn.update(lots.argsort()[:5].tolist())
    assert all(25 <= drawn[line] <= 75 for line in range(20)), drawn  # 50 expected, standard deviation 6


def test_the_sizes_of_all_combinations_are_reported_and_the_chosen_one_is_among_them(tmp_path: Path):
    path = captions_file(tmp_path / "c.tsv")
    settings = ConceptSettings(cap=20, counted="unpooled")
    report = filter_captions(path, tmp_path / "out", settings, compare=True)
    assert len({size.settings for size in report.compared}) == 24
    assert report.chosen in report.compared
    alone = filter_captions(path, tmp_path / "alone", replace(settings, lemmatise=False, counted="fill"))
    assert alone.chosen in report.compared
    page = json.loads((tmp_path / "out" / "report.json").read_text())
    assert page["chosen"]["captions"] == report.chosen.captions


def test_a_broken_line_is_rejected_with_its_reason_and_never_chosen(tmp_path: Path):
    rows = [
        '{"caption": "a dog"}',
        '{"caption": ""}',
        '{"caption": 3}',
        "{",
        "",
        '{"caption": "the dog"}',
        '{"caption": "\\ud800"}',
        "\u00ff",
    ]
    content = "\n".join(rows).encode("latin-1") + b"\n" + b"x" * 3_000_000 + b'\n{"caption": "dogs"}\n'
    (tmp_path / "c.jsonl").write_bytes(content)
    report = filter_captions(tmp_path / "c.jsonl", tmp_path / "out", workers=1)
    assert report.captions == 9
    assert report.rejected == {"empty_caption": 1, "bad_row": 1, "not_json": 2, "bad_text": 1, "too_long": 1}
    kept = (tmp_path / "out" / "captions.jsonl").read_text().splitlines()
    assert kept == [rows[0], rows[5], '{"caption": "dogs"}']
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [row["row"][-1] for row in rejects] == ["2", "3", "4", "7", "8", "9"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["captions.jsonl", "rejects.jsonl", "report.json"]


def test_what_cannot_be_filtered_is_an_error_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        filter_captions(tmp_path / "none.txt", tmp_path / "out")
    (tmp_path / "c.txt").write_text("...\n\n")
    with pytest.raises(DataError, match="no caption that can be used"):
        filter_captions(tmp_path / "c.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(SaveError, match="not empty"):
        filter_captions(tmp_path / "c.txt", tmp_path / "full")
    with pytest.raises(UsageError, match="from 1"):
        ConceptSettings(cap=0)
    with pytest.raises(UsageError, match="unpooled"):
        ConceptSettings(counted="some")  # type: ignore[arg-type]


def test_the_command_prints_the_size_of_every_combination(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = captions_file(tmp_path / "c.tsv")
    assert main(["data", "concepts", str(path), "--out", str(tmp_path / "out"), "--cap", "20", "--keep-plurals", "--compare"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert " of 600 captions chosen" in printed[0]
    assert len(printed) == 1 + 1 + 24 + 1
    assert sum("lower case, without determiner / all" in line for line in printed) == 1
