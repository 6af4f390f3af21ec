"""From annotated pictures to a score: what does an adapter learn from data that a teacher wrote who never saw a picture?

    python examples/annotations_to_score.py [--rows 5000] [--seeds 3] [--work runs/annotations_to_score]

    data     the data engine draws scenes and lets its grammar ask about their annotations: one conversation a picture
    base     SmolLM2-135M and EfficientNet-Lite0, joined by a projector that has learned nothing
    align    the projector learns the words of the annotations' boxes (one quick stage, no language model)
    tune     projector and adapters learn the conversations, once through
    blind    the same, from grey pictures: what the questions alone give away
    score    the drawn suite scenes-v1: other scenes, other combinations, and only questions in words that the teacher never used

Every stage is kept in --work; given again, the command goes on where it stopped. To teach your own pictures, write their annotations as
docs/data.md says, put `jsonl` for `scenes` below, and score on questions of your own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from vistune.datagen.config import DatagenConfig
from vistune.datagen.generate import run_datagen
from vistune.datagen.template_teacher import TemplateTeacher
from vistune.engine.engine import Engine
from vistune.eval.benchmark import Benchmark, Protocol
from vistune.eval.benchmarks import BENCHMARKS
from vistune.eval.results import BenchmarkResult, evaluate
from vistune.eval.scoring import normalise
from vistune.eval.tables import counting
from vistune.journal import atomic_write
from vistune.model.threads import apart
from vistune.scenes import sprite_bank
from vistune.scenes.draw import COLOURS, PLACES
from vistune.train.config import DataConfig, TrainConfig
from vistune.train.metrics import Display
from vistune.train.recipes import smol_align, smol_tune
from vistune.train.start import start_model
from vistune.train.trainer import train
from vistune.types import Question, Reply, Score

BLANK = "grey.png"


def make_data(folder: Path, rows: int) -> Path:
    """The rows as the data engine writes them, and beside them the same with a grey picture in the place of each."""
    if not (folder / "blind.json").exists():
        config = DatagenConfig("scenes", folder, kinds=("conversation",), limit=rows, licence="Apache-2.0")
        print(run_datagen(config, TemplateTeacher()).page["counts"])
        Image.new("RGB", (224, 224), (128, 128, 128)).save(folder / BLANK)
        blind = [{**row, "image": BLANK} for row in json.loads((folder / "instruct.json").read_text(encoding="utf-8"))]
        atomic_write(folder / "blind.json", json.dumps(blind).encode())
    return folder


def trained(config: TrainConfig) -> Path:
    model = Path(config.output, "model")
    return model if model.exists() else train(config, resume=True, display=Display())


def form(question: str) -> str:
    """A question without what it is about: things, colours and places become a blank."""
    return _WHAT_IT_IS_ABOUT.sub("_", question).casefold()


_NAMES = sorted({*sprite_bank().things, *COLOURS, *PLACES.values(), *PLACES}, key=len, reverse=True)
_WHAT_IT_IS_ABOUT = re.compile(rf"\b(?:an? |the )?(?:{'|'.join(map(re.escape, _NAMES))})(?:e?s)?\b", re.IGNORECASE)


def said(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether an answer occurs in the reply as whole words, and not only as part of another name: "bottom left" does not say "bottom"."""
    answers = {normalise(answer) for answer in question.answers}

    def unless_another(match: re.Match[str]) -> str:
        name = normalise(match[0])
        another = name not in answers and any(f" {answer} " in f" {name} " for answer in answers)
        return "another" if another else match[0]

    words = f" {normalise(_WHAT_IT_IS_ABOUT.sub(unless_another, reply.text))} "
    found = next((answer for answer in question.answers if f" {normalise(answer)} " in words), None)
    return Score(float(found is not None), extracted=found)


def unheard(suite: Benchmark, data: Path) -> Benchmark:
    """The questions of a suite that training asked in no such form.

    The teacher speaks in sentences, where the suite's own exact match wants few words.
    """
    rows = json.loads((data / "instruct.json").read_text(encoding="utf-8"))
    heard = {form(turn["value"].removeprefix("<image>\n")) for row in rows for turn in row["conversations"] if turn["from"] == "human"}

    def load(folder: Path, protocol: str) -> Sequence[Question]:
        return [question for question in suite.load(folder, protocol) if form(question.conversation.messages[-1].text.strip()) not in heard]

    kept, total = len(load(Path(), "")), len(suite.questions())
    print(f"{kept} of {total} questions of {suite.name} are asked in words that training never used.")
    return replace(
        suite,
        name=f"{suite.name}-unheard",
        protocols=(Protocol("contains", "an answer occurs in the reply, and not as part of another name"),),
        load=load,
        score=said,
        scorer=f"{suite.scorer}, said",
    )


def score(engine: Engine, suite: Benchmark, folder: Path, name: str, *, blind: bool = False) -> BenchmarkResult:
    with counting(f"{suite.name}: {name}") as progress:
        result, _ = asyncio.run(evaluate(engine, suite, folder, model_name=name, checkpoint=name, blind=blind, progress=progress))
    print(
        f"{name}: {result.metric('overall'):.3f}",
        {each.name: round(each.value, 2) for each in result.metrics if "/" not in each.name},
        flush=True,
    )
    return result


def adapters(work: Path, data: Path, seeds: int) -> Iterator[tuple[str, Path]]:
    """(name, folder) of every adapter: for each seed one that saw the pictures, and one that saw grey."""
    cache = str(work / "features")
    align = replace(smol_align(), output=str(work / "align"), feature_cache=cache, epochs=8.0)
    aligned = trained(replace(align, data=DataConfig(dataset="align.jsonl", root=str(data / "scenes"))))
    for seed in range(seeds):
        for name, rows in (("sighted", "instruct.json"), ("blind", "blind.json")):
            tune = replace(smol_tune(), output=str(work / f"{name}-{seed}"), feature_cache=cache, seed=seed, epochs=1.0)
            tune = replace(tune, model=replace(tune.model, init_from=str(aligned)), data=DataConfig(dataset=rows, root=str(data)))
            yield f"{name}-{seed}", trained(tune)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/annotations_to_score"))
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="only the first so many questions of the suite")
    arguments = parser.parse_args()
    data = make_data(arguments.work / "data", arguments.rows)
    suite = unheard(BENCHMARKS["scenes-v1"], data)
    if arguments.limit:
        first = suite.questions()[: arguments.limit]
        suite = replace(suite, name=f"{suite.name}-{arguments.limit}", load=lambda folder, protocol: first)
    base = apart(start_model, smol_align().model)
    with Engine(base.model, base.processor) as engine:
        results = {"base": [score(engine, suite, arguments.work / "base", "base").metric("overall")]}
    for name, folder in adapters(arguments.work, data, arguments.seeds):
        with Engine.from_folder(folder) as engine:
            result = score(engine, suite, folder.parent, name, blind=name.startswith("blind"))
        results.setdefault(name.partition("-")[0], []).append(result.metric("overall"))
    for name, values in results.items():
        print(f"{name:8} {statistics.mean(values):.3f}  {[round(value, 3) for value in values]}")
    atomic_write(arguments.work / "scores.json", json.dumps(results, indent=1).encode())


if __name__ == "__main__":
    main()
