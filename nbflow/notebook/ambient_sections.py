"""The kinds of ambient state: how each is looked at, what of a change is recorded, and how it is put back.

`ambient` says when; here is what, kind by kind, in the order in which they are
put back (`SECTIONS`). A kind whose library is not imported is not looked at.
"""

from __future__ import annotations

import importlib
import locale
import os
import random
import re
import sys
import time
import warnings
from array import array
from collections.abc import Callable
from typing import Any

from nbflow.core.loaded import loaded
from nbflow.notebook.warned import WARNED

#: Stands for what a snapshot does not have: the library was not imported yet.
ABSENT: Any = object()
_PLAIN = (str, int, float, bool, bytes, type(None))


def same(then: Any, now: Any) -> bool:
    """Tell whether two looks at one kind saw the same."""
    try:
        return bool(then == now)
    except Exception:  # noqa: BLE001 - an option whose value compares like an array
        return repr(then) == repr(now)


class Section:
    """One kind of ambient state. `look` gives something comparable, `change` what `restore` takes."""

    def __init__(
        self,
        title: str,
        look: Callable[[], Any],
        restore: Callable[[Any], None],
        change: Callable[[Any, Any], Any] | None = None,
        module: str | None = None,
    ) -> None:
        self.title, self.look, self.restore, self.module = title, look, restore, module
        self.change = change or _whole

    def present(self) -> bool:
        """Tell whether the library behind it is imported."""
        return self.module is None or loaded(self.module) is not None


def _whole(_then: Any, now: Any) -> Any:
    return now


# Random generators -------------------------------------------------------------------------------


def _look_random() -> Any:
    return random.getstate()


def _change_random(_then: Any, now: Any) -> Any:
    version, internal, gauss = now
    return [version, array("I", internal).tobytes(), gauss]


def _restore_random(value: Any) -> None:
    version, internal, gauss = value
    random.setstate((version, tuple(array("I", internal)), gauss))


def _look_numpy() -> Any:
    # NumPy 2 imports its random module when it is first used, which would be after the first look.
    state: Any = importlib.import_module("numpy.random").get_state(legacy=False)
    return _flat(state)


def _flat(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _flat(value) for key, value in state.items()}
    if isinstance(state, int) and state.bit_length() > 63:
        return ["int", str(state)]  # PCG64 counts in 128 bits
    return (
        [state.dtype.str, state.tobytes()] if hasattr(state, "tobytes") and hasattr(state, "dtype") else state
    )


def _unflat(state: Any) -> Any:
    import numpy as np

    if isinstance(state, dict):
        return {key: _unflat(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)) and state[0] == "int":
        return int(state[1])
    if isinstance(state, (list, tuple)):
        value = np.frombuffer(state[1], dtype=state[0])
        return value.copy() if value.size != 1 else value[0]
    return state


def _restore_numpy(value: Any) -> None:
    import numpy as np

    legacy: Any = np.random  # the global generator is just what this is about
    state = _unflat(value)
    if legacy.get_state(legacy=False)["bit_generator"] != state["bit_generator"]:
        legacy.set_bit_generator(getattr(legacy, state["bit_generator"])())
    legacy.set_state(state)


def _look_torch() -> Any:
    torch: Any = sys.modules["torch"]
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [bytes(state.cpu().numpy().tobytes()) for state in (torch.get_rng_state(), *devices)]


def _restore_torch(value: Any) -> None:
    torch = importlib.import_module("torch")
    states = [torch.frombuffer(bytearray(raw), dtype=torch.uint8) for raw in value]
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states[1 : 1 + torch.cuda.device_count()])


# Process: folder, environment, path, locale ------------------------------------------------------


def _look_cwd() -> Any:
    try:
        return os.getcwd()  # noqa: PTH109 - text, as it is recorded
    except FileNotFoundError:  # somebody deleted the folder under us
        return None


def _change_environ(then: Any, now: Any) -> Any:
    if then is ABSENT:
        return None
    changed = {key: value for key, value in now.items() if then.get(key) != value}
    removed = [key for key in then if key not in now]
    return {"set": changed, "removed": removed} if changed or removed else None


def _restore_environ(value: Any) -> None:
    os.environ.update(value["set"])
    for key in value["removed"]:
        os.environ.pop(key, None)
    if ("TZ" in value["set"] or "TZ" in value["removed"]) and hasattr(time, "tzset"):
        time.tzset()


