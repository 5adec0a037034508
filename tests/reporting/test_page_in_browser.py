"""The page in a real browser: nothing fails, nothing is asked of a network, every figure is drawn, on a desk and on a phone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field

import pytest
from tests.reporting.conftest import as_cifar, read

from mllt.report import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium, chromium-browser or google-chrome")

_QUIET = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update")
FLAGS = [f"--{flag}" for flag in (*_QUIET, "no-sandbox", "disable-sync")]


@dataclass
class Seen:
    """What a browser said while it showed a page."""

    page: object
    errors: list = field(default_factory=list)
    requests: list = field(default_factory=list)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def written(real, tmp_path_factory):
    """A report with everything in it: two experiments, published figures, notes, an unfinished run, a damaged folder."""
    from tests.reporting.conftest import copy

    root = tmp_path_factory.mktemp("page")
    bins = {"count": [3, 0, 7], "accuracy": [20.0, None, 90.0], "confidence": [30.0, None, 80.0]}
    for name in ("cross_entropy0", "mutual0", "mutual1"):
        settings, results = as_cifar(real[name], reconstructed=['a <detail> & "another"'])
        results["test"] = {**results["test"], "reliability": {"raw": bins, "compensated": bins}}
        results["details"] = {"share": 0.5, "by_class": [float(c) for c in range(100)]}
        copy(real[name], root / "runs" / f"cifar-{name}", settings, results)
    test = {**read(real["crt0"])["test"], "reliability": {"raw": bins, "compensated": bins}}
    copy(real["crt0"], root / "runs" / "crt", results={"test": test})
    copy(real["mutual0"], root / "runs" / "unfinished", finished=False)
    (copy(real["mutual0"], root / "runs" / "damaged") / "config.yaml").write_text("seed: [")
    return report(root / "runs")


@pytest.fixture(params=[(1400, 900, "light"), (390, 844, "dark")], ids=["desk", "phone"])
def seen(browser, written, request):
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    told = Seen(context.new_page())
    told.page.on("console", lambda message: told.errors.append(message.text))
    told.page.on("pageerror", lambda error: told.errors.append(str(error)))
    told.page.on("requestfailed", lambda asked: told.errors.append(asked.url))
    told.page.on("request", lambda asked: told.requests.append(asked.url))
    told.page.goto((written.folder / "report.html").as_uri(), wait_until="load")
    yield told
    context.close()


def test_nothing_fails_and_nothing_is_loaded_but_the_page(seen, written):
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [(written.folder / "report.html").as_uri()]
    assert seen.page.locator("script").count() == 0


def test_every_figure_is_drawn(seen):
    drawings = seen.page.evaluate("""() => [...document.querySelectorAll('figure svg')].map(svg => {
        const box = svg.getBoundingClientRect();
        const parts = [...svg.querySelectorAll('path, use, rect')].filter(part => {
            const its = part.getBoundingClientRect();
            return its.width + its.height > 1;
        });
        const named = svg.getAttribute('aria-labelledby').split(' ').map(id => document.getElementById(id).textContent);
        return {width: box.width, height: box.height, parts: parts.length, named};
    })""")
    assert len(drawings) >= 1 + 4 + 2 + 2 + 2 + 2 + 1 + 4 + 1 + 1 + 1  # of both experiments
    for drawing in drawings:
        assert drawing["width"] > 200, drawing
        assert drawing["height"] > 80, drawing
        assert drawing["parts"] > 8, drawing
        assert all(len(text) > 8 for text in drawing["named"]), drawing
    titles = seen.page.locator("figure figcaption h3").all_text_contents()
    assert titles.count("Class counts") == 2
    assert {"Shot groups", "Accuracy by class", "Reliability", "Training loss", "By class"} <= set(titles)


def test_the_drawings_take_the_colours_of_the_page(seen):
    colours = seen.page.evaluate("""() => {
        const wanted = getComputedStyle(document.documentElement).getPropertyValue('--first').trim();
        const probe = document.body.appendChild(document.createElement('i'));
        probe.style.color = wanted;
        const shown = getComputedStyle(probe).color;
        probe.remove();
        const fills = [...document.querySelectorAll('figure svg path')].map(path => getComputedStyle(path).fill);
        return {shown, found: fills.filter(fill => fill === shown).length};
    }""")
    assert colours["found"] > 10, colours


def test_the_page_is_no_wider_than_the_screen(seen):
    page, screen = seen.page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert page <= screen


def test_what_is_written_in_the_drawings_stays_within_their_panels(seen):
    outside = seen.page.evaluate("""() => [...document.querySelectorAll('figure svg text')].filter(text => {
        const its = text.getBoundingClientRect(), panel = text.closest('.panel').getBoundingClientRect();
        return its.left < panel.left - 1 || its.right > panel.right + 1;
    }).map(text => text.textContent)""")
    assert outside == []


def test_names_in_the_chart_of_costs_do_not_cover_each_other(seen):
    pairs = seen.page.evaluate("""() => [...document.querySelectorAll('figure[id$=-cost] svg')].flatMap(svg => {
        const names = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
        return names.flatMap(([one, a], n) => names.slice(n + 1).filter(([_, b]) =>
            a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3
        ).map(([other]) => [one, other]));
    })""")
    assert pairs == []


def test_every_link_leads_somewhere_in_the_page_and_names_are_unique(seen):
    links, names = seen.page.evaluate("""() => [
        [...document.querySelectorAll('a')].map(a => a.getAttribute('href')),
        [...document.querySelectorAll('[id]')].map(one => one.id),
    ]""")
    assert len(names) == len(set(names))
    assert len(links) > 30
    assert all(link[0] == "#" and link[1:] in names for link in links)


def test_the_table_says_what_the_runs_say(seen, written):
    (layout,) = (one for one in written.layouts if one.with_published)
    lines = seen.page.evaluate(
        """slug => [...document.querySelector(`#${slug} table`).rows]
        .map(row => [...row.cells].map(cell => cell.textContent.trim()))""",
        layout.experiment.slug,
    )
    (row,) = (line for line in lines if line[0].startswith("Mutual Learning") and "each" not in line[0])
    assert row[1:6] == [*(stat.text() for stat in layout.rows[-1].own), "2"]


def test_problems_unfinished_runs_and_notes_are_shown_as_text(seen):
    text = seen.page.inner_text("body")
    assert "Not everything could be read" in text
    assert "damaged: its config.yaml cannot be read" in text
    assert "seed 0 is incomplete, no results yet" in text
    assert 'reconstructed where nothing is public: a <detail> & "another".' in text
    assert "AutoAugment + Cutout" in text
    assert "Does the published table agree with itself?" not in text


def test_nothing_of_a_page_full_of_hostile_texts_runs_or_is_asked_for(browser, real, tmp_path):
    from tests.reporting.test_hostile_results import EVIL, make

    written = make(real, tmp_path / "runs")
    page = browser.new_page()
    asked, happened = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (happened.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: happened.append(str(error)))
    address = (written.folder / "report.html").as_uri()
    page.goto(address, wait_until="load")
    assert page.evaluate("window.pwned") is None
    assert page.title() == "Report"
    assert happened == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert page.evaluate("document.querySelectorAll('script, img, iframe, object, embed').length") == 0
    assert EVIL[0] in page.inner_text("body")
    page.close()
