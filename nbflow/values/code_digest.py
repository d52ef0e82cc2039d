"""What a function is made of: its code and, transitively, that of the helpers the notebook defines.

    function_digest(f)     32 bytes: code of f, of functions and classes it reaches in `__main__`
    function_inputs(f)     the data those read: globals, closures, defaults, class attributes
    referenced_globals(f)  the names they read in the notebook's namespace
    code_fingerprint(f)    both together: f as a value

An imported function or class counts by module and name, with the module's
source if it is the user's own (`first_party`). An object with `__wrapped__` (a
durable function, a cache) counts as what it wraps. Names that only appear at run
time (`globals()[name]`, `eval`, imports within a function) are not seen.
"""

from __future__ import annotations

import builtins
import functools
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

from nbflow.core.signature import digest
from nbflow.values.bytecode import code_of
from nbflow.values.first_party import MAIN, lookup, source_token

#: Stands for a name that is not there (yet).
_MISSING = type("Missing", (), {})()

#: Attributes of a class that Python or a library derives from the others.
_DERIVED = frozenset(
    [
        "__module__",
        "__qualname__",
        "__doc__",
        "__dict__",
        "__weakref__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__conditional_annotations__",
        "__firstlineno__",
        "__static_attributes__",
        "__slotnames__",
        "__abstractmethods__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__match_args__",
        "__parameters__",
        "__orig_bases__",
        "__signature__",
        "__classcell__",
        "__type_params__",
        "_abc_impl",
    ]
)
_PYDANTIC = "__pydantic_"
_DESCRIPTORS = frozenset({types.MemberDescriptorType, types.GetSetDescriptorType})

_CachedFunction = type(functools.lru_cache(len))

_Read = Callable[[], Any]


def function_digest(func: Any) -> bytes:
    """Return the digest (32 bytes) of a function's code and of the notebook's code it may call.

    Line numbers, comments, docstrings and names of files do not count. Remembered
    per function; a helper that was redefined since is noticed. Values of data are
    not in it: see `function_inputs`.

    >>> function_digest(lambda x: x + 1) == function_digest(lambda x: x + 2)
    False
    """
    return _graph_of(func).digest


def referenced_globals(func: Any) -> frozenset[str]:
    """Return the names that a function, or notebook code it reaches, may read in the notebook's namespace.

    Builtins are left out unless the notebook has a variable of that name.
    """
    return _graph_of(func).names


def function_inputs(func: Any) -> dict[str, Any]:
    """Return the data a function may read besides its arguments, by name.

    What the code visibly changes in place is left out (`in_place`): it is
    something written, not something read. Globals go by their name, the rest as
    `function.variable`, `function(parameter)` and `Class.attribute`. The caller
    fingerprints them. Names that are not defined (yet) are left out.
    """
    return _graph_of(func).read()


def function_identity(func: Any) -> tuple[bytes, dict[str, Any]]:
    """Return `function_digest` and `function_inputs` with one look at the function."""
    graph = _graph_of(func)
    return graph.digest, graph.read() if graph.inputs else {}


def code_fingerprint(value: Any) -> tuple[bytes | str, bool]:
    """Return what stands for a function, class or code object as a value, and whether it is stable."""
    if isinstance(value, types.CodeType):
        return code_of(value).digest, True
    if not _by_value(value):
        module = value.__module__
        source = source_token(module)
        return f"{module}:{value.__qualname__}" + (f":{source.hex()}" if source else ""), True
    computing = _thread.computing
    if id(value) in computing:
        return f"itself:{value.__qualname__}", True  # a registry that lists the function which reads it
    from nbflow.values.canonical import digest_of

    computing.add(id(value))
    try:
        graph = _graph_of(value)
        found, stable = digest_of(sorted((graph.read() | graph.read_held()).items()), None)
        return digest(graph.digest, found), stable
    finally:
        computing.discard(id(value))