def _change_list(then: Any, now: Any) -> Any:
    """Tell a list's change so that it can be made to a list that differs a little.

    `front` is what stands before the longest common end, `removed` what is gone.
    """
    if then is ABSENT:
        then = []
    common = 0
    while common < min(len(then), len(now)) and then[-1 - common] == now[-1 - common]:
        common += 1
    if (
        common == len(then)
        or any(entry not in now[: len(now) - common] for entry in then[: len(then) - common])
        or common
    ):
        front = list(now[: len(now) - common])
        removed = [entry for entry in then if entry not in now]
        return {"front": front, "back": [], "removed": removed}
    start = 0
    while start < min(len(then), len(now)) and then[start] == now[start]:
        start += 1
    return {"front": [], "back": list(now[start:]), "removed": [entry for entry in then if entry not in now]}


def _changed_list(current: list[Any], value: Any) -> list[Any]:
    moved = [*value["front"], *value["back"], *value["removed"]]
    return [*value["front"], *(entry for entry in current if entry not in moved), *value["back"]]


def _restore_path(value: Any) -> None:
    sys.path[:] = _changed_list(sys.path, value)
    importlib.invalidate_caches()


# Options of libraries ----------------------------------------------------------------------------


def _change_options(default: Callable[[], dict[str, Any]]) -> Callable[[Any, Any], Any]:
    def change(then: Any, now: Any) -> Any:
        base = default() if then is ABSENT else then
        changed = {key: value for key, value in now.items() if key not in base or not same(base[key], value)}
        found = {key: _rc_value(value) for key, value in changed.items()}
        return {key: value for key, value in found.items() if is_plain(value)}

    return change


def is_plain(value: Any) -> bool:
    """Tell whether a value is text, number or a list of such; functions as options are left alone."""
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN)


def _look_pandas() -> Any:
    found: dict[str, Any] = {}

    def walk(options: dict[str, Any], prefix: str) -> None:
        for key, value in options.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = value

    walk(getattr(sys.modules["pandas._config.config"], "_global_config", {}), "")
    return found


def _pandas_defaults() -> dict[str, Any]:
    registered = getattr(sys.modules["pandas._config.config"], "_registered_options", {})
    return {key: option.defval for key, option in registered.items()}


def _restore_pandas(value: Any) -> None:
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # options that pandas is about to drop
        for key, option in value.items():
            pd.set_option(key, option)


#: Which window a plot goes to is the new kernel's business.
_NOT_RC = {"backend", "backend_fallback", "interactive", "savefig.directory", "datapath"}


def _rc(params: Any) -> dict[str, Any]:
    # dict.items: RcParams.__getitem__ would resolve the backend and import it.
    return {key: value for key, value in dict.items(params) if key not in _NOT_RC}


def _rc_value(value: Any) -> Any:
    by_key = getattr(value, "by_key", None)  # a cycler
    if callable(by_key):
        return {"cycler": {key: list(values) for key, values in by_key().items()}}
    return list(value) if isinstance(value, (list, tuple)) else value


def _look_matplotlib() -> Any:
    return _rc(sys.modules["matplotlib"].rcParams)


def _matplotlib_defaults() -> dict[str, Any]:
    return _rc(sys.modules["matplotlib"].rcParamsOrig)


def _restore_matplotlib(value: Any) -> None:
    import matplotlib as mpl

    for key, option in value.items():
        is_cycler = isinstance(option, dict) and "cycler" in option
        value_now = importlib.import_module("cycler").cycler(**option["cycler"]) if is_cycler else option
        mpl.rcParams[key] = value_now


#: Figures are shown as pictures once this is at work, which the first plot sees to, or `%matplotlib inline`.
_INLINE = "module://matplotlib_inline.backend_inline"


def _restore_inline(value: str) -> None:
    if loaded("matplotlib_inline.backend_inline") is None:
        importlib.import_module("matplotlib.pyplot").switch_backend(value)


def _look_numpy_options() -> Any:
    np = sys.modules["numpy"]
    return {"print": np.get_printoptions(), "errors": np.geterr()}


def _numpy_option_defaults() -> dict[str, Any]:
    return {"errors": {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}}


def _change_numpy_options(then: Any, now: Any) -> Any:
    base = _numpy_option_defaults() if then is ABSENT else then
    found = {}
    if not same(base.get("print", now["print"]), now["print"]):
        found["print"] = {key: value for key, value in now["print"].items() if is_plain(value)}
    if base["errors"] != now["errors"]:
        found["errors"] = now["errors"]
    return found


def _restore_numpy_options(value: Any) -> None:
    import numpy as np

    if "print" in value:
        options = {key: option for key, option in value["print"].items() if key != "override_repr"}
        np.set_printoptions(**options)
    if "errors" in value:
        np.seterr(**value["errors"])


