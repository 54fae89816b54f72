"""A comparison as a JUnit file, which services for continuous integration show as tests.

Format: https://github.com/testmoapp/junitxml. The cases are what the exit status of `eval.compare` is of.
"""

from collections.abc import Iterator
from xml.etree import ElementTree

from eval.analysis.comparison import Comparison
from eval.render.comparison import markdown
from policies.text import pluralize, visible

SUITE = "eval.compare"
Case = tuple[str, str | None]
"""A name, and why it failed; None where it passed."""


def comparison_cases(result: Comparison) -> Iterator[Case]:
    """Name what NEW must show, and why it does not."""
    margin = f"{result.margin:g}"
    counts = result.counts
    why = f"{result.decision}: of {pluralize(counts.n, 'pair')} NEW lost {counts.lost} and won {counts.won}"
    shown = result.decision == "non-inferior"
    yield f"NEW loses less than {pluralize(margin, 'point')} of success", None if shown else why
    for name, side in result.sides.items():
        yield f"{name}: every backend served every call", "; ".join(side.problems) or None


def junit(result: Comparison) -> str:
    """Write the cases, with the whole comparison as their output."""
    return _file([(name, "failure", why) for name, why in comparison_cases(result)], markdown(result))


def junit_error(reason: str) -> str:
    """Write a comparison that could not be made: one case with an error."""
    return _file([("BASE and NEW can be compared", "error", reason)], "")


def _file(cases: list[tuple[str, str, str | None]], output: str) -> str:
    bad = [kind for _, kind, why in cases if why is not None]
    counts = (len(cases), bad.count("failure"), bad.count("error"))
    about = dict(zip(("tests", "failures", "errors"), map(str, counts), strict=True))
    root = ElementTree.Element("testsuites", about)
    suite = ElementTree.SubElement(root, "testsuite", {"name": SUITE, **about})
    for name, kind, why in cases:
        case = ElementTree.SubElement(suite, "testcase", {"classname": SUITE, "name": visible(name)})
        if why is not None:
            ElementTree.SubElement(case, kind, {"message": visible(why)}).text = visible(why)
    if output:
        ElementTree.SubElement(suite, "system-out").text = visible(output, lines=True)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
