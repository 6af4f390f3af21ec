"""COCO captions: one sentence about a picture, compared with five that people wrote. The metrics are in `captions`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vistune.errors import DataError
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.captions import as_metrics, caption_items, extremes, require_tools, rouge
from vistune.eval.official_files import Pictures, Row, json_rows, require_count, unique
from vistune.eval.shared import about_pictures, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

KARPATHY_FILE = "dataset_coco.json"
VAL2017_FILE = "annotations/captions_val2017.json"
PICTURES = 5_000
PROMPT = "Provide a one-sentence caption for the provided image."


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """One question a picture: those of Karpathy's test split of COCO 2014, or of COCO's validation set of 2017.

    Raises:
        DataError: a file or picture is missing, an id comes twice, a picture has no caption, or there are not 5,000.
        MissingDependency: the metrics of the protocol cannot be computed here.
    """
    require_tools(protocol.endswith("-java"))
    questions = _karpathy(folder) if protocol.startswith("karpathy") else _val2017(folder)
    if check_counts:
        require_count(len(questions), PICTURES, f"{folder}: pictures of {protocol.removesuffix('-java')}")
    return questions


def _karpathy(folder: Path) -> list[Question]:
    rows = [row for row in json_rows(folder / KARPATHY_FILE, "images") if row.get("split") == "test"]
    folders: dict[str, Pictures] = {}
    questions = []
    for name, row in unique(rows, lambda row: row.name("cocoid")).items():
        sentences = row.get("sentences")
        captions = [Row(each, row.where).text("raw") for each in sentences] if isinstance(sentences, list) else []
        place = row.choice("filepath", ["val2014", "train2014"])
        folders[place] = folders.get(place) or Pictures(folder / place)
        questions.append(_question(name, row, folders[place], captions))
    return questions


def _question(name: str, row: Row, pictures: Pictures, captions: Sequence[str]) -> Question:
    if not captions:
        raise row.error("it has no captions")
    image = row.name("filename") if "filename" in row.values else row.name("file_name")
    return Question(name, about_pictures(pictures.part(image, row), PROMPT), answers=tuple(captions), image_group=name)


def _val2017(folder: Path) -> list[Question]:
    captions: dict[str, list[str]] = {}
    for row in json_rows(folder / VAL2017_FILE, "annotations"):
        captions.setdefault(row.name("image_id"), []).append(row.text("caption"))
    images = unique(json_rows(folder / VAL2017_FILE, "images"), lambda row: row.name("id"))
    stray = next((name for name in captions if name not in images), None)
    if stray:
        raise DataError(f"{folder / VAL2017_FILE}: a caption is of picture {stray!r}, which is not there; get the file again.")
    pictures = Pictures(folder / "val2017")
    return [_question(name, row, pictures, captions.get(name, [])) for name, row in images.items()]


def score(question: Question, reply: Reply, protocol: str) -> Score:
    """ROUGE-L of one caption, which needs no other captions; for comparing items. The figures are those of `summarise`."""
    said = reply.text.strip()
    return unanswered(reply) or Score(rouge(said, question.answers), extracted=said)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    return as_metrics(caption_items(graded), tokenise=True, java=protocol.endswith("-java"))


_PYTHON, _JAVA = "tokens by vistune's own rules, no METEOR", "Stanford's tokeniser and METEOR, which need Java"
BENCHMARK = Benchmark(
    "coco-captions",
    "1",
    about=About(
        title="COCO captions: one sentence about a picture",
        source="https://cocodataset.org (pictures, annotations 2017); dataset_coco.json from https://cs.stanford.edu/people/karpathy/deepimagesent",
        licence="CC BY 4.0 (captions); the pictures under Flickr's terms",
        layout=f"{KARPATHY_FILE} and val2014/ (protocols karpathy)\n{VAL2017_FILE} and val2017/ (protocols val2017)",
        metric="CIDEr x 100",
        paper="https://arxiv.org/abs/1504.00325",
    ),
    protocols=(
        Protocol("karpathy", f"Karpathy's test split; {_PYTHON}"),
        Protocol("karpathy-java", f"Karpathy's test split; {_JAVA}"),
        Protocol("val2017", f"the validation pictures of 2017; {_PYTHON}"),
        Protocol("val2017-java", f"the validation pictures of 2017; {_JAVA}"),
    ),
    load=load,
    score=score,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=64),
    sizes=dict.fromkeys(("karpathy", "karpathy-java", "val2017", "val2017-java"), PICTURES),
    extremes=extremes,
    intervals=False,
)
