"""Python files with models: each is read with the neighbours it imports, and kept beside what was trained from it."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from ..ir.documents import parse_json, read_text
from ..ir.errors import ConfigError, MonographError
from ..ir.files import Stage
from . import trust
from .mistakes import mistake_of

FILE = "model_source.json"
"""In the folder of a run or a build: the texts of the Python files that its model is written in."""
FORMAT = "monograph-source-1"
MODULE = "monograph_own_"
"""What the names of their modules begin with."""
_LARGEST = 1 << 24
"""Bytes of a Python file that is read."""
_NEVER = frozenset({*sys.stdlib_module_names, "monograph", "numpy", "onnx", "onnxruntime", "torch", "transformers"})
"""Modules that no neighbour takes the place of."""

_reading: ContextVar[bool] = ContextVar("monograph_reading", default=False)


class ModelFile(MetaPathFinder, InspectLoader):
    """A Python file, and the files beside it that it imports, as modules that no other file sees.

    path: of the file. texts: of the files by their place in its folder; where they are given, nothing is looked for on
    the disk. Otherwise they are those that were read so far.
    """

    def __init__(self, path: Path, texts: Mapping[str, str] | None = None) -> None:
        self.path, self.folder = path, path.parent
        self.closed, self.texts = texts is not None, dict(texts or {})
        self.name = MODULE + hashlib.sha256(f"{self.closed} {path}".encode()).hexdigest()[:16]
        self._places: dict[str, str] = {self.name: path.name}

    def module(self) -> ModuleType:
        """Run the file. Raises MonographError with the file, the line and its text for whatever goes wrong in it."""
        for name in [k for k in sys.modules if k == self.name or k.startswith(f"{self.name}.")]:
            del sys.modules[name]
        if self.text(self.path.name) is None:
            raise MonographError("there is no such file", place=str(self.path))
        # As a package, so that `from .neighbour import it` is understood, too.
        spec = ModuleSpec(self.name, self, origin=str(self.path), is_package=True)
        spec.has_location = True
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module
        token = _reading.set(True)
        try:
            with self.neighbours():
                self.exec_module(module)
        except (Exception, SystemExit) as e:
            del sys.modules[self.name]
            raise mistake_of(e, self.path) from e
        finally:
            _reading.reset(token)
        return module

    @contextlib.contextmanager
    def neighbours(self) -> Generator[None]:
        """Inside the block files beside this one can be imported by their names; outside nothing knows these names."""
        hidden = {k: sys.modules.pop(k) for k in list(sys.modules) if self._shadows(k)}
        own = f"{self.name}."
        sys.modules.update({k.removeprefix(own): m for k, m in sys.modules.items() if k.startswith(own)})
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)
            for name in [k for k in sys.modules if self._shadows(k)]:
                self._put_away(name, sys.modules.pop(name))
            sys.modules.update(hidden)

    def _put_away(self, name: str, module: ModuleType) -> None:
        """Keep a neighbour under a name of this file's, where its classes find it, too."""
        own = f"{self.name}.{name}"
        sys.modules[own] = module
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == name:
                value.__module__ = own

    # -- finding and reading ---------------------------------------------------------------------------------------

    def text(self, place: str) -> str | None:
        """The text of a file by its place in the folder; None if there is no such file."""
        if place in self.texts or self.closed:
            return self.texts.get(place)
        path = self.folder / place
        if not path.is_file():
            return None
        if path.stat().st_size > _LARGEST:
            raise MonographError(f"has {path.stat().st_size} bytes, expected a Python file", place=str(path))
        try:
            found = importlib.util.decode_source(path.read_bytes())
        except (SyntaxError, UnicodeDecodeError) as e:
            raise MonographError(f"is not Python: {e}", place=str(path)) from None
        self.texts[place] = found
        return found

    def place(self, name: str) -> str | None:
        """The place of a module of the folder, which for a folder without __init__.py ends in /; None if not there."""
        name = name.removeprefix(f"{self.name}.")
        if name.partition(".")[0] in _NEVER or name.startswith(MODULE):
            return None
        path = name.replace(".", "/")
        for place in (f"{path}/__init__.py", f"{path}.py"):
            if place in self.texts or (not self.closed and (self.folder / place).is_file()):
                return place
        inner = any(k.startswith(f"{path}/") for k in self.texts)
        if inner or (not self.closed and any((self.folder / path).glob("*.py"))):
            return f"{path}/"
        return None

    def _shadows(self, name: str) -> bool:
        """Whether a module has the name of a neighbour."""
        top = name.partition(".")[0]
        return top != self.name and self.place(top) is not None

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """The spec of a neighbour; None for what is none. See importlib.abc.MetaPathFinder."""
        place = self.place(fullname)
        if place is None:
            return None
        if place.endswith("/"):
            # A folder of modules. One that is installed goes before it, as it does everywhere in Python.
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(self.folder / place)]
            return spec
        self._places[fullname] = place
        spec = ModuleSpec(fullname, self, origin=str(self.folder / place), is_package=place.endswith("/__init__.py"))
        spec.has_location = True
        return spec

    def get_source(self, fullname: str) -> str:
        """The text of a module. Raises ImportError for one that is not of this folder."""
        place = self._places.get(fullname)
        found = None if place is None else self.text(place)
        if found is None:
            raise ImportError(f"no module is called {fullname}", name=fullname)
        return found

    def get_code(self, fullname: str) -> CodeType:
        """The compiled text of a module. Nothing is read from, or written to, a cache."""
        return compile(self.get_source(fullname), str(self.folder / self._places[fullname]), "exec", dont_inherit=True)


