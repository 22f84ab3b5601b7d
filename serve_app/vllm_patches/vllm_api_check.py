"""`python -m serve_app.vllm_patches.vllm_api_check [--source WHEEL_OR_FOLDER]`: does every vLLM name that we use exist?

vLLM guarantees no internal API, and we use much of it. So before a new version is adopted, this reads our modules and
that version's source (installed, or a wheel that is not) and compares imports, attributes, and the keywords of calls,
as far as annotations and constructors tell the types. Of alternatives (`try: from a import x`, `except ImportError:
from b import x`) one must exist.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from collections import ChainMap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.vllm_patches import answers, chunk_classes, cpu, grammars, resume, shared_prefixes, token_cache, vllm_api
from serve_app.vllm_patches.patching import PatchTarget
from serve_app.vllm_patches.source_tree import Definition, SourceTree

PACKAGE = "vllm"

TARGETS = (
    *answers.TARGETS,
    *chunk_classes.TARGETS,
    *vllm_api.TARGETS,
    *cpu.TARGETS,
    *grammars.TARGETS,
    *resume.TARGETS,
    *shared_prefixes.TARGETS,
    *token_cache.TARGETS,
)
"""All functions of vLLM that we replace."""

APPLICATION = Path(__file__).parents[1]


@dataclass(frozen=True)
class Value:
    """The value of an expression: a definition of vLLM's, an instance of its class, or (`own`) an instance of our
    class."""

    definition: Definition | None = None
    is_instance: bool = False
    own: OwnClass | None = None


@dataclass(eq=False)
class OwnClass:
    """A class of ours: the annotations of its fields, its other members, and the vLLM classes that it extends."""

    fields: dict[str, ast.expr] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    vllm_bases: list[Definition] = field(default_factory=list)


Scope = ChainMap[str, Value]


class Checker:
    """Compares one file of ours with vLLM's source. `problems` are lines for people, `checked` counts comparisons."""

    def __init__(self, source: SourceTree, file: Path) -> None:
        self._source = source
        self._file = file
        self.problems: list[str] = []
        self.checked = 0

    def run(self) -> None:
        """Compare the whole file."""
        tree = ast.parse(self._file.read_text(encoding="utf-8"))
        self._block(tree.body, ChainMap[str, Value]())

    # ---- statements --------------------------------------------------------------------------------------------------

    def _block(self, body: Iterable[ast.stmt], scope: Scope) -> None:
        for statement in body:
            self._statement(statement, scope)

    def _statement(self, node: ast.stmt, scope: Scope) -> None:
        match node:
            case ast.ImportFrom() | ast.Import():
                self.problems += self._import(node, scope)
            case ast.Try() if any(_catches_import_error(handler) for handler in node.handlers):
                self._alternatives(node, scope)
            case ast.ClassDef():
                self._class(node, scope)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._function(node, scope.new_child())
            case _:
                self._plain(node, scope)

    def _plain(self, node: ast.stmt, scope: Scope) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self._statement(child, scope)
            elif isinstance(child, ast.ExceptHandler):
                self._block(child.body, scope)
            else:
                self._expression(child, scope)
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            scope[node.targets[0].id] = self._value(node.value, scope)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            scope[node.target.id] = self._annotated(node.annotation, scope)

    def _import(self, node: ast.ImportFrom | ast.Import, scope: Scope) -> list[str]:
        problems = []
        for alias in node.names:
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
            if module.split(".")[0] != PACKAGE or (isinstance(node, ast.ImportFrom) and node.level):
                continue
            name = alias.name if isinstance(node, ast.ImportFrom) else None
            self.checked += 1
            found = self._source.resolve(module, name)
            if found is None:
                problems.append(self._missing(node, f"no {module}.{name}" if name else f"no module {module}", name))
            elif name or alias.asname:
                scope[alias.asname or alias.name] = Value(found)
        return problems

    def _alternatives(self, node: ast.Try, scope: Scope) -> None:
        """One branch of the imports must exist; other statements are checked like any."""
        branches = [node.body, *(handler.body for handler in node.handlers)]
        outcomes = []
        for branch in branches:
            names = scope.new_child()
            imports = [item for item in branch if isinstance(item, ast.ImportFrom | ast.Import)]
            problems = [problem for item in imports for problem in self._import(item, names)]
            outcomes.append((problems, names.maps[0]))
            self._block([item for item in branch if item not in imports], names)
        good = [names for problems, names in outcomes if not problems]
        if good:
            scope.update(good[0])
        else:
            self.problems += outcomes[0][0]

    def _class(self, node: ast.ClassDef, scope: Scope) -> None:
        own = OwnClass()
        for base in node.bases:
            self._expression(base, scope)
            value = self._value(base, scope)
            if value.definition is not None and value.definition.is_class:
                own.vllm_bases.append(value.definition)
            if value.own is not None:
                own.fields |= value.own.fields
                own.names |= value.own.names
                own.vllm_bases += value.own.vllm_bases
        for item in ast.walk(node):
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                own.names.add(item.name)
            elif isinstance(item, ast.AnnAssign):
                own.fields[_target_name(item.target)] = item.annotation
            elif isinstance(item, ast.Assign):
                own.names |= {_target_name(target) for target in item.targets}
        scope[node.name] = Value(own=own)
        inside = scope.new_child({"self": Value(own=own, is_instance=True)})
        self._block(node.body, inside)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> None:
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.annotation is not None:
                scope[argument.arg] = self._annotated(argument.annotation, scope)
        for part in (*arguments.defaults, *(item for item in arguments.kw_defaults if item), *node.decorator_list):
            self._expression(part, scope)
        self._block(node.body, scope)

    # ---- expressions -------------------------------------------------------------------------------------------------

    def _expression(self, node: ast.AST, scope: Scope) -> None:
        for item in ast.walk(node):
            if isinstance(item, ast.Attribute):
                self._attribute(item, scope)
            elif isinstance(item, ast.Call):
                self._call(item, scope)

    def _attribute(self, node: ast.Attribute, scope: Scope) -> None:
        owner = self._value(node.value, scope)
        if owner.definition is not None:
            self.checked += 1
            if self._source.member(owner.definition, node.attr) is None:
                self.problems.append(self._missing(node, f"{_title(owner.definition)} has no {node.attr}", node.attr))
        elif owner.own is not None and owner.own.vllm_bases and owner.is_instance:
            known = node.attr in owner.own.names or node.attr in owner.own.fields
            if not known and not any(self._source.member(base, node.attr) for base in owner.own.vllm_bases):
                base = _title(owner.own.vllm_bases[0])
                self.problems.append(self._missing(node, f"{base} has no {node.attr} for our subclass", node.attr))

    def _call(self, node: ast.Call, scope: Scope) -> None:
        callee = self._value(node.func, scope)
        if callee.definition is None or callee.is_instance:
            return
        accepted = self._source.parameters(callee.definition)
        for keyword in node.keywords if accepted is not None else ():
            self.checked += 1
            if keyword.arg is not None and accepted is not None and keyword.arg not in accepted:
                self.problems.append(self._missing(node, f"{_title(callee.definition)} takes no {keyword.arg}", None))

    def _value(self, node: ast.expr, scope: Scope) -> Value:
        match node:
            case ast.Name():
                return scope.get(node.id, Value())
            case ast.Await():
                return self._value(node.value, scope)
            case ast.Call():
                return self._result(self._value(node.func, scope))
            case ast.Attribute():
                return self._attribute_value(self._value(node.value, scope), node.attr, scope)
        return Value()

    def _result(self, callee: Value) -> Value:
        if callee.own is not None and not callee.is_instance:
            return Value(own=callee.own, is_instance=True)
        if callee.definition is None or callee.is_instance:
            return Value()
        if callee.definition.is_class:
            return Value(callee.definition, is_instance=True)
        return self._instance(self._source.annotation(callee.definition))

    def _attribute_value(self, owner: Value, name: str, scope: Scope) -> Value:
        if owner.own is not None:
            annotation = owner.own.fields.get(name)
            return self._annotated(annotation, scope) if annotation is not None else Value()
        if owner.definition is None:
            return Value()
        member = self._source.member(owner.definition, name)
        if member is None:
            return Value()
        if member.node is None or isinstance(member.node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            return Value(member)
        return self._instance(self._source.annotation(member))

    def _annotated(self, annotation: ast.expr, scope: Scope) -> Value:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        parts = [annotation]
        while isinstance(parts[0], ast.BinOp):  # `X | None`
            parts[0:1] = [parts[0].left, parts[0].right]
        for part in parts:
            value = scope.get(part.id, Value()) if isinstance(part, ast.Name) else Value()
            if value.own is not None or (value.definition is not None and value.definition.is_class):
                return Value(value.definition, is_instance=True, own=value.own)
        return Value()

    @staticmethod
    def _instance(definition: Definition | None) -> Value:
        return Value(definition, is_instance=True) if definition is not None else Value()

    def _missing(self, node: ast.AST, what: str, name: str | None) -> str:
        homes = self._source.homes(name) if name else []
        hint = f" (now in {', '.join(homes[:3])}?)" if homes else ""
        file = self._file
        where = file.relative_to(APPLICATION.parent) if file.is_relative_to(APPLICATION.parent) else file
        return f"{where}:{getattr(node, 'lineno', 0)}: {what}{hint}"


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    names = {item.id for item in ast.walk(handler.type) if isinstance(item, ast.Name)} if handler.type else set()
    return bool(names & {"ImportError", "ModuleNotFoundError"})


def _target_name(target: ast.expr) -> str:
    return target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""


def _title(definition: Definition) -> str:
    return definition.module if definition.node is None else f"{definition.module}.{definition.name}"


def users(root: Path = APPLICATION) -> Iterator[Path]:
    """Our files that import vLLM."""
    for file in sorted(root.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if f"from {PACKAGE}" in text or f"import {PACKAGE}" in text:
            yield file


def check(source: SourceTree, files: Iterable[Path]) -> tuple[list[str], int]:
    """Missing names, a line each, and how many names were compared."""
    problems, checked = [], 0
    for file in files:
        checker = Checker(source, file)
        checker.run()
        problems += checker.problems
        checked += checker.checked
    return problems, checked


def check_targets(source: SourceTree, targets: Iterable[PatchTarget]) -> list[str]:
    """Targets of our changes that do not exist, a line each."""
    problems = []
    for target in targets:
        if target.owner:
            owner = source.resolve(target.module, target.owner)
            method = source.member(owner, target.name) if owner is not None else None
        else:
            method = source.resolve(target.module, target.name)
        parameters = source.parameters(method) if method is not None else set()
        if method is None:
            problems.append(f"serve_app/vllm_patches: there is no {target} to change")
        elif parameters is not None and (missing := set(target.parameters) - parameters):
            problems.append(f"serve_app/vllm_patches: {target} does not take {', '.join(sorted(missing))}")
    return problems


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns a process exit status: 1 where names are missing."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.vllm_patches.vllm_api_check", description=__doc__)
    parser.add_argument("--source", type=Path, help="a wheel or folder with vLLM's source (default: what is installed)")
    path: Path | None = parser.parse_args(arguments).source
    if path is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            print("vllm is not installed here: name a wheel or folder with --source", file=sys.stderr)
            return 2
        path = Path(spec.origin).parent
    source = SourceTree.open(PACKAGE, path)
    problems, checked = check(source, users())
    problems += check_targets(source, TARGETS)
    for problem in problems:
        print(problem)
    print(f"{checked} uses of vLLM compared with {path.name}: {len(problems)} missing")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
