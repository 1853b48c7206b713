"""One small fault put into a program: a wrong constant, a swapped operator, or an early return.

A tree is walked in order, and the place of the fault is drawn with a seed, so that a program always gets the same one.
"""

import ast
import copy
import random

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def mutate(code: str, entry_point: str, seed: int) -> tuple[str, str]:
    """Return (the faulty program, what was done to it). Kinds go round by the seed, as far as a program has places."""
    kinds = [_wrong_constant, _swapped_operator, _early_return]
    for kind in kinds[seed % 3 :] + kinds[: seed % 3]:
        tree = copy.deepcopy(ast.parse(code))
        function = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == entry_point)
        done = kind(function, random.Random(seed))
        if done:
            return ast.unparse(ast.fix_missing_locations(tree)), done
    raise AssertionError("every function can return early")


def _wrong_constant(function: ast.FunctionDef, rng: random.Random) -> str | None:
    body = [node for step in function.body for node in ast.walk(step)]
    docstrings = {id(n.value) for n in body if isinstance(n, ast.Expr)}
    places = [n for n in body if isinstance(n, ast.Constant) and id(n) not in docstrings and n.value is not None]
    in_texts = {id(part) for n in body if isinstance(n, ast.JoinedStr) for part in ast.walk(n)}
    places = [n for n in places if id(n) not in in_texts]
    if not places:
        return None
    place = rng.choice(places)
    old = place.value
    if isinstance(old, bool):
        place.value = not old
    elif isinstance(old, int | float | complex):
        place.value = old + 1
    elif isinstance(old, str):
        place.value = old + "x"
    else:
        return None
    return f"line {place.lineno}: {old!r} is {place.value!r}"


def _swapped_operator(function: ast.FunctionDef, rng: random.Random) -> str | None:
    places = [
        n
        for step in function.body
        for n in ast.walk(step)
        if (isinstance(n, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(n.op) in SWAPS)
        or (isinstance(n, ast.Compare) and type(n.ops[0]) in SWAPS)
    ]
    if not places:
        return None
    place = rng.choice(places)
    if isinstance(place, ast.Compare):
        old = place.ops[0]
        place.ops[0] = SWAPS[type(old)]()  # type: ignore[assignment]
        new = place.ops[0]
    else:
        old = place.op
        place.op = SWAPS[type(old)]()  # type: ignore[assignment]
        new = place.op
    return f"line {place.lineno}: {type(old).__name__} is {type(new).__name__}"


def _early_return(function: ast.FunctionDef, rng: random.Random) -> str | None:
    names = [argument.arg for argument in function.args.args]
    value = ast.Name(rng.choice(names), ast.Load()) if names else ast.Constant(None)
    function.body.insert(0, ast.Return(value))
    return f"returns {ast.unparse(value)} at once"
