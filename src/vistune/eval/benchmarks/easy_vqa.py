"""easy-VQA (Victor Zhou, MIT): 64 x 64 pictures of one shape, questions with 13 possible answers; read from the PyPI package `easy-vqa`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vistune.errors import optional_import
from vistune.eval.benchmark import About, Benchmark, Protocol, by_kind
from vistune.eval.scoring import SCORER_VERSION, exact_match
from vistune.formats import write_examples
from vistune.types import Conversation, ImagePart, InstructionExample, Message, Question, SamplingParams, TextPart

TEST_QUESTIONS = 9_673
PER_CONVERSATION = 10


@cache
def load_test() -> tuple[Question, ...]:
    """All test questions, by picture; the category is shape, color or yes-no."""
    easy_vqa = optional_import("easy_vqa", extra="eval")
    texts, answers, image_ids = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    return tuple(
        Question(
            id=f"easy-vqa-{number}",
            conversation=Conversation((Message("user", (ImagePart(Path(paths[image])), TextPart(f"\n{_sentence(text)}"))),)),
            answers=(answer,),
            category=_category(text, answer),
            image_group=str(image),
        )
        for number, (text, answer, image) in enumerate(zip(texts, answers, image_ids, strict=True))
    )


def write_train(folder: Path) -> Path:
    """Writes the train split as LLaVA JSON (`folder/instruct.json`), up to ten questions a conversation; pictures stay where pip put them.

    Image paths are relative to `easy_vqa`'s folder (`image_root()`).
    """
    easy_vqa = optional_import("easy_vqa", extra="eval")
    texts, answers, image_ids = easy_vqa.get_train_questions()
    paths = easy_vqa.get_train_image_paths()
    by_image: dict[int, list[tuple[str, str]]] = {}
    for text, answer, image in zip(texts, answers, image_ids, strict=True):
        by_image.setdefault(image, []).append((text, answer))
    examples = []
    for image in sorted(by_image):
        pairs = by_image[image]
        for start in range(0, len(pairs), PER_CONVERSATION):
            conversation = Conversation(())
            for turn, (text, answer) in enumerate(pairs[start : start + PER_CONVERSATION]):
                picture = (ImagePart(Path(paths[image])), TextPart("\n")) if turn == 0 else ()
                conversation = conversation.then("user", *picture, _sentence(text)).then("assistant", answer.capitalize() + ".")
            examples.append(InstructionExample(f"easy-vqa-{image}-{start}", conversation, kind="easy-vqa"))
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(examples, folder / "instruct.json", image_root())
    return folder / "instruct.json"


def image_root() -> Path:
    """The folder that the training pictures' paths are relative to."""
    return Path(str(optional_import("easy_vqa", extra="eval").__file__)).parent


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _category(text: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes-no"
    return "color" if "color" in text else "shape"


EASY_VQA = Benchmark(
    "easy-vqa",
    "1.0",
    about=About(
        title="easy-VQA: one shape on a coloured ground",
        source="the PyPI package easy-vqa (pip install 'vistune[eval]')",
        licence="MIT",
        layout="",
        metric="exact match, mean over the kinds shape, color and yes-no",
        paper="https://victorzhou.com/blog/easy-vqa",
    ),
    protocols=(Protocol("exact", "the question as it is; exact match after normalising form"),),
    load=lambda folder, protocol: load_test(),
    score=exact_match,
    summarise=by_kind,
    scorer=SCORER_VERSION,
    params=SamplingParams(max_new_tokens=16),
    needs_data=False,
)