# Python's own: warnings, decimal, locale ---------------------------------------------------------


def _look_warnings() -> Any:
    return list(warnings.filters)


def _change_warnings(then: Any, now: Any) -> Any:
    value = _change_list(then, now)
    plain = {key: [entry for entry in map(_filter_to_plain, value[key]) if entry] for key in value}
    return plain if any(plain.values()) else None


def _filter_to_plain(entry: Any) -> Any:
    action, message, category, module, line = entry
    if category.__module__ == "__main__":
        return None  # the class is the notebook's: it does not exist yet where this is put back
    # Python's own default filters hold text where added ones hold compiled patterns.
    text, place = (
        part if part is None or isinstance(part, str) else [part.pattern, part.flags]
        for part in (message, module)
    )
    return [action, text, f"{category.__module__}:{category.__qualname__}", place, line]


def _filter_from_plain(entry: Any) -> Any:
    action, message, category, module, line = entry
    place, _, name = category.partition(":")
    kind: Any = importlib.import_module(place)
    for part in name.split("."):
        kind = getattr(kind, part)
    text, where = (
        re.compile(*part) if isinstance(part, (list, tuple)) else part for part in (message, module)
    )
    return (action, text, kind, where, line)


def _restore_warnings(value: Any) -> None:
    plain = {key: [_filter_from_plain(entry) for entry in value[key]] for key in value}
    warnings.filters[:] = _changed_list(list(warnings.filters), plain)  # type: ignore[index]
    mutated = getattr(warnings, "_filters_mutated_lock_held", None) or getattr(
        warnings, "_filters_mutated", None
    )
    if mutated is not None:
        mutated()  # else what was already warned about once stays silent


def _change_warned(_then: Any, now: Any) -> Any:
    return {"notes": now}


def _restore_warned(value: Any) -> None:
    WARNED.restore(value["notes"])


def _look_decimal() -> Any:
    context = sys.modules["decimal"].getcontext()
    traps = sorted(signal.__name__ for signal, on in context.traps.items() if on)
    return [
        context.prec,
        context.rounding,
        context.Emin,
        context.Emax,
        context.capitals,
        context.clamp,
        traps,
    ]


def _change_decimal(then: Any, now: Any) -> Any:
    if then is ABSENT and now[:2] == [28, "ROUND_HALF_EVEN"]:
        return None
    return now


def _restore_decimal(value: Any) -> None:
    import decimal

    context = decimal.getcontext()
    context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp, traps = value
    for signal in context.traps:
        context.traps[signal] = signal.__name__ in traps


def _restore_locale(value: Any) -> None:
    locale.setlocale(locale.LC_ALL, value)


#: Name in a snapshot and in a record → the kind; put back in this order.
SECTIONS: dict[str, Section] = {
    "random": Section("The state of `random`", _look_random, _restore_random, _change_random),
    "numpy": Section("NumPy's random state", _look_numpy, _restore_numpy, module="numpy"),
    "torch": Section("torch's random state", _look_torch, _restore_torch, module="torch"),
    "cwd": Section("The working directory", _look_cwd, os.chdir),
    "environ": Section("The environment", lambda: dict(os.environ), _restore_environ, _change_environ),
    "path": Section("sys.path", lambda: list(sys.path), _restore_path, _change_list),
    "pandas": Section(
        "pandas' options",
        _look_pandas,
        _restore_pandas,
        _change_options(_pandas_defaults),
        "pandas._config.config",
    ),
    # Before the parameters: a back end may bring some of its own.
    "inline": Section(
        "matplotlib's back end for notebooks",
        lambda: _INLINE,
        _restore_inline,
        module="matplotlib_inline.backend_inline",
    ),
    "matplotlib": Section(
        "matplotlib's rcParams",
        _look_matplotlib,
        _restore_matplotlib,
        _change_options(_matplotlib_defaults),
        "matplotlib",
    ),
    "numpy_options": Section(
        "NumPy's print options", _look_numpy_options, _restore_numpy_options, _change_numpy_options, "numpy"
    ),
    "warnings": Section("The warnings filters", _look_warnings, _restore_warnings, _change_warnings),
    "decimal": Section("The decimal context", _look_decimal, _restore_decimal, _change_decimal, "decimal"),
    # Behind the filters: what was warned about holds for the filters as they are.
    "warned": Section("What was warned about", WARNED.look, _restore_warned, _change_warned),
    "locale": Section("The locale", lambda: locale.setlocale(locale.LC_ALL), _restore_locale),
}
