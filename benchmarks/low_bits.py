"""What int8 and int4 weights cost in answers and give in memory and speed, beside the weights as they are.

    python benchmarks/low_bits.py [--model FOLDER] [--questions N] [--quick] [--no-speed] [--out FILE]

Quality: perplexity of held-out conversations about drawn scenes and of plain text, and how far the next token's distribution moves (KL, in
nats a token, from the full weights'); scores on scenes-v1 and easy-VQA, every so many of their questions, and how many greedy answers stay
word for word. Answers are given in deterministic mode, so that a difference is the weights' alone.
Speed: the three take turns; a ratio is the median over the turns of what they did one after the other. Other programs on the machine do not
move perplexities and scores, but do move times: measure those alone. Where torchao is installed, single products are timed beside its own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import io
import json
import logging
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistune.checkpoint.files import folder_digest
from vistune.checkpoint.shared import load_sharing
from vistune.doctor import describe_machine
from vistune.engine.engine import Engine, best_dtype
from vistune.eval.benchmarks import BENCHMARKS
from vistune.journal import atomic_write
from vistune.model.inputs import IGNORE_INDEX, ModelInputs, RaggedBatch, lay_end_to_end
from vistune.model.llava import Llava
from vistune.model.low_bits import Bits, LowBitWeight
from vistune.model.processor import Processor
from vistune.pull import pull
from vistune.scenes import SceneSpec, plan_scene, render_scene, sprite_bank
from vistune.scenes.questions import dialogue
from vistune.types import Conversation, ImagePart, Question, Reply, SamplingParams

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "low_bits.json"
WEIGHTS = ("full", "int8", "int4")
SUITES = ("scenes-v1", "easy-vqa")
TEXT_CHUNK = 384
PROMPT_WORDS = 300
DECODED = 48
ROWS = (1, 4, 16, 256)


def load(name: str, weights: str, dtype: torch.dtype) -> tuple[Llava, Processor]:
    return load_sharing(pull(name), (), dtype=dtype, weights=cast(Literal["full"] | Bits, weights))[0]


# --- memory ---


def weight_bytes(model: Llava) -> dict[str, int]:
    """Bytes of the decoder layers' linear weights, and of everything else that the model holds (a tied head counts once)."""
    linear, whole = 0, sum(parameter.nbytes for parameter in model.parameters())
    for module in model.causal_lm.model.layers.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            if isinstance(weight, LowBitWeight):
                packed = sum(tensor.nbytes for tensor in vars(weight).values() if isinstance(tensor, Tensor))
                linear, whole = linear + packed, whole + packed
            else:
                linear += weight.nbytes
    return {"linear_layers": linear, "model": whole}


def memory_of(name: str, weights: str, dtype: torch.dtype) -> dict[str, Any]:
    """In this process, which should be a new one: bytes held, resident after loading, and at the peak of loading and of one answer."""
    model, processor = load(name, weights, dtype)
    bytes_held, resident, loading = weight_bytes(model), resident_mb(), peak_mb()
    with Engine(model, processor) as engine:
        asyncio.run(engine.generate(scene_conversation(0, turns=1, answered=False), SamplingParams(max_new_tokens=8)))
    return {"bytes": bytes_held, "resident_mb": resident, "peak_loading_mb": loading, "peak_mb": peak_mb()}


def resident_mb() -> float:
    return round(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20, 1)


def peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def memory_in_a_process(options: argparse.Namespace, weights: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", options.model, "--dtype", options.dtype, "--memory-of", weights]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


# --- quality ---


def scene_conversation(number: int, *, turns: int = 7, answered: bool = True) -> Conversation:
    """A drawn scene that neither training nor scenes-v1 has, and what is right about it."""
    scene, file, conversation = plan_scene(f"low-bits/{number}", SceneSpec(), sprite_bank()), io.BytesIO(), Conversation(())
    render_scene(scene).save(file, "PNG")
    for turn, question in enumerate(dialogue(scene, random.Random(f"low-bits/{number}"), sprite_bank(), turns=turns)):
        words = (ImagePart(file.getvalue()), f"\n{question.text}") if turn == 0 else (question.text,)
        conversation = conversation.then("user", *words)
        if answered:
            conversation = conversation.then("assistant", question.answer)
    return conversation


def text_batches(processor: Processor, count: int) -> list[RaggedBatch]:
    """Plain English in chunks: this project's own pages."""
    text = "\n\n".join(page.read_text(encoding="utf-8") for page in sorted((HERE.parent / "docs").glob("*.md")))
    letters = text[: count * TEXT_CHUNK * 6]  # more than enough: a token is four or so
    ids = torch.tensor(processor.tokenizer(letters, add_special_tokens=False).input_ids[: count * TEXT_CHUNK])
    return [lay_end_to_end([ModelInputs(part, torch.zeros(len(part), dtype=torch.bool), labels=part)]) for part in ids.split(TEXT_CHUNK)]


@torch.inference_mode()
def distributions(model: Llava, batches: Sequence[RaggedBatch]) -> tuple[float, int, list[Tensor]]:
    """Summed cross entropy, the number of tokens, and each batch's log-probabilities before its supervised tokens [n, V]."""
    total, count, every = 0.0, 0, []
    for batch in batches:
        assert batch.labels is not None
        supervised = batch.labels != IGNORE_INDEX
        supervised[batch.cu_seqlens[:-1].long()] = False
        at = supervised.nonzero().squeeze(1)
        log_probs = model(batch, select=at - 1).log_softmax(-1)
        total -= float(log_probs.gather(1, batch.labels[at][:, None]).sum())
        count += len(at)
        every.append(log_probs)
    return total, count, every


def perplexities(models: dict[str, Llava], batches: Sequence[RaggedBatch]) -> dict[str, dict[str, float]]:
    """Perplexity of each, and KL from the full weights' distribution; one batch at a time, since distributions are large."""
    sums = {name: [0.0, 0.0] for name in models}
    tokens = 0
    for batch in batches:
        found = {name: distributions(model, [batch]) for name, model in models.items()}
        (reference,) = found["full"][2]
        tokens += found["full"][1]
        for name, (entropy, _, (own,)) in found.items():
            sums[name][0] += entropy
            sums[name][1] += float(F.kl_div(own, reference, log_target=True, reduction="sum"))
    return {name: {"perplexity": round(math.exp(nll / tokens), 4), "kl": round(kl / tokens, 5)} for name, (nll, kl) in sums.items()}


def chosen_questions(suite: str, count: int) -> list[Question]:
    every = list(BENCHMARKS[suite].questions())
    return every[:: max(len(every) // count, 1)][:count]


async def answers(engine: Engine, questions: Sequence[Question], params: SamplingParams) -> list[Reply]:
    return list(await asyncio.gather(*(engine.generate(each.conversation, params) for each in questions)))


def scores(engines: dict[str, Engine], suite: str, count: int) -> dict[str, dict[str, float]]:
    questions, benchmark = chosen_questions(suite, count), BENCHMARKS[suite]
    replies = {name: asyncio.run(answers(engine, questions, benchmark.params)) for name, engine in engines.items()}
    result = {}
    for name, own in replies.items():
        right = [benchmark.score(question, reply, "").value == 1 for question, reply in zip(questions, own, strict=True)]
        same = [one.text == other.text for one, other in zip(own, replies["full"], strict=True)]
        result[name] = {
            "n": len(questions),
            "exact_match": round(sum(right) / len(right), 4),
            "same_answer": round(sum(same) / len(same), 4),
        }
    return result


# --- speed ---


async def timed(engine: Engine, conversations: Sequence[Conversation], tokens: int) -> float:
    """Tokens a second: of the prompts where one token is asked for, else of the replies."""
    params = SamplingParams(max_new_tokens=tokens, temperature=1.5, seed=1)  # hot, so that no reply ends early
    started = time.perf_counter()
    replies = await asyncio.gather(*(engine.generate(each, params) for each in conversations))
    seconds = time.perf_counter() - started
    return sum(reply.prompt_tokens - reply.cached_tokens if tokens == 1 else reply.completion_tokens for reply in replies) / seconds


def speeds(engines: dict[str, Engine], turns: int) -> dict[str, dict[str, Any]]:
    """Median tokens a second, and the median ratio to the full weights of the same turn."""
    work = {"prefill": (PROMPT_WORDS, 1, 1), "decode_1": (8, 1, DECODED), "decode_16": (8, 16, DECODED)}
    result: dict[str, dict[str, Any]] = {}
    for what, (words, streams, tokens) in work.items():
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(turns + 1):
            prompts = [words_about(f"{what}/{turn}/{stream}", words) for stream in range(streams)]
            for name, engine in engines.items():
                rate = asyncio.run(timed(engine, prompts, tokens))
                if turn:  # the first warms up
                    rates[name].append(rate)
        result[what] = {
            name: {
                "tokens_per_second": round(statistics.median(own), 1),
                "of_full": round(statistics.median(one / full for one, full in zip(own, rates["full"], strict=True)), 3),
            }
            for name, own in rates.items()
        }
    return result


def words_about(seed: str, count: int) -> Conversation:
    rng = random.Random(seed)
    return Conversation(()).then(
        "user", "Tell me a long story. " + " ".join(rng.choice(("red", "sea", "house", "bird", "tree")) for _ in range(count))
    )


def products(models: dict[str, Llava], repeats: int) -> list[dict[str, Any]]:
    """Microseconds of single products of the model's own shapes, the best of several in turn; torchao's where it is installed."""
    layer = {name: dict(model.causal_lm.model.layers[0].named_modules()) for name, model in models.items()}
    rows = []
    for path in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"):
        kinds: dict[str, nn.Module] = {name: modules[path] for name, modules in layer.items()} | torchao_layers(layer["full"][path])
        for count in ROWS:
            input = torch.randn(count, cast(nn.Linear, layer["full"][path]).in_features).to(models["full"].dtype)
            times = best_in_turn({name: partial(module, input) for name, module in kinds.items()}, repeats)
            shape = list(cast(nn.Linear, layer["full"][path]).weight.shape)
            rows.append({"layer": path, "shape": shape, "rows": count, "us": {name: round(each * 1e6) for name, each in times.items()}})
    return rows


def torchao_layers(linear: nn.Module) -> dict[str, nn.Module]:
    """The same layer as torchao's weight-only int8 and (prototype) int4 for CPUs."""
    if importlib.util.find_spec("torchao") is None:
        return {}
    logging.disable(logging.WARNING)  # of kernels for GPUs that this torch cannot load
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig  # type: ignore[import-not-found]
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-not-found]

    made: dict[str, nn.Module] = {}
    for name, config in (("torchao_int8", Int8WeightOnlyConfig()), ("torchao_int4", PrototypeInt4WeightOnlyConfig(group_size=32))):
        original = cast(nn.Linear, linear)
        copy = nn.Linear(original.in_features, original.out_features, bias=False, dtype=original.weight.dtype)
        copy.weight = nn.Parameter(original.weight.detach().clone(), requires_grad=False)
        quantize_(copy, config)
        made[name] = copy
    return made


@torch.inference_mode()
def best_in_turn(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    best = dict.fromkeys(work, math.inf)
    for _ in range(repeats + 1):
        for name, each in work.items():
            started = time.perf_counter()
            each()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


# --- the report ---


def measure(options: argparse.Namespace) -> dict[str, Any]:
    dtype = precision(options)
    memory = {name: memory_in_a_process(options, name) for name in WEIGHTS}
    loaded = {name: load(options.model, name, dtype) for name in WEIGHTS}
    models = {name: model for name, (model, _) in loaded.items()}
    processor = loaded["full"][1]
    conversations = [scene_conversation(number) for number in range(options.scenes)]
    quality: dict[str, Any] = {
        "scenes": perplexities(models, [lay_end_to_end([processor(each, train=True)]) for each in conversations]),
        "plain_text": perplexities(models, text_batches(processor, options.scenes)),
    }
    engines = {name: Engine(*each, deterministic=True) for name, each in loaded.items()}
    for suite in SUITES:
        quality[suite] = scores(engines, suite, options.questions)
    for engine in engines.values():
        engine.close()
    speed, single = None, None
    if options.speed:
        engines = {name: Engine(*each) for name, each in loaded.items()}
        speed, single = speeds(engines, options.turns), products(models, options.turns * 4)
        for engine in engines.values():
            engine.close()
    machine = describe_machine(ask_torch=False)
    packages = ["torch", "transformers", *(["torchao"] if importlib.util.find_spec("torchao") else [])]
    return {
        "model": options.model,
        "model_digest": folder_digest(pull(options.model)),
        "dtype": str(dtype).removeprefix("torch."),
        "device": f"{machine.cpu}, {machine.cores} cores, {torch.get_num_threads()} threads",
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "scene_conversations": options.scenes,
        "memory": memory,
        "quality": quality,
        "speed": speed,
        "products": single,
    }


def precision(options: argparse.Namespace) -> torch.dtype:
    return best_dtype("cpu") if options.dtype == "auto" else getattr(torch, options.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assistant", help="a folder, or a name that `vistune pull` knows")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--questions", type=int, default=400, help="of each suite")
    parser.add_argument("--scenes", type=int, default=24, help="conversations, and chunks of text")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="40 questions, 6 conversations, 2 turns")
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="where other programs are running")
    parser.add_argument("--memory-of", choices=WEIGHTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.memory_of:
        return print(json.dumps(memory_of(options.model, options.memory_of, precision(options))))
    if options.quick:
        options.questions, options.scenes, options.turns = 40, 6, 2
    report = json.dumps(measure(options), indent=1)
    print(report)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out, (report + "\n").encode())
    return None


if __name__ == "__main__":
    main()
