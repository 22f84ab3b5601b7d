"""Reads a Python package's source without importing or installing it: names of a module, members of a class, keywords
of a call.

Enough to tell whether a name that we use exists. Where the source does not tell (a `**kwargs`, a base class of another
package) it is taken to exist.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FROM_ELSEWHERE = frozenset({"__init__", "__doc__", "__name__", "__file__", "__class__", "__dict__"})
"""Names that every class or module has."""

RECORD_MEMBERS = frozenset({"name", "value"})
"""Members that a class may have from a base of another package: an enum's members have these."""


@dataclass(frozen=True)
class Definition:
    """A module (no `node`), class, function or value (its assignment) of the package."""

    module: str
    name: str
    node: ast.AST | None

    @property
    def is_class(self) -> bool:
        """Whether it is a class."""
        return isinstance(self.node, ast.ClassDef)


Binding = Definition | tuple[str, str]
"""What a module's name stands for: a definition here, or (module, name) where it is imported from."""


class SourceTree:
    """The source of one package."""

    def __init__(self, package: str, read: Callable[[str], str | None], files: Iterable[str]) -> None:
        self.package = package
        self._read = read
        self._files = sorted(files)
        self._bindings: dict[str, dict[str, Binding] | None] = {}

    @classmethod
    def open(cls, package: str, path: Path) -> SourceTree:
        """The source in a wheel, in a folder that holds the package, or in the package's own folder."""
        if path.is_file():
            archive = zipfile.ZipFile(path)
            names = {name for name in archive.namelist() if name.startswith(f"{package}/") and name.endswith(".py")}
            return cls(package, lambda name: archive.read(name).decode() if name in names else None, names)
        root = path.parent if path.name == package else path
        if not (root / package / "__init__.py").exists():
            raise FileNotFoundError(f"{path} holds no package {package}")

        def read(name: str) -> str | None:
            file = root / name
            return file.read_text(encoding="utf-8") if file.exists() else None

        return cls(package, read, (str(file.relative_to(root)) for file in (root / package).rglob("*.py")))

    def resolve(self, module: str, name: str | None = None) -> Definition | None:
        """The definition that `from module import name` (or `import module`) gives, through all re-exports."""
        bindings = self._module(module)
        if bindings is None:
            return None
        if name is None:
            return Definition(module, module, None)
        binding = bindings.get(name)
        if isinstance(binding, Definition):
            return binding
        if binding is not None:
            origin, original = binding
            if not origin.startswith(self.package):
                return Definition(origin, original, ast.Pass())
            if (origin, original) != (module, name):
                return self.resolve(origin, original) if original else self.resolve(origin)
        return self.resolve(f"{module}.{name}")

    def member(self, owner: Definition, name: str) -> Definition | None:
        """The attribute `name` of a module, of a class, or of its instances."""
        if name in FROM_ELSEWHERE:
            return Definition(owner.module, name, ast.Pass())
        if owner.node is None:
            return self.resolve(owner.module, name)
        if not isinstance(owner.node, ast.ClassDef):
            return Definition(owner.module, name, ast.Pass())  # a value: of what type, the source does not say
        return self._class_member(owner, owner.node, name)

    def parameters(self, callee: Definition) -> set[str] | None:
        """The keywords that a function or class takes; None where it takes any, or the source does not tell."""
        node = callee.node
        if isinstance(node, ast.ClassDef):
            own = next((item for item in node.body if _is_function(item, "__init__")), None)
            if own is not None:
                return _parameters(own)
            fields = {item.target.id for item in node.body if _is_field(item)}  # type: ignore[attr-defined]  # just asked
            for base in self._bases(callee, node):
                inherited = self.parameters(base) if base.is_class else set()
                if inherited is None:
                    return None
                fields |= inherited
            return fields or None
        return _parameters(node) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None

    def annotation(self, definition: Definition) -> Definition | None:
        """The class of the package that a value, parameter or function's result is annotated with."""
        node = definition.node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return self.annotated(definition.module, node.returns)
        return self.annotated(definition.module, node.annotation) if isinstance(node, ast.AnnAssign) else None

    def annotated(self, module: str, annotation: ast.AST | None) -> Definition | None:
        """The first class of the package in an annotation of `module`."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        for node in ast.walk(annotation) if annotation is not None else ():
            if isinstance(node, ast.Name):
                found = self.resolve(module, node.id)
                if found is not None and found.is_class:
                    return found
        return None

    def homes(self, name: str) -> list[str]:
        """The modules that define `name` at their top level: where a moved name may be now."""
        pattern = re.compile(rf"^(?:class|def|async def) {re.escape(name)}\b|^{re.escape(name)}\b *[:=]", re.MULTILINE)
        return [_module_name(file) for file in self._files if pattern.search(self._read(file) or "")]

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _class_member(self, owner: Definition, node: ast.ClassDef, name: str) -> Definition | None:
        for item in ast.walk(node):
            if name in _bound_names(item):
                return Definition(owner.module, name, item)
        for base in self._bases(owner, node):
            found = self.member(base, name) if base.is_class else None
            if found is not None:
                return found
        foreign = len(self._bases(owner, node)) < len(node.bases)
        return Definition(owner.module, name, ast.Pass()) if foreign and name in RECORD_MEMBERS else None

    def _bases(self, owner: Definition, node: ast.ClassDef) -> list[Definition]:
        found = []
        for base in node.bases:
            names = [item.id for item in ast.walk(base) if isinstance(item, ast.Name)]
            resolved = self.resolve(owner.module, names[0]) if names else None
            if resolved is not None and resolved.module.startswith(self.package):
                found.append(resolved)
        return found

    def _module(self, module: str) -> dict[str, Binding] | None:
        if module not in self._bindings:
            path = module.replace(".", "/")
            source, is_package = self._read(f"{path}/__init__.py"), True
            if source is None:
                source, is_package = self._read(f"{path}.py"), False
            self._bindings[module] = None if source is None else dict(_bindings(module, is_package, ast.parse(source)))
        return self._bindings[module]


def _bindings(module: str, is_package: bool, tree: ast.Module) -> Iterator[tuple[str, Binding]]:  # private
    lazy = any(_is_function(item, "__getattr__") for item in tree.body)
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origin = _absolute(module, is_package, node)
                yield alias.asname or alias.name, (origin, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], (alias.name, "")
        else:
            for name in _bound_names(node):
                yield name, Definition(module, name, node)
            if lazy and isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                # `__getattr__` looks names up in a table; each key is a name that the module has.
                for key in node.value.keys:
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        yield key.value, Definition(module, key.value, ast.Pass())


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements, also those under `if` and `try`: any branch may run."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, part, ()))
            for handler in getattr(node, "handlers", ()):
                yield from _statements(handler.body)


def _bound_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [item for target in targets for item in (target.elts if isinstance(target, ast.Tuple) else [target])]
    names = [item.id for item in flat if isinstance(item, ast.Name)]
    of_self = [item for item in flat if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name)]
    return names + [item.attr for item in of_self if item.value.id == "self"]  # type: ignore[attr-defined]  # a Name


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:  # private
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*parts, node.module] if node.module else parts)


def _parameters(function: ast.AST) -> set[str] | None:
    arguments = function.args  # type: ignore[attr-defined]  # callers hand over functions
    if arguments.kwarg is not None:
        return None
    return {item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}


def _is_function(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name


def _is_field(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
