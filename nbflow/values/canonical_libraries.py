"""Take apart classes of other libraries whose pickle says too much or another thing each time.

matplotlib: a figure's pickle changes when it is drawn. It counts by what is
seen on it (lines, bars, images, texts, limits, scales, legends); what else it
holds is not looked at, so figures are marked unstable. SciPy: a sparse array
remembers whether its indices are sorted when somebody asks; a distribution
holds NumPy's global random state, which is not the distribution's. scikit-learn:
a `Bunch` loses its warnings in a pickle. torch: tensors count
by content, type, device and `requires_grad`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbflow.values.canonical import Walk
    from nbflow.values.canonical_objects import Handler, Parts


def handler(base: type, _kind: type) -> Handler | None:
    """Return how a class is taken apart; None to go on looking."""
    if base.__module__.startswith("scipy.sparse") and base.__name__ in ("_data_matrix", "_coo_base"):
        return _sparse
    return _HANDLERS.get(f"{base.__module__}.{base.__qualname__}")


# --- scipy ---


def _sparse(walk: Walk, value: Any) -> tuple[Parts, bool]:
    state = {name: part for name, part in vars(value).items() if name not in _SORTED}
    return ("sparse", walk.token(type(value)), sorted(state.items())), False


#: Answers that are kept once somebody asked.
_SORTED = frozenset(
    ["_has_sorted_indices", "_has_canonical_format", "has_canonical_format", "has_sorted_indices"]
)


def _distribution(walk: Walk, value: Any) -> tuple[Parts, bool]:
    state = {name: part for name, part in value.__getstate__().items() if name != "_random_state"}
    return ("distribution", walk.token(type(value)), sorted(state.items())), False


def _bunch(walk: Walk, value: Any) -> tuple[Parts, bool]:
    return ("bunch", walk.token(type(value)), dict(value)), False


def _rules(_walk: Walk, _value: Any) -> tuple[Parts, bool]:
    """Leave out the rules by which SymPy deduces: asking a question fills their tables."""
    return ("sympy rules",), True


# --- torch ---


def _tensor(walk: Walk, value: Any) -> tuple[Parts, bool]:
    plain = value.detach().cpu().contiguous()
    if plain.is_sparse or plain.is_quantized:
        raise TypeError(f"no view of the bytes of {plain.layout}")
    about = (walk.token(type(value)), str(value.dtype), tuple(value.shape), str(value.device))
    # As bytes: NumPy has no bfloat16. Sparse and quantized tensors refuse, and are known by identity.
    flat = plain.view(-1).view(sys.modules["torch"].uint8).numpy() if plain.numel() else None
    content = b"" if flat is None else walk.buffer(memoryview(flat), plain.data_ptr())
    return ("tensor", *about, value.requires_grad, content), True


# --- matplotlib ---


def _figure(walk: Walk, value: Any) -> tuple[Parts, bool]:
    walk.unstable()
    size = [float(each) for each in value.get_size_inches()]
    axes = [_axes_parts(each) for each in value.axes]
    texts = [_text(each) for each in value.texts]
    title = getattr(value, "_suptitle", None)
    return ("figure", size, float(value.get_dpi()), axes, texts, _text(title) if title else None), False


def _axes(walk: Walk, value: Any) -> tuple[Parts, bool]:
    walk.unstable()
    return _axes_parts(value), False


def _artist(walk: Walk, value: Any) -> tuple[Parts, bool]:
    walk.unstable()
    return _seen(value), False


def _callbacks(_walk: Walk, _value: Any) -> tuple[Parts, bool]:
    """Leave out who listens to changes: looking at a registry's pickle counts it up."""
    return ("callbacks",), True


def _axes_parts(axes: Any) -> Parts:
    described = [axes.get_title(), bool(axes.axison)]
    # Asking for the limits settles a pending autoscale, as drawing would.
    for each in axes._axis_map.values():  # noqa: SLF001 - 3D and polar axes have others than x and y
        limits = [float(limit) for limit in each.get_view_interval()]
        described += [each.axis_name, each.get_label_text(), each.get_scale(), *limits]
    artists = [*axes.lines, *axes.patches, *axes.collections, *axes.images, *axes.texts, *axes.artists]
    legend = axes.get_legend()
    names = [text.get_text() for text in legend.get_texts()] if legend else None
    return ("axes", type(axes).__name__, described, [_seen(each) for each in artists], names)


#: What can be asked of artists, each of those that have it; the answers are arrays, colours and words.
_QUESTIONS = (
    "get_visible",
    "get_alpha",
    "get_label",
    "get_color",
    "get_facecolor",
    "get_edgecolor",
    "get_linestyle",
    "get_linewidth",
    "get_marker",
    "get_markersize",
    "get_xydata",
    "get_offsets",
    "get_array",
    "get_sizes",
    "get_clim",
    "get_text",
    "get_position",
    "get_fontsize",
)


def _seen(artist: Any) -> Parts:
    answers: list[Any] = [type(artist).__name__]
    for question in _QUESTIONS:
        ask = getattr(artist, question, None)
        if ask is not None:
            answers.append((question, _plain(ask())))
    if hasattr(artist, "get_path") and not hasattr(artist, "get_xydata"):
        answers.append(_plain(artist.get_path().vertices))
        answers.append(_plain(artist.get_patch_transform().get_matrix()))
    if hasattr(artist, "get_paths"):
        answers.append([_plain(path.vertices) for path in artist.get_paths()])
    return tuple(answers)


def _plain(answer: Any) -> Any:
    """Return an answer without NumPy's own kinds of arrays: masked ones differ in what lies under the mask."""
    if hasattr(answer, "filled"):
        return (answer.shape, answer.tolist())
    return answer


def _text(text: Any) -> Parts:
    return (text.get_text(), [float(each) for each in text.get_position()], _plain(text.get_color()))


_HANDLERS: dict[str, Callable[[Walk, Any], tuple[Parts, bool]]] = {
    "scipy.stats._distn_infrastructure.rv_generic": _distribution,
    "sympy.core.facts.FactRules": _rules,
    "sklearn.utils._bunch.Bunch": _bunch,
    "torch.Tensor": _tensor,
    "torch._tensor.Tensor": _tensor,
    "matplotlib.figure.FigureBase": _figure,
    "matplotlib.axes._base._AxesBase": _axes,
    "matplotlib.artist.Artist": _artist,
    "matplotlib.cbook.CallbackRegistry": _callbacks,
}