def module_token(module: types.ModuleType) -> tuple[str, bytes]:
    """Return a module's name and, if it is the user's own, the digest of its source."""
    name = module.__name__
    return name, source_token(name)


class _Thread(threading.local):
    def __init__(self) -> None:
        self.computing: set[int] = set()


_thread = _Thread()
_known: dict[int, _Graph] = {}


def _graph_of(func: Any) -> _Graph:
    root = _unwrapped(func)
    graph = _known.get(id(root))
    if graph is None or graph.root() is not root or not graph.holds():
        graph = _Graph(root)
        _known[id(root)] = graph
    return graph


def _unwrapped(value: Any) -> Any:
    """Return what an object that is no function itself wraps; a decorator from a library counts as its function."""
    for _ in range(100):
        if isinstance(value, type) or not hasattr(value, "__dict__"):
            inner = getattr(value, "__wrapped__", None) if isinstance(value, _CachedFunction) else None
        elif isinstance(value, types.FunctionType) and _follows(value):
            return value
        else:
            inner = vars(value).get("__wrapped__")
        if inner is None:
            return value
        value = inner
    return value


def _follows(func: types.FunctionType) -> bool:
    """Tell whether a function reads the notebook's namespace."""
    return func.__globals__.get("__name__") in MAIN


def _by_value(value: Any) -> bool:
    """Tell whether a function or class counts by its code: it cannot be found again by import."""
    module = getattr(value, "__module__", None)
    return module in MAIN or lookup(module, value.__qualname__) is not value