@contextlib.contextmanager
def beside(function: Any) -> Generator[None]:
    """Inside the block the neighbours of the file that a model function stands in can be imported."""
    file = file_of(function)
    with contextlib.nullcontext() if file is None else file.neighbours():
        yield


def file_of(function: Any) -> ModelFile | None:
    """The file that a function was read from, if it was read as a model file."""
    loader = function.__globals__.get("__loader__")
    return loader if isinstance(loader, ModelFile) else None


def check_not_reading(what: str) -> None:
    """Raises MonographError if a model file that is being read does `what`: reading it would do it every time."""
    if _reading.get():
        hint = 'put what the file does under `if __name__ == "__main__":`, so that its model can be read without it'
        raise MonographError(f"{what} while a model is read from the file", hint=hint)


# -- in the folder of a run ----------------------------------------------------------------------------------------


def store(stage: Stage, function: Any, name: str, task: str) -> None:
    """Stage the files that a family of this name and task stands in, with their digests, if it is people's own."""
    file = file_of(function) or _script(function)
    if file is None or file.text(file.path.name) is None:
        return
    _read_imported(file)
    texts = {place: {"sha256": _digest(text), "text": text} for place, text in sorted(file.texts.items())}
    content = {"format": FORMAT, "file": file.path.name, "family": name, "task": task, "files": texts}
    with stage.open(FILE) as f:
        f.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    trust.note(content)


def _script(function: Any) -> ModelFile | None:
    """The file of a function that Python itself imported or ran."""
    path = Path(function.__code__.co_filename)
    ours = function.__module__.partition(".")[0] == __name__.partition(".")[0]
    if ours or path.suffix != ".py" or not path.is_file():
        return None
    return ModelFile(path.absolute())


def kept(folder: Path) -> tuple[ModelFile, str, str] | None:
    """(the file that the model of a folder is written in, the name and the task of its family); None if there is none.

    Raises ConfigError for a file that is damaged, that somebody changed, or that this user did not write.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        said = parse_json(read_text(path))
        texts = {place: (entry["text"], entry["sha256"]) for place, entry in said["files"].items()}
        main, family, task = Path(said["file"]).name, str(said["family"]), str(said["task"])
        fits = said["format"] == FORMAT and main in texts
        fits = fits and all(isinstance(t, str) for pair in texts.values() for t in pair)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(f"is damaged: {e!r}", place=str(path)) from None
    if not fits:
        raise ConfigError("does not hold the file of a model", place=str(path))
    changed = [place for place, (text, digest) in texts.items() if _digest(text) != digest]
    if changed:
        hint = "give the file that you want with --family FILE.py, or family= in Python"
        raise ConfigError(f"{', '.join(changed)} is not the text that was trained", place=str(path), hint=hint)
    trust.check(said, path)
    return ModelFile(folder.absolute() / main, {place: text for place, (text, _) in texts.items()}), family, task


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read_imported(file: ModelFile) -> None:
    """Read what the files of a model import from its folder, also where a function does it that was never called."""
    todo, seen = [file.path.name], set[str]()
    while todo:
        place = todo.pop()
        text = None if place.endswith("/") or place in seen else file.text(place)
        seen.add(place)
        if text is not None:
            todo += [found for name in _imports(text, place) if (found := file.place(name)) is not None]


def _imports(text: str, place: str) -> Iterator[str]:
    """The names of all modules that a text may import, and of the packages that they lie in."""
    package = place.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            outer = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*outer, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))
