"""The house keeps its shape: which way imports go, what starts light, what nobody calls, and one exit code per error."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vistune
from vistune import errors

HOUSE = Path(vistune.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))

GROUND = {
    "calls",
    "chat_model",
    "decode_child",
    "decoding",
    "errors",
    "formats",
    "http_client",
    "image_headers",
    "journal",
    "media",
    "rates",
    "scenes",
    "types",
}
GROUND |= {"speed", "video"}
ROOMS = {"datagen", "data", "model", "checkpoint", "train", "engine", "eval", "board", "serve"}

# Who may import whom, docs/architecture.md drawn as a table. A room may always import itself; what is not here may not be imported.
MAY_IMPORT: dict[str, set[str]] = {
    # the public surface: names of the rooms, each imported when it is first used
    "__init__": GROUND | ROOMS | {"pull"},
    "__main__": {"cli", "errors"},
    "cli": GROUND | ROOMS | {"cli_data", "cli_eval", "cli_model", "cli_serve", "cli_train", "pull", "doctor"},
    "cli_data": GROUND | ROOMS | {"pull"},
    "cli_eval": GROUND | ROOMS | {"cli_model", "pull"},
    "cli_model": GROUND | ROOMS | {"pull"},
    "cli_serve": GROUND | {"cli_model", "serve"},
    "cli_train": GROUND | {"doctor", "engine", "model", "train"},
    "doctor": {"pull", "journal", "errors", "speed"},
    # serve, eval, datagen and board see a ChatModel and nothing of what it is made of
    "datagen": GROUND,
    "eval": GROUND,
    "board": GROUND,
    "serve": GROUND,
    "train": GROUND | {"data", "checkpoint", "model", "pull"},
    "engine": GROUND | {"checkpoint", "model"},
    "data": GROUND | {"model"},
    # The one knot: a checkpoint pulls the backbones that it names, and pull converts what it fetched (tied late, see below).
    "checkpoint": GROUND | {"model", "pull"},
    "model": GROUND,
    "pull": GROUND | {"checkpoint"},
    **dict.fromkeys(GROUND, GROUND),
}

# Rooms and files that only talk, read and draw, and the torch-free files of the rooms that compute.
LIGHT_ROOMS = GROUND | {"datagen", "eval", "board", "serve"}
LIGHT_ROOMS |= {"__main__", "cli", "cli_data", "cli_eval", "cli_model", "cli_serve", "cli_train", "doctor", "pull"}
LIGHT_FILES = ("model/config.py", "model/backbones.py", "model/templates.py", "train/config.py", "train/recipes.py", "data/datasets.py")
LIGHT_FILES += tuple(f"train/{name}.py" for name in ("shapes", "limits", "memory", "expected", "plan"))
HEAVY = {"torch", "transformers", "peft", "accelerate", "matplotlib", "openai", "av", "prompt_toolkit", "fastapi", "uvicorn"}
HEAVY |= {"prometheus_client"}
ON_THE_WEB = (
    "serve/api.py",
    "serve/metrics.py",
    "serve/page.py",
    "serve/server.py",
)  # they are what the extra `serve` is for; only its verb imports them


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module, path: Path) -> Iterator[tuple[str, int]]:
    """(room, line) for every import of vistune in a file, also inside functions and for type checkers only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["vistune", *path.relative_to(HOUSE).parts[:-1]]
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("vistune."):
                yield name.split(".")[1], node.lineno


def test_imports_only_go_down_the_house():
    wrong = []
    for path in FILES:
        room = room_of(path)
        assert room in MAY_IMPORT, f"{path.name} is in no place of the house; give it one in MAY_IMPORT and docs/architecture.md"
        allowed = MAY_IMPORT[room] | {room, "__version__"}
        tree = ast.parse(path.read_text())
        wrong += [f"{path.relative_to(HOUSE)}:{line} imports {name}" for name, line in imported_rooms(tree, path) if name not in allowed]
    assert not wrong


def test_the_tree_in_the_architecture_page_names_every_file():
    page = HOUSE.parents[1] / "docs" / "architecture.md"
    if not page.is_file():
        pytest.skip("installed without its documentation")
    lines = page.read_text(encoding="utf-8").partition("src/vistune/\n")[2].partition("```")[0].splitlines()
    named: set[str] = set()
    rooms: list[str] = []
    for line in lines:
        depth = (len(line) - len(line.lstrip("│ "))) // 4
        entry = line.lstrip("│├└─ ")
        room, opens, _ = entry.partition("/ ")
        rooms = rooms[:depth] + ([room] if opens else [])
        named |= {"/".join([*rooms, word]) for word in re.findall(r"\w+", entry)}
    files = [path.relative_to(HOUSE).with_suffix("").as_posix() for path in FILES if path.name != "__init__.py"]
    assert not [name for name in files if name not in named]


def test_pull_takes_the_converters_of_the_checkpoint_room_only_when_it_converts():
    tree = ast.parse((HOUSE / "pull.py").read_text())
    at_import = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert "checkpoint" not in dict(imported_rooms(at_import, HOUSE / "pull.py"))


