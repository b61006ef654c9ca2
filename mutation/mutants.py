"""What is changed: the mutants of one module.

The changes are Cosmic Ray's, and one of our own. What a change could not make behave differently
is left out: annotations, declarations for type checkers, and replacements that say the same twice
(Cosmic Ray turns each operator into each other one; two well-chosen ones find what ten find).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from parso.python.tree import Keyword

# Comparisons: the neighbour, which only the edge case tells apart, and the opposite.
_COMPARISONS = (
    "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
)
_ARITHMETIC = (
    "Add_Sub Sub_Add Mul_FloorDiv Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul "
    "RShift_LShift LShift_RShift BitOr_BitAnd BitAnd_BitOr BitXor_BitOr"
)
_UNARY = "USub_UAdd Delete_USub Delete_Invert Delete_Not"
_OTHERS = (
    "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd "
    "ReplaceBreakWithContinue ReplaceContinueWithBreak ExceptionReplacer NumberReplacer "
    "RemoveDecorator ZeroIterationForLoop"
)


class RemoveStatement(Operator):  # type: ignore[misc] # Cosmic Ray has no types
    """Leave out what is done for its effect: calls, changes of attributes and items, ``raise``."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "simple_stmt" and self._has_effect(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    @staticmethod
    def _has_effect(statement: Any) -> bool:
        if statement.type == "expr_stmt":
            target, operator = statement.children[:2]
            if operator.type == "annassign":
                return bool(target.type == "atom_expr" and len(operator.children) == 4)
            return bool(target.type == "atom_expr" or operator.value != "=")
        if statement.type == "keyword":
            return bool(statement.value == "return")
        return statement.type in ("atom_expr", "await", "del_stmt", "raise_stmt", "yield_expr")

    def mutate(self, node: Any, index: int) -> Any:
        old = node.children[0]
        prefix = old.get_first_leaf().prefix
        node.children[0] = Keyword("pass", old.start_pos, prefix=prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


def _operators() -> list[tuple[str, Operator]]:
    names = [f"ReplaceComparisonOperator_{name}" for name in _COMPARISONS.split()]
    names += [f"ReplaceBinaryOperator_{name}" for name in _ARITHMETIC.split()]
    names += [f"ReplaceUnaryOperator_{name}" for name in _UNARY.split()]
    names += _OTHERS.split()
    operators = [(name, get_operator(f"core/{name}")()) for name in names]
    return [*operators, ("RemoveStatement", RemoveStatement())]


@attrs.frozen
class Mutant:
    """One change of one module."""

    module: str
    function: str
    was: str
    becomes: str
    operator: str
    lines: range
    """Of the statement in which the change is."""
    source: str = attrs.field(repr=False)
    """Of the whole module, changed."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What an explanation is found by. No line numbers, so that it survives other changes."""
        return self.module, self.function, self.was, self.becomes


def mutants_of(path: Path) -> list[Mutant]:
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    noise = list(_noise(tree))
    statements = list(_statements(tree))
    operators = _operators()

    mutants = []
    for node in ast_nodes(parso.parse(source)):
        for name, operator in operators:
            for index, (position, _end) in enumerate(list(operator.mutation_positions(node))):
                if any(start <= position < end for start, end in noise):
                    continue
                begin_line, begin_column = node.get_start_pos_of_prefix()
                end_line, end_column = node.end_pos
                begin = starts[begin_line - 1] + begin_column
                end = starts[end_line - 1] + end_column
                try:
                    changed = source[:begin] + _mutated(node, operator, index) + source[end:]
                    compile(changed, path, "exec", dont_inherit=True)
                except SyntaxError:
                    continue  # such as "not x = 1": no program, so no mutant
                except AttributeError:
                    continue  # Cosmic Ray's ExceptionReplacer knows no dotted names
                was, becomes = _difference(source, changed)
                around = [extent for extent in statements if position[0] in extent]
                mutants.append(
                    Mutant(
                        path.stem,
                        _function(node),
                        was,
                        becomes,
                        name,
                        min(around, key=len, default=range(position[0], position[0] + 1)),
                        changed,
                    )
                )
    return mutants


def _mutated(node: Any, operator: Operator, index: int) -> str:
    """The node's code after the change, which is then undone: parsing anew takes much longer."""
    before = [
        (part, list(part.children) if hasattr(part, "children") else part.value)
        for part in ast_nodes(node)
    ]
    changed = operator.mutate(node, index)
    code: str = "" if changed is None else changed.get_code()  # None: it is to go
    for part, content in before:
        if isinstance(content, list):
            part.children = content
        else:
            part.value = content
    return code


def _difference(old: str, new: str) -> tuple[str, str]:
    """The lines that differ, as one."""
    ours, theirs = old.splitlines(), new.splitlines()
    while ours and theirs and ours[0] == theirs[0]:
        del ours[0], theirs[0]
    while ours and theirs and ours[-1] == theirs[-1]:
        del ours[-1], theirs[-1]
    was, becomes = (" ".join(line.strip() for line in part).strip() for part in (ours, theirs))
    return was, becomes


def _function(node: Any) -> str:
    names: list[str] = []
    while node is not None:
        if node.type in ("funcdef", "classdef"):
            names.insert(0, node.name.value)
        node = node.parent
    return ".".join(names)


def _statements(tree: ast.Module) -> Iterator[range]:
    """The lines of each statement, without those of the statements in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno if body else (node.end_lineno or node.lineno) + 1
            yield range(node.lineno, max(end, node.lineno + 1))


def _noise(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a change changes nothing but what type checkers see."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                parts = [node]
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names = [ast.unparse(decorator) for decorator in node.decorator_list]
                if "overload" in names or "typing.overload" in names:
                    parts = [*node.decorator_list, node]
                else:
                    parts = [getattr(node, "returns", None)]
                    parts += [
                        decorator
                        for decorator, name in zip(node.decorator_list, names, strict=True)
                        if name in ("final", "override", "typing.final", "typing.override")
                    ]
            case ast.arg() | ast.AnnAssign():
                parts = [node.annotation]
            case ast.Call(func=ast.Name(id="cast" | "TypeVar")):
                parts = [node.args[0], *(keyword.value for keyword in node.keywords)]
        for part in parts:
            if isinstance(part, ast.expr | ast.stmt):
                # A decorator's position for Cosmic Ray is that of its @.
                start = (part.lineno, max(part.col_offset - 1, 0))
                yield start, (part.end_lineno or 0, part.end_col_offset or 0)
