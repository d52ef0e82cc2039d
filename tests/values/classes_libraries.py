"""Examples of the classes of scientific libraries; each imports its library only when it is made."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tests.values.classes import Example
from tests.values.classes_lazy import Library, put

np, sp, nx, sympy = map(Library, ["numpy", "scipy", "networkx", "sympy"])
sk, mpl, torch, image = Library("sklearn"), Library("matplotlib"), Library("torch"), Library("PIL.Image")

EXAMPLES: list[Example] = []


def row(
    library: str,
    name: str,
    make: Callable[[], Any],
    change: Callable[[Any], Any],
    view: Callable[[Any], Any] = lambda value: value,
) -> None:
    EXAMPLES.append(Example(library, name, make, change, view))


# --- numpy ---


def _with_view(base: Any) -> list[Any]:
    return [base, base[2:5]]


def numpy(
    name: str, make: Callable[[], Any], change: Callable[[Any], Any], view: Callable[[Any], Any] = lambda v: v
) -> None:
    row("numpy", name, make, change, view)


for kind in (
    "bool",
    "int8",
    "uint64",
    "float16",
    "float32",
    "float64",
    "longdouble",
    "complex64",
    "complex128",
):
    numpy(
        f"ndarray of {kind}",
        lambda kind=kind: np.arange(5000).astype(kind).reshape(50, 100),
        put(1, 3, value=0),
    )
numpy("ndarray of big-endian int32", lambda: np.arange(9, dtype=">i4"), lambda v: v.astype("<i4"))
numpy(
    "ndarray of datetime64", lambda: np.array(["2026-01-01", "NaT"], "M8[ns]"), lambda v: v.astype("M8[us]")
)
numpy("ndarray of timedelta64", lambda: np.arange(4).astype("m8[s]"), put(0, value=9))
numpy("ndarray of str", lambda: np.array(["a", "bcd"]), put(0, value="b"))
numpy("ndarray of bytes", lambda: np.array([b"a", b"bcd"]), put(0, value=b"b"))
numpy(
    "ndarray of StringDType",
    lambda: np.array(["a", "b" * 40], dtype=np.dtypes.StringDType()),
    put(0, value="b"),
)
numpy(
    "ndarray of objects",
    lambda: np.array([1, "a", None, [2], {3}], dtype=object),
    lambda v: v[3].append(1),
    lambda v: v.tolist(),
)
numpy(
    "ndarray of records",
    lambda: np.array([(1, 2.0, "a")], dtype=[("a", "i1"), ("b", "f8"), ("c", "U4")]),
    lambda v: v["b"].fill(3),
)
numpy(
    "ndarray of aligned records",
    lambda: np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    lambda v: v["a"].fill(3),
)
numpy(
    "ndarray, Fortran order",
    lambda: np.asfortranarray(np.arange(6000.0).reshape(60, 100)),
    put(1, 3, value=0),
    lambda v: (v, v.flags.f_contiguous),
)
numpy("ndarray with steps", lambda: np.arange(20000.0)[::2], put(1, value=0))
numpy("ndarray without dimensions", lambda: np.array(3.0), lambda v: v.fill(4))
numpy("ndarray, empty", lambda: np.empty((0, 3), "f4"), lambda v: v.reshape(3, 0))
numpy(
    "ndarray with NaN payloads",
    lambda: np.array([0x7FF8000000000001, 0xFFF8000000000000], "u8").view("f8"),
    lambda v: v[::-1],
    lambda v: v.view("u8"),
)
numpy(
    "list of a view and its base",
    lambda: _with_view(np.arange(9.0)),
    lambda v: v[1].fill(0),
    lambda v: (v, np.shares_memory(*v)),
)
numpy("matrix", lambda: np.matrix([[1, 2]]), put(0, 0, value=5))
numpy("recarray", lambda: np.rec.array([(1, 2.0)], names="a,b"), lambda v: v.a.fill(2), lambda v: v.a)
numpy(
    "MaskedArray",
    lambda: np.ma.array([1.0, 2.0], mask=[0, 1]),
    put(0, value=3.0),
    lambda v: (v.filled(9), v.mask),
)
numpy("float64", lambda: np.float64(1.5), lambda v: float(v))
numpy("int8", lambda: np.int8(3), lambda _: np.int16(3))
numpy("datetime64", lambda: np.datetime64("2026-01-01", "s"), lambda v: v.astype("M8[ms]"))
numpy(
    "void",
    lambda: np.array([(1, 2.0)], dtype=[("a", "i1"), ("b", "f8")])[0],
    put("a", value=4),
    lambda v: v.tolist(),
)
numpy("dtype", lambda: np.dtype([("a", "i4"), ("b", "M8[ns]")]), lambda _: np.dtype("i4"))
numpy("ufunc", lambda: np.sin, lambda _: np.cos)
numpy(
    "random.Generator", lambda: np.random.default_rng(3), lambda v: v.random() and None, lambda v: v.random(3)
)
numpy(
    "random.Generator, MT19937",
    lambda: np.random.Generator(np.random.MT19937(3)),
    lambda v: v.random() and None,
    lambda v: v.random(3),
)
numpy(
    "random.SeedSequence",
    lambda: np.random.SeedSequence(3),
    lambda v: v.spawn(1) and None,
    lambda v: (v.entropy, v.n_children_spawned),
)
numpy(
    "random.RandomState",
    lambda: np.random.RandomState(3),
    lambda v: v.random() and None,
    lambda v: v.random(3),
)
numpy("polynomial.Polynomial", lambda: np.polynomial.Polynomial([1, 2]), lambda v: v.coef.fill(3))
numpy("poly1d", lambda: np.poly1d([1, 2]), lambda v: v * 2, lambda v: v.coeffs)


# --- scipy ---

_dense = lambda: np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 3.0]])
for form in ("csr", "csc", "coo", "bsr", "lil", "dok", "dia"):
    row(
        "scipy",
        f"sparse.{form}_array",
        lambda form=form: getattr(sp.sparse, f"{form}_array")(_dense()),
        lambda v: v * 2,
        lambda v: (v.format, v.toarray()),
    )
row(
    "scipy",
    "sparse.csr_matrix",
    lambda: sp.sparse.csr_matrix(_dense()),
    lambda v: v.data.fill(3),
    lambda v: v.toarray(),
)
row(
    "scipy",
    "stats frozen distribution",
    lambda: sp.stats.norm(1, 2),
    lambda _: sp.stats.norm(1, 3),
    lambda v: v.cdf(2.0),
)
row(
    "scipy",
    "stats.gaussian_kde",
    lambda: sp.stats.gaussian_kde([1.0, 2, 4]),
    lambda v: v.set_bandwidth(3.0),
    lambda v: v(2.0),
)
row(
    "scipy",
    "interpolate.CubicSpline",
    lambda: sp.interpolate.CubicSpline([0, 1, 2, 3], [0, 1, 4, 9]),
    lambda v: v.c.fill(1),
    lambda v: v(1.5),
)
row(
    "scipy",
    "spatial.cKDTree",
    lambda: sp.spatial.cKDTree(np.arange(20.0).reshape(10, 2)),
    lambda _: sp.spatial.cKDTree(np.arange(8.0).reshape(4, 2)),
    lambda v: v.query([3.0, 4.0])[0],
)
row(
    "scipy",
    "spatial.transform.Rotation",
    lambda: sp.spatial.transform.Rotation.from_euler("x", 1.0),
    lambda v: v.inv(),
    lambda v: v.as_matrix(),
)
row(
    "scipy",
    "optimize.OptimizeResult",
    lambda: sp.optimize.OptimizeResult(x=np.ones(2), success=True),
    lambda v: v.x.fill(0),
    lambda v: v.x,
)
row(
    "scipy",
    "signal.dlti",
    lambda: sp.signal.dlti([1.0], [1.0, 0.5]),
    lambda _: sp.signal.dlti([2.0], [1.0, 0.5]),
    lambda v: (v.num, v.den),
)

# --- scikit-learn ---


def _data() -> tuple[Any, Any]:
    points = np.random.default_rng(1).normal(size=(60, 3))
    return points, (points[:, 0] > 0).astype(int)


def learned(path: str, view: str = "predict", **options: Any) -> None:
    module, _, name = path.rpartition(".")

    def make() -> Any:
        return getattr(import_module(f"sklearn.{module}"), name)(**options).fit(*_data())

    def refitted(_value: Any) -> Any:
        points, answers = _data()
        return getattr(import_module(f"sklearn.{module}"), name)(**options).fit(points * 2 + 1, 1 - answers)

    row("scikit-learn", name, make, refitted, lambda v: getattr(v, view)(_data()[0]))


for path in (
    "linear_model.LinearRegression", "linear_model.LogisticRegression", "linear_model.Ridge", "linear_model.Lasso",
    "svm.SVC", "naive_bayes.GaussianNB", "neighbors.KNeighborsClassifier", "dummy.DummyClassifier",
):  # fmt: skip
    learned(path)
for path in (
    "tree.DecisionTreeClassifier", "ensemble.RandomForestClassifier", "ensemble.GradientBoostingRegressor",
    "ensemble.HistGradientBoostingClassifier", "linear_model.SGDClassifier", "neural_network.MLPClassifier",
):  # fmt: skip
    learned(
        path,
        random_state=0,
        **({"n_estimators": 5} if "RandomF" in path or "GradientBoostingR" in path else {})
        | ({"max_iter": 5} if "Hist" in path else {}),
    )
learned("cluster.KMeans", random_state=0, n_clusters=2, n_init=1)
for path in (
    "preprocessing.StandardScaler",
    "preprocessing.MinMaxScaler",
    "preprocessing.RobustScaler",
    "impute.SimpleImputer",
):
    learned(path, "transform")
learned("decomposition.PCA", "transform", random_state=0)


def _pipeline() -> Any:
    steps = [("scale", sk.preprocessing.StandardScaler()), ("fit", sk.linear_model.LogisticRegression())]
    return sk.pipeline.Pipeline(steps).fit(*_data())


row(
    "scikit-learn",
    "Pipeline",
    _pipeline,
    lambda v: v.set_params(fit__C=3.0) and None,
    lambda v: v.predict(_data()[0]),
)
row(
    "scikit-learn",
    "KFold",
    lambda: sk.model_selection.KFold(3, shuffle=True, random_state=1),
    lambda v: setattr(v, "n_splits", 4),
    repr,
)
row("scikit-learn", "Bunch", lambda: sk.utils.Bunch(a=np.ones(2)), lambda v: v.a.fill(2), dict)
row(
    "scikit-learn",
    "CountVectorizer",
    lambda: sk.feature_extraction.text.CountVectorizer().fit(["a b cc", "cc dd"]),
    lambda v: v.vocabulary_.update(x=1),
    lambda v: sorted(v.vocabulary_.items()),
)

# --- matplotlib ---


def _figure() -> Any:
    figure = mpl.figure.Figure()
    axes = figure.add_subplot()
    axes.plot([1, 2, 4], label="a")
    axes.bar([1, 2], [3, 4])
    axes.scatter([1, 2], [2, 3])
    axes.imshow(np.eye(2))
    axes.set_title("title")
    axes.legend()
    return figure


def _drawn(figure: Any) -> Any:
    figure.canvas.draw()
    return figure


def _seen(figure: Any) -> Any:
    axes = figure.axes[0]
    return (axes.get_title(), axes.get_xlim(), [line.get_xydata() for line in axes.lines], len(axes.patches))


row("matplotlib", "Figure", _figure, lambda v: v.axes[0].plot([3, 1]) and None, _seen)
row(
    "matplotlib",
    "Figure, drawn",
    lambda: _drawn(_figure()),
    lambda v: v.axes[0].lines[0].set_color("red"),
    _seen,
)
row(
    "matplotlib",
    "Axes",
    lambda: _figure().axes[0],
    lambda v: v.set_xlim(0, 9) and None,
    lambda v: v.get_title(),
)
row(
    "matplotlib",
    "Line2D",
    lambda: mpl.lines.Line2D([1, 2], [3, 4]),
    lambda v: v.set_ydata([4, 3]),
    lambda v: v.get_xydata(),
)
row(
    "matplotlib",
    "Colormap",
    lambda: mpl.colors.ListedColormap(["red", "blue"]),
    lambda _: mpl.colors.ListedColormap(["red"]),
    lambda v: v(0.2),
)
row(
    "matplotlib",
    "Normalize",
    lambda: mpl.colors.Normalize(0, 1),
    lambda v: setattr(v, "vmax", 2),
    lambda v: (v.vmin, v.vmax),
)

# --- networkx ---


def _graph(kind: str) -> Any:
    graph = getattr(nx, kind)([(1, 2), (2, "c")])
    graph.nodes[1]["size"] = [3]
    graph.graph["name"] = "g"
    return graph


def _edges(graph: Any) -> Any:
    return (dict(graph.nodes(data=True)), list(graph.edges(data=True)), graph.graph)


for kind in ("Graph", "DiGraph", "MultiGraph", "MultiDiGraph"):
    row("networkx", kind, lambda kind=kind: _graph(kind), lambda v: v.nodes[1]["size"].append(1), _edges)
row(
    "networkx",
    "subgraph view",
    lambda: _graph("Graph").subgraph([1, 2]),
    lambda v: v.nodes[1]["size"].append(1),
    _edges,
)

# --- sympy ---

_x = lambda: sympy.Symbol("x", positive=True)
for name, make, change in [
    ("Symbol", _x, lambda _: sympy.Symbol("x")),
    ("Add", lambda: _x() ** 2 + sympy.sin(_x()), lambda v: v + 1),
    ("Integral", lambda: sympy.Integral(_x(), _x()), lambda v: v.doit()),
    ("Rational", lambda: sympy.Rational(1, 3), lambda v: v * 2),
    ("Float", lambda: sympy.Float("0.1", 30), lambda _: sympy.Float("0.1", 20)),
    ("Matrix", lambda: sympy.Matrix([[1, _x()]]), put(0, value=2)),
    ("Eq", lambda: sympy.Eq(_x(), 3), lambda _: sympy.Eq(_x(), 4)),
    ("Poly", lambda: sympy.Poly(_x() ** 2 + 1), lambda v: v * 2),
    ("FiniteSet", lambda: sympy.FiniteSet(1, 2), lambda v: v + sympy.FiniteSet(3)),
    ("Function", lambda: sympy.Function("f")(_x()), lambda _: sympy.Function("g")(_x())),
]:
    row("sympy", name, make, change, lambda v: (v, sympy.srepr(v)))

# --- Pillow, torch ---


def _image(mode: str) -> Any:
    return image.new(mode, (4, 3), 1)


for mode in ("RGB", "L", "RGBA", "P", "1", "F"):
    row(
        "Pillow",
        f"Image, mode {mode}",
        lambda mode=mode: _image(mode),
        lambda v: v.putpixel((1, 1), 0),
        lambda v: (v.mode, v.size, v.tobytes()),
    )

for name, make, change in [
    ("Tensor of float32", lambda: torch.arange(9.0), put(1, value=5)),
    ("Tensor of bfloat16", lambda: torch.arange(9.0).bfloat16(), put(1, value=5)),
    ("Tensor, transposed", lambda: torch.arange(6.0).reshape(2, 3).T, put(0, 1, value=5)),
    ("Tensor of bool", lambda: torch.tensor([True, False]), put(1, value=True)),
]:
    row("torch", name, make, change, lambda v: (str(v.dtype), v.tolist()))
row(
    "torch",
    "nn.Linear",
    lambda: (torch.manual_seed(1), torch.nn.Linear(2, 3))[1],
    lambda v: v.weight.data.fill_(0) and None,
    lambda v: v.weight.tolist(),
)
row(
    "torch",
    "Generator",
    lambda: torch.Generator().manual_seed(3),
    lambda v: v.manual_seed(4) and None,
    lambda v: v.initial_seed(),
)

assert not [
    key
    for key, group in itertools.groupby(sorted((e.library, e.name) for e in EXAMPLES))
    if len(list(group)) > 1
]