def test_the_import_scan_sees_relative_late_and_type_only_imports():
    source = "from ..train import trainer\ndef f():\n    import vistune.engine.engine\nif TYPE_CHECKING:\n    from vistune.data import x\n"
    found = [name for name, _ in imported_rooms(ast.parse(source), HOUSE / "serve" / "x.py")]
    assert sorted(found) == ["data", "engine", "train"]


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that are loaded after a statement ran in a fresh interpreter."""
    report = "import sys; print(*sys.modules, sep='\\n', file=sys.stderr)"
    program = f"try:\n {statement}\nexcept SystemExit: pass\nfinally:\n {report}"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return HEAVY & set(finished.stderr.split())


def test_the_import_of_vistune_loads_nothing_heavy():
    assert not loaded_by("import vistune")


def test_help_of_every_verb_loads_nothing_heavy():
    from vistune.cli import app, data_app, eval_app

    verbs = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert {"chat", "train", "doctor"} <= set(verbs)
    data_verbs = [command.name for command in data_app.registered_commands]
    assert {"check", "overlap"} <= set(data_verbs)
    eval_verbs = [command.callback.__name__ for command in eval_app.registered_commands if command.callback]
    assert {"run", "check", "compare"} == set(eval_verbs)
    runs = "; ".join(
        [
            *(f"main([{verb!r}, '--help'])" for verb in verbs),
            *(f"main(['data', {verb!r}, '--help'])" for verb in data_verbs),
            *(f"main(['eval', {verb!r}, '--help'])" for verb in eval_verbs),
        ]
    )
    assert not loaded_by(
        f"from vistune.__main__ import main; main(['--help']); {runs}; main(['train', '--list']); main(['train', '--show', 'smol_tune'])"
    )


@pytest.mark.nightly
def test_help_is_there_in_a_third_of_a_second():
    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vistune", "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) <= 0.3


def test_the_ground_floor_and_the_rooms_that_only_talk_load_nothing_heavy():
    light = [path for path in FILES if room_of(path) in LIGHT_ROOMS or path.relative_to(HOUSE).as_posix() in LIGHT_FILES]
    light = [path for path in light if path.relative_to(HOUSE).as_posix() not in ON_THE_WEB]
    modules = [".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__") for path in light]
    assert {"types", "scenes", "serve.terminal", "train.recipes"} <= set(modules)
    assert not loaded_by("; ".join(f"import vistune.{name}" for name in modules))


PICKLE_READERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
PICKLE_PLACE = "checkpoint/convert_pickle.py"  # the confined child process


def forbidden(tree: ast.Module, place: str) -> Iterator[tuple[str, int]]:
    """(what, line) for every call or import that this project does without."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                tops = {module.split(".")[0]} if module else {alias.name.split(".")[0] for alias in names}
                if tops & PICKLE_READERS and place != PICKLE_PLACE:
                    yield "a reader of pickles", node.lineno
                if "torchvision" in tops:
                    yield "torchvision (replaces the CPU build of torch)", node.lineno
            case ast.Call(func=ast.Name(id="eval" | "exec" | "__import__" as name)):
                yield f"{name}()", node.lineno
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                yield "torch.load (reads pickles)", node.lineno
            case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "unsafe_load" | "full_load")):
                yield "yaml.load (builds objects)", node.lineno
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen")):
                yield "a shell", node.lineno
            case ast.Attribute(attr="extractall"):
                yield "extractall (writes where the archive says)", node.lineno
            case ast.keyword(arg="shell" | "allow_pickle" | "trust_remote_code" as name, value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"{name}=", node.value.lineno
            case ast.ExceptHandler(type=None):
                yield "a bare except", node.lineno
            case ast.ExceptHandler(type=ast.Name(id="Exception" | "BaseException"), body=[ast.Pass()]):
                yield "an error that is swallowed", node.lineno


def test_nothing_in_the_house_reads_pickles_runs_text_or_swallows_errors():
    found = []
    for path in FILES:
        place = path.relative_to(HOUSE).as_posix()
        found += [f"{place}:{line}: {what}" for what, line in forbidden(ast.parse(path.read_text()), place)]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torchvision.transforms",
        "eval('1')",
        "exec(text)",
        "torch.load(path, weights_only=True)",
        "yaml.load(text)",
        "os.system('ls')",
        "archive.extractall(folder)",
        "run(command, shell=True)",
        "numpy.load(path, allow_pickle=True)",
        "load(name, trust_remote_code=flag)",
        "try:\n    f()\nexcept:\n    g()",
        "try:\n    f()\nexcept Exception:\n    pass",
    ],
)
def test_the_lint_notices(source: str):
    assert list(forbidden(ast.parse(source), "somewhere.py"))


def test_the_lint_lets_ordinary_code_pass():
    source = "model.eval()\nyaml.safe_load(text)\nrun(command, shell=False)\ntry:\n    f()\nexcept OSError:\n    pass\n"
    assert not list(forbidden(ast.parse(source), "somewhere.py"))


def all_errors(kind: type[errors.VistuneError]) -> Iterator[type[errors.VistuneError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from all_errors(child)


def test_every_error_has_an_exit_code_of_its_own_which_no_shell_uses():
    kinds = [kind for kind in all_errors(errors.VistuneError) if kind.__module__.startswith("vistune.")]
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert len(set(codes.values())) == len(codes), codes
    assert codes.pop("Preempted") == 128 + signal.SIGTERM  # says to the shell what the shell would say
    assert all(1 <= code < 126 for code in codes.values())


def test_the_tree_at_the_top_of_errors_is_the_tree_of_its_classes():
    drawn: dict[str, tuple[int, str]] = {}  # name → exit code, parent
    open_branches: list[tuple[int, str]] = []
    for indent, name, code in re.findall(r"^([ │├└─]*)(\w+) +(\d+) {3}", errors.__doc__ or "", re.MULTILINE):
        while open_branches and open_branches[-1][0] >= len(indent):
            open_branches.pop()
        drawn[name] = int(code), open_branches[-1][1] if open_branches else "Exception"
        open_branches.append((len(indent), name))
    kinds = [kind for kind in all_errors(errors.VistuneError) if kind.__module__ == errors.__name__]
    assert drawn == {kind.__name__: (kind.exit_code, kind.__bases__[0].__name__) for kind in kinds}
