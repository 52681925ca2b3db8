"""A report opens in a real browser: nothing is fetched, and the browser complains of nothing."""

import os
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from fake_study import ARMS, build
from large_study import write_large_study
from qkvbench import reports
from qkvbench.reports.parts import paper
from qkvbench.results.pair import pair_on_task
from qkvbench.results.store import Store
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


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return view(build(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def file(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(reports.find("page").render(study), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file):
    """The page of the study; the browser must not complain, and must ask for nothing else."""
    opened = browser.new_page(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    complaints, requests = [], []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(file.as_uri())
    yield opened
    opened.close()
    assert complaints == []
    others = [url for url in requests if not url.startswith(("data:", "blob:"))]
    assert {url.partition("#")[0] for url in others} == {file.as_uri()}


def compared(page):
    """The two arms that are compared."""
    return [
        page.locator(f"#{which} option:checked").text_content() for which in ("first", "second")
    ]


def mark(page, arm):
    """The point of an arm in the picture for wide screens."""
    return page.locator(f'.wide-picture .mark[data-arm="{ARMS.index(arm)}"]')


@pytest.mark.slow
def test_the_first_screen_has_the_headline_and_the_picture(page):
    for selector in ("h1", ".wide-picture svg"):
        box = page.locator(selector).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 800


@pytest.mark.slow
def test_a_reader_chooses_the_task_and_the_cost(page):
    axis = page.locator(".wide-picture .axis")
    page.get_by_label("Task", exact=True).select_option("sort")
    assert "accuracy on sort" in axis.first.text_content()
    page.get_by_text("decode step", exact=True).first.click()
    assert "decode step" in axis.nth(1).text_content()
    assert page.locator("#difference tr.current th").text_content() == "sort"
    # An encoder has no cache, so that cost cannot be chosen, and another is taken.
    page.get_by_label("Task", exact=True).select_option("lm-reviews")
    page.get_by_text("cache per token", exact=True).click()
    page.get_by_label("Task", exact=True).select_option("digits")
    assert page.locator('input[value="cache"]').is_disabled()
    assert "parameters" in axis.nth(1).text_content()


@pytest.mark.slow
def test_a_point_shows_its_numbers_and_its_runs(page, study):
    mark(page, "q=k=v").locator(".dot").hover()
    shown = page.locator("#point")
    assert "q=k=v" in shown.locator("h2").text_content()
    task = next(task for task in study.tasks if task.name == "lm-reviews")
    links = [link.get_attribute("href") for link in shown.locator("a").all()]
    assert links == [f"runs/{run.id}.json" for run in task.cell("q=k=v").runs]
    assert f"{task.result.means['q=k=v'].value:.2f}" in shown.text_content()


@pytest.mark.slow
def test_two_arms_are_compared_by_two_clicks(page, study):
    mark(page, "q=k=v").locator(".dot").click()
    mark(page, "q,k=v").locator(".dot").click()
    assert compared(page) == ["q=k=v", "q,k=v"]
    assert mark(page, "q,k=v").get_attribute("aria-pressed") == "true"
    for task in study.tasks:
        found = pair_on_task(task, "q=k=v", "q,k=v")
        row = page.locator("#difference tbody tr").filter(
            has=page.get_by_text(task.name, exact=True)
        )
        assert (found.verdict or found.standing) in row.text_content()


@pytest.mark.slow
def test_two_arms_are_compared_by_keyboard_alone(page):
    page.locator('.wide-picture .mark[tabindex="0"]').focus()
    page.keyboard.press("ArrowRight")
    first = page.evaluate("document.activeElement.dataset.arm")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    second = page.evaluate("document.activeElement.dataset.arm")
    page.keyboard.press("Space")
    assert first != second
    assert compared(page) == [ARMS[int(first)], ARMS[int(second)]]
    # One stop of the tab key: the arrows do the rest.
    assert page.locator('.wide-picture .mark[tabindex="0"]').count() == 1


@pytest.mark.slow
def test_the_lists_compare_two_arms_as_well(page):
    page.get_by_label("Compare", exact=True).select_option("q=k,v")
    page.get_by_label("with", exact=True).select_option("q=k,v")
    assert "the same arm" in page.locator("#difference tbody").text_content()


@pytest.mark.slow
def test_the_table_is_sorted_up_and_down_and_back_by_its_heads(page, study):
    arms = page.locator(".main tbody th code")
    head = page.locator(".main thead button").filter(has_text="sort")
    head.click()
    task = next(task for task in study.tasks if task.name == "sort")
    ranked = sorted(ARMS, key=lambda arm: task.result.means[arm].value)
    assert arms.all_text_contents() == ranked
    head.focus()
    page.keyboard.press("Enter")
    assert arms.all_text_contents() == ranked[::-1]
    assert page.locator('th[aria-sort="descending"]').count() == 1
    page.keyboard.press("Enter")
    assert arms.all_text_contents() == list(ARMS)


@pytest.mark.slow
def test_a_link_into_a_folded_part_opens_it(page, file):
    assert not page.locator("#runs").evaluate("each => each.open")
    page.locator(".main tbody a").first.click()
    assert page.locator("#runs").evaluate("each => each.open")
    page.goto(f"{file.as_uri()}#curves")
    page.reload()
    assert page.locator("#curves").evaluate("each => each.open")
    assert page.locator("#curves").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "tex", "md", "svg", "png"])
def test_the_table_and_the_picture_can_be_saved(page, study, tmp_path, kind):
    with page.expect_download() as download:
        page.locator(f'[data-save="{kind}"]').click()
    content = download.value.path().read_bytes()
    files = paper.files(study)
    if kind == "png":
        assert content.startswith(b"\x89PNG")
    elif kind == "svg":
        root = ElementTree.fromstring(content)
        assert root.get("width") == "760"
        assert b"var(" not in content
        assert b"halo" not in content
    else:
        assert content.decode() == files[f"table.{kind}"]


@pytest.mark.slow
def test_on_paper_the_numbers_are_unfolded_and_no_table_is_cut(page):
    # An A4 page across, between its margins.
    page.set_viewport_size({"width": 1032, "height": 700})
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    unfolded = page.eval_on_selector_all("details[open]", "all => all.map(each => each.id)")
    assert unfolded == ["tasks", "limits", "conditions"]
    cut = "all => all.filter(each => each.scrollWidth > each.clientWidth).length"
    assert page.eval_on_selector_all("#tasks .wide, #conditions .wide, .wide .main", cut) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


CHOICES = {
    "task": "$('#task').value = '2'; $('#task').dispatchEvent(new Event('change'))",
    "axis": "$('#axis input[value=parameters]').click()",
    "arm": "$('#second').value = '5'; $('#second').dispatchEvent(new Event('change'))",
    "order": "$('.main thead th:nth-child(4) button').click()",
}


@pytest.mark.slow
def test_a_page_of_750_runs_answers_a_choice_within_a_second(browser, tmp_path):
    runs = write_large_study(tmp_path, 5)
    assert runs == 750
    file = tmp_path / "report.html"
    file.write_text(reports.find("page").render(view(Store(tmp_path))), encoding="utf-8")
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    opened.goto(file.as_uri())
    for name, choice in CHOICES.items():
        milliseconds = opened.evaluate(
            f"""() => new Promise((answered) => {{
                const $ = (selector) => document.querySelector(selector);
                const began = performance.now();
                {choice};
                // The second frame comes after the first has been drawn.
                const drawn = () => answered(performance.now() - began);
                requestAnimationFrame(() => requestAnimationFrame(drawn));
            }})"""
        )
        assert milliseconds < 1000, name
    opened.close()


@pytest.mark.slow
def test_the_page_is_complete_without_its_script(browser, file, study):
    context = browser.new_context(
        java_script_enabled=False, viewport={"width": 1280, "height": 800}
    )
    opened = context.new_page()
    opened.goto(file.as_uri())
    assert opened.locator(".wide-picture .mark").count() == len(ARMS)
    assert opened.locator(".wide-picture").is_visible()
    assert not opened.locator(".controls").is_visible()
    assert opened.locator(".main tbody tr").count() == len(ARMS)
    opened.locator("#runs summary").click()
    assert opened.locator("#runs table").first.is_visible()
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_screen_and_its_text_can_be_read(browser, file, scheme, width):
    opened = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    opened.goto(file.as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert opened.evaluate(CONTRASTS) == []
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 375])
def test_a_long_name_of_a_file_does_not_widen_the_page_of_a_phone(browser, study, tmp_path, width):
    label = "newspapers_of_the_nineteenth_century_cleaned.txt"
    named = replace(study, tasks=tuple(replace(each, label=label) for each in study.tasks))
    (tmp_path / "report.html").write_text(reports.find("page").render(named), encoding="utf-8")
    opened = browser.new_page(viewport={"width": width, "height": 800})
    opened.goto((tmp_path / "report.html").as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


# The texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3).
CONTRASTS = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = channels(color).slice(0, 3).map((each) => {
      const part = each / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      const [, , , alpha = 1] = channels(color);
      if (color.startsWith("rgb") && alpha > 0.99) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    if (!own || ["SCRIPT", "OPTION", "title", "desc"].includes(element.tagName)) continue;
    if (!element.getClientRects().length) continue;
    if (element.closest("svg .h0, .panels svg, :disabled + span")) continue;
    const style = getComputedStyle(element);
    const color = element.closest("svg") ? style.fill : style.color;
    const [one, other] = [light(color), light(behind(element))].sort((a, b) => b - a);
    const words = `${element.tagName} ${element.textContent} ${color}`;
    if ((one + 0.05) / (other + 0.05) < 4.5) low.push(words);
  }
  return low.slice(0, 5);
}"""


@pytest.mark.slow
def test_axe_finds_nothing_serious(browser, file):
    axe = Axe()
    for scheme in ("light", "dark"):
        # The policy of the page allows no script but its own.
        context = browser.new_context(bypass_csp=True, color_scheme=scheme)
        opened = context.new_page()
        opened.goto(file.as_uri())
        opened.evaluate(
            "document.querySelectorAll('details').forEach((each) => (each.open = true))"
        )
        found = axe.run(opened).response["violations"]
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert [
            (each["id"], [node["html"] for node in each["nodes"][:3]]) for each in serious
        ] == []
        context.close()


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
