"""The page of supported pipelines is what the committed results give, and these are of the cases there are."""

from __future__ import annotations

import json

from tests.integration.cases import CASES, NOT_BUILT
from tests.integration.examine import checks_of
from tests.integration.supported import PAGE, RESULTS, page


def test_the_committed_page_is_that_of_the_committed_results():
    assert PAGE.read_text() == page(json.loads(RESULTS.read_text())), "python -m tests.integration.supported --page"


def test_the_results_are_of_the_cases_and_checks_there_are():
    results = json.loads(RESULTS.read_text())
    assert list(results["cases"]) == list(CASES)
    assert results["not_built"] == NOT_BUILT
    for name, case in CASES.items():
        found = results["cases"][name]
        assert found["checks"] == {check.__name__: "passed" for check in checks_of(case)}, name
        assert found["shows"] == case.shows and found["steps"] == case.steps
        assert ("refusal" in found) == (case.refusal is not None)
        assert case.refusal is not None or (found["trunk"] and 0 < found["reused"] < found["calls"]), name
