"""Replies that are instances of a JSON schema: which tokens may come next.

    schema ─trial, in a process with limits─► compiled, once for all replies ─► a GrammarState per reply: allowed → draw → accept

The work is llguidance's (a lexer and an Earley parser over the tokenizer's bytes). A schema comes from strangers, and there are small ones
that take for ever to compile, by their patterns above all; so a process that can be killed tries each new one first. What a step may cost
is limited by llguidance itself, and a reply that reaches the limit fails alone.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistune.errors import OutOfMemory, ResponseSchemaError, optional_import

MAX_SCHEMA_BYTES = 65_536
KEPT_GRAMMARS = 64
KEPT_SCHEMA_BYTES = 4 * MAX_SCHEMA_BYTES
"""A grammar of a schema with 2,000 properties, as large as one may be, takes 25 MB."""
NUM_COMPILERS = 2

TRIAL = Path(__file__).with_name("grammar_trial.py")
TRIAL_CPU_SECONDS = 2
"""Thousands of properties take half a second."""
TRIAL_SECONDS = 30
"""By the clock, on a machine that is busy with other things."""
TRIAL_MEMORY_BYTES = 512 << 20

# Compact, or with one blank after commas and colons, as json.dumps writes it: where any whitespace is allowed, a small model can
# go on with it for ever. All options are set, for a schema can name some itself ("x-guidance").
JSON_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "coerce_one_of": False,
    "lenient": False,
    "json_allowed_escapes": '"\\nrt',  # not \u: half a surrogate pair is no text; a model writes the letter itself
    "json_allow_general_unicode_escapes": False,
}

# llguidance's own limits (fuel is spent 14,000 a millisecond), but for the lexer's memory: at most 40 MB a reply.
PARSER_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}

TOO_COSTLY = "it takes too long, or too much memory, to compile; simplify its patterns, multipleOf and alternatives."


class Grammar:
    """A compiled schema, for any number of replies."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def begin(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy())


class GrammarState:
    """Where one reply is in its grammar."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether the text is an instance of the schema that nothing can be added to."""
        return self._matcher.is_stopped()

    def allowed(self, vocabulary: int) -> Tensor:
        """Which tokens may come next, [vocabulary]; those that end a reply where the text is an instance of the schema.

        Raises:
            ResponseSchemaError: finding out takes too long.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, bitorder="little", count=vocabulary)).bool()

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ResponseSchemaError("The reply's schema became too costly to follow; simplify its patterns and alternatives.")


class Grammars:
    """The schemas that were asked for lately, compiled for one tokenizer.

    Args:
        vocabulary: rows of the model's embedding; may be more than the tokenizer knows.
        stop_ids: tokens that end a reply.
    """

    def __init__(self, tokenizer: Any, *, vocabulary: int, stop_ids: Collection[int]):
        self._tokenizer, self._vocabulary, self._stop_ids = tokenizer, vocabulary, sorted(stop_ids)
        self._compilers = ThreadPoolExecutor(NUM_COMPILERS, thread_name_prefix="vistune-grammar")  # starts them when there is work
        self._known: OrderedDict[str, Future[Grammar | str]] = OrderedDict()
        """Grammars, or why there is none, by schema; the one used last at the end."""
        self._lock = threading.Lock()
        self._lexicon: Any = None
        self._lexicon_lock = threading.Lock()

    async def compiled(self, schema: str) -> Grammar:
        """The grammar of a schema, compiled at its first use.

        Raises:
            ResponseSchemaError: it is no schema, cannot be fulfilled, is too large or costly, or has a keyword that is not supported.
            MissingDependency: llguidance is not installed.
        """
        llguidance = optional_import("llguidance", extra="serve")
        if len(schema.encode("utf-8", "surrogatepass")) > MAX_SCHEMA_BYTES:
            raise ResponseSchemaError(f"The reply's schema is too long; at most {MAX_SCHEMA_BYTES:,} bytes are read.")
        with self._lock:
            future = self._known.pop(schema, None) or self._compilers.submit(self._compile, llguidance, schema)
            self._known[schema] = future
            self._forget()
        # Shielded: who waits for the same schema keeps it when another one leaves.
        outcome = await asyncio.shield(asyncio.wrap_future(future))
        if isinstance(outcome, str):
            raise ResponseSchemaError(f"Replies cannot be kept to this schema: {outcome}")
        return outcome

    def _forget(self) -> None:
        while len(self._known) > KEPT_GRAMMARS or sum(map(len, self._known)) > KEPT_SCHEMA_BYTES:
            self._known.popitem(last=False)

    # --- in a compiler's thread ---

    def _compile(self, llguidance: ModuleType, schema: str) -> Grammar | str:
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
        except ValueError as error:  # no JSON, no object, or nested too deeply
            return f"{error}."
        # Llama's first word begins with a blank, which belongs to the template.
        grammar = json.loads(grammar)
        grammar = llguidance.LLMatcher.grammar_from_lark(
            f'start: " "? reply\nreply: %json {json.dumps(grammar["grammars"][0]["json_schema"])}'
        )
        try:
            refused = tried(grammar)
        except OutOfMemory:
            with self._lock:
                self._known.pop(schema, None)  # the next one may have more luck
            raise
        if refused:
            return refused
        limits = llguidance.LLParserLimits(**PARSER_LIMITS)
        matcher = llguidance.LLMatcher(self._vocabulary_of(llguidance), grammar, log_level=0, limits=limits)
        matcher.compute_bitmask()
        return matcher.get_error().partition("\n")[0] or Grammar(matcher)

    def _vocabulary_of(self, llguidance: ModuleType) -> Any:
        """The tokenizer as llguidance reads it: the bytes of every token, in a tree. Takes a second for a large one."""
        hf = optional_import("llguidance.hf", extra="serve")
        with self._lexicon_lock:
            if self._lexicon is None:
                self._lexicon = hf.from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._stop_ids)
            return self._lexicon


def tried(grammar: str) -> str:
    """Compiles the grammar in a process that is killed at its limits. Returns why it cannot be used; empty where it can.

    Raises:
        OutOfMemory: no process can be started.
    """
    place = Path(str(optional_import("llguidance", extra="serve").__file__)).parents[1]
    numbers = (str(TRIAL_CPU_SECONDS), str(TRIAL_MEMORY_BYTES))
    try:
        trial = subprocess.run(
            [sys.executable, "-I", "-S", str(TRIAL), str(place), json.dumps(PARSER_LIMITS), *numbers],
            input=grammar.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return TOO_COSTLY
    except OSError as error:
        raise OutOfMemory(f"No process for trying a schema can be started ({error.strerror}).") from error
    if trial.returncode:
        return TOO_COSTLY
    said = trial.stdout.decode("utf-8", "replace").partition("\n")[0]
    return said.rpartition("failed to compile JSON schema: ")[2][:200]
