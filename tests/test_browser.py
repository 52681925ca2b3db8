"""A report opens in a real browser: nothing is fetched, and the browser complains of nothing."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

from fake_study import build
from qkvbench import reports
from qkvbench.results.view import view

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

pages = [name for name in reports.names() if reports.find(name).SUFFIX == "html"]


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        missing = f"needs one of {', '.join(BROWSERS)} on this machine"
        # Where everything must be checked, a missing browser is a failure.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", pages)
def test_a_page_fetches_nothing_and_is_shown_without_a_complaint(browser, tmp_path, name):
    store = build(tmp_path / "store")
    file = tmp_path / "report.html"
    file.write_text(reports.find(name).render(view(store)), encoding="utf-8")

    page = browser.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    rows = page.locator("table tr").count()
    wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    page.close()

    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert rows > len(store.study().variants)
    assert not wide
