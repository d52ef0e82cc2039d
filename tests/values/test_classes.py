"""The table of classes in the docs is true: it is made again here and compared."""

from __future__ import annotations

import warnings

import pytest

from tests.values import classes


@pytest.fixture(scope="module")
def observed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a small network that did not converge is no concern of ours
        return classes.observe(classes.load())


def test_what_the_docs_say_of_a_class_is_so(observed):
    """Every row of docs/classes.md whose library is here is observed again, cell by cell, with the same answers."""
    committed = classes.committed()
    different = {key: (committed.get(key), row) for key, row in observed.items() if committed.get(key) != row}
    assert different == {}


def test_the_page_is_the_one_the_catalogue_makes(observed):
    """docs/classes.md is what `python -m tests.values.classes` writes, no row more or less."""
    assert classes.written(observed, classes.committed()) == classes.TABLE.read_text(encoding="utf-8")


def test_a_hundred_classes_survive_with_their_fingerprints(observed):
    """At least a hundred classes make the round trip, keep their fingerprint in another process and have changes seen."""
    good = [row for row in observed.values() if (row.kept, row.same, row.seen) == ("yes", "yes", "yes")]
    assert len(good) >= 100


def test_nothing_is_kept_wrongly(observed):
    """A class comes back equal with its fingerprint, or is refused with a typed error; changes are always seen."""
    wrong = [row for row in observed.values() if "no" in (row.kept, row.same, row.seen)]
    assert wrong == []


def test_only_what_hides_its_content_is_unstable(observed):
    """Fingerprints that hold in this process only are those of figures and of things that cannot be stored."""
    unstable = {row.library for row in observed.values() if row.stable == "no"}
    assert unstable <= {"matplotlib", "refused"}
