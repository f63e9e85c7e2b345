"""The state dict in what `torch.save` wrote, or advice how to make a plain file of its weights."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from convert.formats.pickles import HARMLESS, Tensor, Unknown
from convert.wrappers import is_state_dict

_DEEPEST = 8  # level of a state dict in dictionaries of dictionaries
_NAMED = 8  # entries or values shown of many
_NUMPY = "numpy."
_RESAVED = "weights.pt"
_PLAIN = {  # what makes a plain tensor of an object, by a part of the name of its class
    _NUMPY: "torch.as_tensor(v)",
    "_rebuild_sparse_tensor": "v.to_dense()",
    "_rebuild_qtensor": "v.dequantize() if v.is_quantized else v",
    "torch._utils._rebuild_tensor_v3": "v.float() if 'float8' in str(v.dtype) else v",
}
_IS_TRUSTED = "if you trust it, re-save its weights where it was made, with its project at hand:"


def find_state_dict(
    path: Path, content: Any, name: str = ""
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The only state dict in the content of a file, or its entry of this name, and notes."""
    if not name and is_state_dict(content):
        return content, ()
    entries = content if isinstance(content, Mapping) else {}
    if not (found := {key: e for key, e in entries.items() if is_state_dict(e)}):
        found = dict(_nested(entries))
    if name and name not in found:
        there = ", ".join(map(repr, found)) or "none"
        raise ConversionError(f"{path} has no state dict {name!r} among its entries: {there}")
    if not found:
        raise _no_state_dict(path, content)
    if len(found) > 1 and not name:
        raise ConversionError(
            f"{path} holds {len(found)} state dicts: say which one, by entry=, or the option",
            [f"--entry {shlex.quote(str(key))}  ({len(e)} tensors)" for key, e in found.items()],
        )
    name = name or next(iter(found))
    notes = [f"the state dict is the entry {name!r}"]
    notes += [
        f"left out: {n!r}, {_describe(e)}"
        for n, e in entries.items()
        if n != name and not name.startswith(f"{n}.")
    ]
    return found[name], tuple(notes)


def _nested(entries: Mapping[Any, Any], depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """The state dicts deep within, by the names on the way: ClassyVision's `base_model.model`.

    What holds only state dicts, as `trunk` and `heads`, is one.
    """
    inner = {n: e for n, e in entries.items() if isinstance(n, str) and isinstance(e, Mapping)}
    trees = {n: tree for n, e in inner.items() if (tree := _flat(e))}
    yield from trees.items()
    if not trees and depth < _DEEPEST:
        for name, entry in inner.items():
            yield from ((f"{name}.{n}", tree) for n, tree in _nested(entry, depth + 1))


def _flat(tree: Mapping[Any, Any], depth: int = 0) -> dict[str, Any] | None:
    """The tensors of a tree by their whole names; None where it has anything else, or nothing."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(name, str) and hasattr(value, "shape"):
            flat[name] = value
        elif isinstance(name, str) and isinstance(value, Mapping) and depth < _DEEPEST:
            if (inner := _flat(value, depth + 1)) is None:
                return None
            flat |= {f"{name}.{n}": tensor for n, tensor in inner.items()}
        else:
            return None
    return flat


def advise(path: Path, content: Any = None, *, has_arrays: bool = False) -> list[str]:
    """Lines of code that make a plain file, exact as far as `content` shows what is needed.

    With `has_arrays` the pickle was too long to read, so it most likely holds NumPy arrays.
    """
    place, state = _find_nearly(content)
    load = f"torch.load({str(path)!r}, map_location='cpu', weights_only=False)"
    lines = [_IS_TRUSTED, f"  content = {load}"]
    if has_arrays:
        lines.append("  state = content.get('state_dict', content.get('model', content))")
        lines.append(f"  state = {{k: {_PLAIN[_NUMPY]} for k, v in state.items()}}")
        return [*lines, f"  torch.save(state, {_RESAVED!r})"]
    if state is not None:
        lines.append(f"  state = {place}")
        lines += [
            f"  state = {{k: {change} for k, v in state.items(){condition}}}"
            for change, condition in _changes(state)
        ]
        return [*lines, f"  torch.save(state, {_RESAVED!r})"]
    if place is not None:
        return [*lines, f"  torch.save({place}.state_dict(), {_RESAVED!r})"]
    return [
        *lines,
        f"  torch.save(content['state_dict'], {_RESAVED!r})  # or content['model'], or "
        "content.state_dict() where it is a whole model",
    ]


def _no_state_dict(path: Path, content: Any) -> ConversionError:
    _, state = _find_nearly(content)
    if state is None:
        return ConversionError(
            f"{path} does not hold a state dict, a mapping of names to tensors: it is "
            f"{_describe(content)}"
        )
    others = [(n, value) for n, value in state.items() if not isinstance(value, Tensor)]
    named = [f"{name!r} is {_describe(value)}" for name, value in others[:_NAMED]]
    if len(others) > _NAMED:
        named.append(f"and {len(others) - _NAMED} more")
    return ConversionError(
        f"{path} holds a state dict whose values are not all tensors:",
        [*named, *advise(path, content)],
    )


def _find_nearly(content: Any) -> tuple[str | None, Mapping[str, Any] | None]:
    """The expression for a mapping most of whose values are tensors, and that mapping.

    An expression alone is for a whole model; None twice if nothing is found.
    """
    if isinstance(content, Mapping):
        for name, entry in content.items():
            if _is_nearly(entry):
                return f"content[{name!r}]", entry
        if _is_nearly(content):
            return "content", content
        models = [name for name, entry in content.items() if _is_object(entry)]
        return (f"content[{models[0]!r}]", None) if len(models) == 1 else (None, None)
    return ("content" if _is_object(content) else None), None


def _is_nearly(content: Any) -> bool:
    """Whether most values are tensors or arrays."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return False
    arrays = sum(
        isinstance(value, Tensor)
        or (isinstance(value, Unknown) and any(part in value.name for part in _PLAIN))
        for value in content.values()
    )
    return 2 * arrays > len(content)


def _is_object(value: Any) -> bool:
    return isinstance(value, Unknown) and "." in value.name and value.name not in HARMLESS


def _changes(state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(new value, condition) of each step that makes plain tensors of the values."""
    names = [value.name for value in state.values() if isinstance(value, Unknown)]
    kinds = [part for part in _PLAIN if any(part in name for name in names)]
    is_known = [any(part in name for part in kinds) for name in names]
    if sum(is_known) + sum(isinstance(v, Tensor) for v in state.values()) < len(state):
        array = " or hasattr(v, 'dtype')" if _NUMPY in kinds else ""
        yield "v", f" if torch.is_tensor(v){array}"
    for part in kinds:
        yield _PLAIN[part], ""


def _describe(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Mapping):
        names = ", ".join(repr(name)[:40] for name in list(value)[:_NAMED])
        more = ", ..." if len(value) > _NAMED else ""
        return f"a mapping of {len(value)} entries ({names}{more})"
    if isinstance(value, bool | int | float | str):
        return repr(value)[:60]
    if isinstance(value, Unknown) and value.name.startswith(_NUMPY):
        return "of a type of NumPy's"
    if isinstance(value, Unknown) and value.name in ("bytes", "_codecs.encode"):
        return "of type bytes"
    return f"of type {value.name if isinstance(value, Unknown) else type(value).__name__}"