class _Graph:
    """Functions and classes reached from one, numbered in the order they are met, by sorted names."""

    def __init__(self, root: Any) -> None:
        key = id(root)
        self.root = weakref.ref(root, lambda _ref: _known.pop(key, None))
        self.inputs: dict[str, _Read] = {}
        self._numbers: dict[Any, int] = {}
        self._met: list[Any] = []
        self._records: list[str] = []
        #: What the digest rests on: (read, what was read or its type). Weak, or the notebook's old data would live on.
        self._names: list[tuple[Mapping[str, Any], str, Any, bool]] = []
        self._codes: list[tuple[Any, types.CodeType, int, int]] = []
        self._sources: dict[str, bytes] = {}
        names: set[str] = set()
        self._global_names = names
        self._changed: set[str] = set()
        self._namespace = getattr(root, "__globals__", None)
        token = self._token(root, "", lambda: root)
        self.digest = digest(token, *self._records)
        #: Captured variables that the code writes to: no input of a call, but part of what the function is now.
        self.held: dict[str, _Read] = {}
        for written in self._changed:  # what the code writes to is no input: a log, a cache, a counter
            read = self.inputs.pop(written, None)
            if read is not None and written not in names:
                self.held[written] = read
        self.names = frozenset(names)
        # What was met is needed while ids are compared, not longer.
        del self._met, self._numbers, self._records, self._namespace, self._changed

    def read(self) -> dict[str, Any]:
        """Return the inputs that are there now."""
        return _present(self.inputs)

    def read_held(self) -> dict[str, Any]:
        """Return what the function keeps in variables of its own, such as a counter's count."""
        return _present(self.held)

    def holds(self) -> bool:
        """Tell whether everything the digest was made from is still the same object."""
        for namespace, name, expected, exact in self._names:
            value = namespace.get(name, _MISSING)
            if (value is not expected()) if exact else (type(value) is not expected):
                return False
        for func, code, defaults, closure in self._codes:
            value = func()
            if value is None or value.__code__ is not code or id(value.__defaults__) != defaults:
                return False
            if closure and closure != _closure_state(value):
                return False
        return all(source_token(module) == token for module, token in self._sources.items())

    def _source(self, module: str) -> str:
        """Return the source of one of the user's own modules, "" for others; a reload is noticed."""
        found = source_token(module)
        if found:
            self._sources[module] = found
        return found.hex()

    def _token(self, value: Any, path: str, read: _Read) -> str:
        """Return what stands for a value that code refers to; data goes to the inputs."""
        value = _unwrapped(value)
        if isinstance(value, (types.FunctionType, type)):
            if not _by_value(value):
                return f"name {value.__module__}:{value.__qualname__} {self._source(value.__module__)}"
            key = _same_definition(value)
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self._numbers)
                self._met.append(value)
                record = self._class(value) if isinstance(value, type) else self._function(value)
                self._records.append(f"{number} {record}")
            return f"code {number}"
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__} {self._source(value.__name__)}"
        if isinstance(value, types.BuiltinFunctionType) and isinstance(
            value.__self__, (types.ModuleType, type(None))
        ):
            return f"name {value.__module__}:{value.__qualname__}"
        if isinstance(value, types.MethodType):
            owner = value.__self__
            return (
                f"method {self._token(value.__func__, path, read)} {self._token(owner, path, lambda: owner)}"
            )
        if isinstance(value, (staticmethod, classmethod)):
            return f"{type(value).__name__} {self._token(value.__func__, path, read)}"
        if isinstance(value, property):
            parts = (value.fget, value.fset, value.fdel)
            return "property " + ", ".join(
                self._token(part, path, lambda: None) for part in parts if part is not None
            )
        if isinstance(value, functools.cached_property):
            return f"cached property {self._token(value.func, path, read)}"
        if isinstance(value, functools.partial):
            held = (value.args, value.keywords)
            return f"partial {self._token(value.func, path, read)} {self._data(held, path, lambda: held)}"
        return self._data(value, path, read)

    def _data(self, value: Any, path: str, read: _Read) -> str:
        if value is _MISSING:
            return "missing"
        name, number = path, 1
        while name in self.inputs:
            number += 1
            name = f"{path}#{number}"
        self.inputs[name] = read
        return "data"

    def _function(self, func: types.FunctionType) -> str:
        code = func.__code__
        known = code_of(code)
        name = func.__qualname__.replace("<locals>.", "")
        self._changed.update(f"{name}.{each}" if each in code.co_freevars else each for each in known.changed)
        parts = [known.digest.hex()]
        self._codes.append((weakref.ref(func), code, id(func.__defaults__), _closure_state(func)))
        for at, value in enumerate(func.__defaults__ or ()):
            parameter = code.co_varnames[code.co_argcount - len(func.__defaults__ or ()) + at]
            parts.append(
                f"{parameter}={self._token(value, f'{name}({parameter})', functools.partial(_as_it_is, value))}"
            )
        for parameter, value in sorted((func.__kwdefaults__ or {}).items()):
            parts.append(
                f"{parameter}={self._token(value, f'{name}({parameter})', functools.partial(_as_it_is, value))}"
            )
        for variable, cell in zip(code.co_freevars, func.__closure__ or (), strict=False):
            read = functools.partial(_cell_content, cell)
            parts.append(f"{variable}:{self._token(read(), f'{name}.{variable}', read)}")
        parts += self._globals(func, known.names)
        return "function " + "; ".join(parts)

    def _globals(self, func: types.FunctionType, names: tuple[str, ...]) -> list[str]:
        namespace = func.__globals__
        if not _follows(func):
            # Code of a library, made anew at run time: its module's names are the library's business.
            module = str(namespace.get("__name__"))
            return [f"in {module} {self._source(module)}"]
        parts = []
        for name in names:
            value = namespace.get(name, _MISSING)
            if value is _MISSING and hasattr(builtins, name):
                self._names.append((namespace, name, type(_MISSING), False))
                continue
            self._global_names.add(name)
            if name in self.inputs:
                parts.append(f"{name}:data")
                continue
            inner = _unwrapped(value)
            if isinstance(
                inner, (types.FunctionType, type, types.ModuleType, types.MethodType, functools.partial)
            ):
                self._names.append((namespace, name, _reference(value), True))
            else:
                self._names.append((namespace, name, type(value), False))
            parts.append(
                f"{name}:{self._token(value, name, functools.partial(namespace.get, name, _MISSING))}"
            )
        return parts

    def _class(self, cls: type) -> str:
        parts = [cls.__qualname__.replace("<locals>.", "")]
        parts += [f"base {self._token(base, cls.__qualname__, lambda: None)}" for base in cls.__bases__]
        if type(cls) is not type:
            parts.append(f"metaclass {self._token(type(cls), cls.__qualname__, lambda: None)}")
        parts.append(f"annotated {','.join(vars(cls).get('__annotations__', {}))}")
        attributes: dict[str, Any] = dict(vars(cls))
        skipped: set[str] = set(_DERIVED)
        generated = False
        if issubclass(cls, Enum):
            members = {name: member._value_ for name, member in cls.__members__.items()}
            skipped |= {name for name in attributes if name.startswith("_") and not name.startswith("__")}
            skipped |= {*members, "__new__", "__reduce_ex__", "__set_name__"}
            attributes |= {f"member {name}": value for name, value in members.items()}
        if "__dataclass_fields__" in attributes and is_dataclass(cls):
            generated = True
            attributes |= {f"field {name}": _field(part) for name, part in cls.__dataclass_fields__.items()}
            attributes["parameters"] = repr(vars(cls).get("__dataclass_params__"))
        for name, value in sorted(attributes.items()):
            if name in skipped or name.startswith(_PYDANTIC):
                continue
            if generated and isinstance(value, types.FunctionType) and _is_generated(value):
                continue
            if isinstance(value, types.FunctionType):
                self._names.append((vars(cls), name, weakref.ref(value), True))
            if type(value) in _DESCRIPTORS:
                continue  # follows from __slots__
            read = functools.partial(attributes.get, name, _MISSING)
            if name in vars(cls):
                read = functools.partial(_class_attribute, weakref.ref(cls), name)
            parts.append(f"{name}={self._token(value, f'{cls.__qualname__}.{name}', read)}")
        return "class " + "; ".join(parts)


