"""Compiles one grammar and ends: the process in which `grammar.py` tries what a stranger sent. Never imported.

    python -I -S grammar_trial.py PLACE_OF_LLGUIDANCE LIMITS_AS_JSON CPU_SECONDS MEMORY_BYTES  < grammar

Ends with 0 and says on standard output why the grammar cannot be used, nothing where it can; or is killed by a limit.
"""

from __future__ import annotations

import json
import sys


def main(place: str, limits: str, cpu_seconds: str, memory_bytes: str) -> None:
    grammar = sys.stdin.buffer.read().decode()
    _limit(int(cpu_seconds), int(memory_bytes))
    sys.path.append(place)
    import llguidance

    # Compiling is much the same for all tokenizers; this one is there at once.
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**json.loads(limits)))
    matcher.consume_token(ord(" "))  # past the optional blank: what cannot be fulfilled says so at its first token
    matcher.compute_bitmask()
    sys.stdout.buffer.write(matcher.get_error().encode())


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: what is left is the clock of whoever started this
        return
    for name, value in (("RLIMIT_CPU", cpu_seconds), ("RLIMIT_AS", memory_bytes), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0)):
        resource.setrlimit(getattr(resource, name), (value, value))


if __name__ == "__main__":
    main(*sys.argv[1:])