def _same_definition(value: Any) -> Any:
    """Return what two functions have in common if they come from one `def` whose cell ran twice, else the identity.

    An alias of the first would otherwise change, if it calls itself by name.
    """
    if isinstance(value, types.FunctionType) and not (
        value.__closure__ or value.__defaults__ or value.__kwdefaults__
    ):
        return (value.__qualname__, code_of(value.__code__).digest, id(value.__globals__))
    return id(value)


def _is_generated(method: types.FunctionType) -> bool:
    """Tell whether `dataclasses` wrote a method; it follows from the fields and parameters."""
    return method.__code__.co_qualname.startswith("__create_fn__")


def _present(reads: dict[str, _Read]) -> dict[str, Any]:
    found = {name: read() for name, read in reads.items()}
    return {name: value for name, value in found.items() if value is not _MISSING}


def _as_it_is(value: Any) -> Any:
    return value


def _field(part: Any) -> tuple[Any, ...]:
    """Return what a class takes from a dataclass field; a sentinel is another object after a pickle."""
    missing = "_MISSING_TYPE"
    return (
        *(
            value if type(value).__name__ != missing else missing
            for value in (part.default, part.default_factory)
        ),
        part.init,
        part.repr,
        part.hash,
        part.compare,
        part.kw_only if isinstance(part.kw_only, bool) else missing,
        dict(part.metadata),
    )


def _reference(value: Any) -> Callable[[], Any]:
    """Return a way to the object that does not keep it alive, where that can be."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def _cell_content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _class_attribute(cls: weakref.ref[type], name: str) -> Any:
    owner = cls()
    return _MISSING if owner is None else vars(owner).get(name, _MISSING)


def _closure_state(func: types.FunctionType) -> int:
    """Return a number that moves when a captured helper is replaced: code by identity, data by type."""
    if not func.__closure__:
        return 0
    contents = [_cell_content(cell) for cell in func.__closure__]
    return hash(
        tuple(
            id(each) if isinstance(each, (types.FunctionType, type)) else id(type(each)) for each in contents
        )
    )
