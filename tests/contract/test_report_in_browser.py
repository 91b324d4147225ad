"""The report in a real browser: it loads from a file, asks for nothing, runs no foreign text, and can be used."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from eckart.report import write_report
from report_cases import HOSTILE, layer, result

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
)

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no Chromium; fix: apt-get install chromium")

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Give a function that opens the report of a result; in the end nothing may have been logged or asked for."""
    complaints: list[str] = []
    opened: list[BrowserContext] = []

    def open_report(value: dict[str, Any], width: int = 1280, scripts: bool = True, **settings: Any) -> Page:
        address = write_report(value, tmp_path / "report.html").as_uri()
        context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=scripts, **settings)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request", lambda request: complaints.append(f"request: {request.url}") if request.url != address else 0
        )
        page.goto(address)
        if scripts:
            page.wait_for_selector("html[data-ready]")
        return page

    yield open_report
    for context in opened:
        context.close()
    assert complaints == []


def column(page: Page, number: int) -> list[str]:
    """Return the texts of one column of the layers that are shown, from the top."""
    shown: list[str] = page.locator("#layers tbody tr:visible").evaluate_all(
        "(rows, number) => rows.map((row) => row.cells[number].textContent)", number
    )
    return shown


def layers(value: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = value["plan"]["layers"]
    return found


def sideways(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def background(page: Page) -> tuple[int, ...]:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return tuple(map(int, re.findall(r"\d+", colour)))[:3]


def test_the_watch_for_complaints_sees_a_script_that_the_policy_stops(browser: Browser, tmp_path: Path) -> None:
    """Without the policy, or with one too wide, the added script would run and the added image would be asked for."""
    file = write_report(result(blocks=1), tmp_path / "report.html")
    added = "<script>window.ran = 1</script><img src='http://127.0.0.1:9/x.png' onerror='window.ran = 1'></body>"
    styled = "<p id='styled' style='color: rgb(1, 2, 3)'>x</p>"
    file.write_text(file.read_text(encoding="utf-8").replace("</body>", styled + added), encoding="utf-8")
    page = browser.new_page()
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.goto(file.as_uri())
    assert page.evaluate("window.ran") is None
    assert page.locator("#styled").evaluate("(p) => getComputedStyle(p).color") != "rgb(1, 2, 3)"
    assert sum("Content Security Policy" in text for text in seen) >= 3
    page.close()


def test_verdict_table_map_and_layers_are_there(show: Open) -> None:
    value = result()
    page = show(value)
    expect(page.locator("main > :first-child > :first-child")).to_contain_text("LARGER than the input file")
    expect(page.locator("h1")).to_have_text("SmolLM2-135M-Instruct.Q4_K_M.gguf")
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator(".strip")).to_contain_text("23.10 → 29.91")
    expect(page.locator(".strip")).to_contain_text("no speed-up")
    assert page.locator("rect[data-layer]").count() == len(layers(value)) == page.locator("#layers tbody tr").count()
    fills = page.locator("rect.cell").evaluate_all("(cells) => cells.map((cell) => getComputedStyle(cell).fill)")
    assert len(set(fills)) >= 4
    assert "rgb(0, 0, 0)" not in fills
    assert sideways(page) == 0


def test_hostile_names_stay_text(show: Open) -> None:
    value = result(blocks=1)
    for i, one in enumerate(layers(value)):
        one["name"] = f"{HOSTILE}{i}"
    value["models"][1] |= {"label": HOSTILE, "path": HOSTILE}
    value |= {"command": HOSTILE, "warnings": [HOSTILE]}
    page = show(value)
    assert page.locator("img").count() == 0
    name = column(page, 0)[0]
    assert name == HOSTILE.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e").replace("\u2028", r"\u2028") + "0"
    page.locator("rect[data-layer='0']").hover()
    expect(page.locator("#cell")).to_contain_text("<img src=x")
    assert page.evaluate("JSON.parse(document.getElementById('data').textContent).command") == HOSTILE


@pytest.mark.parametrize("number", range(10))
def test_every_column_sorts_both_ways_with_missing_values_last(show: Open, number: int) -> None:
    value = result(blocks=3)
    layers(value)[4] |= {"loss_increase": None, "relative_error": None}
    keys: list[Callable[[dict[str, Any]], Any]] = [
        lambda one: one["name"],
        lambda one: one["rows"] * one["columns"],
        lambda one: one["option"]["ranks"][0] if one["option"]["ranks"] else None,
        lambda one: one["break_even_rank"],
        lambda one: one["params_before"],
        lambda one: one["params"],
        lambda one: one["bytes"],
        lambda one: one["params"] / one["params_before"],
        lambda one: one["loss_increase"],
        lambda one: one["relative_error"],
    ]
    key = {one["name"]: keys[number](one) for one in layers(value)}
    page = show(value)
    head = page.locator("#layers thead th").nth(number)
    page.locator("#layers thead th").nth(number - 1).get_by_role("button").click()
    for direction in ("ascending", "descending"):
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", direction)
        assert page.locator("#layers [aria-sort]").count() == 1
        found = [key[name] for name in column(page, 0)]
        known = [one for one in found if one is not None]
        assert known == sorted((one for one in key.values() if one is not None), reverse=direction == "descending")
        assert found == known + [None] * (len(key) - len(known))


def test_names_sort_by_the_numbers_in_them(show: Open) -> None:
    page = show(result(blocks=12))
    page.locator("#layers thead button").first.click()
    blocks = [int(name.split(".")[2]) for name in column(page, 0)]
    assert blocks == sorted(blocks)


def test_filter_by_name_and_kind(show: Open) -> None:
    value = result()
    page = show(value)
    page.get_by_label("Name contains").fill("DOWN_proj")
    expected = [one for one in layers(value) if "down_proj" in one["name"]]
    assert column(page, 0) == [one["name"] for one in expected]
    expect(page.locator("#shown")).to_have_text("30 of 210 layers")
    page.get_by_label("Show").select_option("dense")
    dense = [one["name"] for one in expected if one["option"]["format"] == "dense"]
    assert 0 < len(dense) < len(expected)
    assert column(page, 0) == dense
    page.get_by_label("Name contains").fill("nothing like this")
    expect(page.locator("#shown")).to_have_text("0 of 210 layers")
    pair = next(i for i, one in enumerate(layers(value)) if one["option"]["format"] == "pair")
    page.locator(f"rect[data-layer='{pair}']").click()  # a cell of the map brings its row back
    expect(page.locator(f"#layer-{pair}")).to_be_focused()
    expect(page.locator("#shown")).to_have_text("210 of 210 layers")


def test_keyboard_alone_is_enough(show: Open) -> None:
    page = show(result(blocks=2))
    page.locator("#layers thead button").last.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#layers thead th").last).to_have_attribute("aria-sort", "ascending")
    page.keyboard.press("Tab")
    rows = page.locator("#layers tbody tr")
    expect(rows.first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(rows.nth(1)).to_be_focused()
    assert page.locator("rect.on").count() == 1
    page.keyboard.press("End")
    expect(rows.last).to_be_focused()
    assert page.locator("#layers tbody tr[tabindex='0']").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#layers')") is None


def test_copied_command_is_the_one_that_is_shown(show: Open) -> None:
    value = result(blocks=1)
    page = show(value, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy this command").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == value["command"] == page.locator("#command").inner_text()


def test_where_the_clipboard_is_refused_the_command_is_selected(show: Open) -> None:
    value = result(blocks=1)
    page = show(value)
    page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject(new Error('no')))")
    page.get_by_role("button", name="Copy this command").click()
    expect(page.locator("#copy")).to_have_text("Selected: press Ctrl+C")
    assert page.evaluate("getSelection().toString()") == value["command"]


def test_downloaded_json_is_the_result(show: Open) -> None:
    value = result(blocks=2)
    page = show(value, accept_downloads=True)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the JSON").click()
    assert json.loads(Path(download.value.path()).read_text(encoding="utf-8")) == value


def test_without_scripts_everything_is_shown_and_no_dead_control(show: Open) -> None:
    value = result(blocks=4)
    page = show(value, scripts=False)
    expect(page.locator(".figures")).to_be_visible()
    expect(page.locator(".map svg").first).to_be_visible()
    assert page.locator("#layers tbody tr:visible").count() == len(layers(value))
    expect(page.locator("#layers tbody tr").last).to_contain_text("down_proj")
    assert page.locator("button:visible, input:visible, select:visible").count() == 0


@pytest.mark.parametrize("width", [390, 700])
def test_a_narrow_window_does_not_scroll_sideways(show: Open, width: int) -> None:
    value = result()
    layers(value)[0]["name"] = "model." + "long" * 60 + ".0.q_proj"
    value["command"] = "x" * 500
    value["warnings"] = ["w" * 300]
    value["models"][0]["path"] = "p" * 200
    value["models"][1]["label"] = "l" * 100
    value["plan"]["method"] = "m" * 100
    page = show(value, width=width)
    assert sideways(page) == 0
    expect(page.locator("h1")).to_be_visible()


def test_dark_is_dark_and_light_is_light(show: Open) -> None:
    value = result(blocks=2)
    light, dark = (show(value, color_scheme=scheme) for scheme in ("light", "dark"))
    assert min(background(light)) > 200
    assert max(background(dark)) < 60
    ink = dark.evaluate("getComputedStyle(document.querySelector('.value')).color")
    assert min(map(int, re.findall(r"\d+", ink))) > 180


def test_print_is_light_whole_and_has_no_controls(show: Open) -> None:
    value = result(blocks=6)
    page = show(value, color_scheme="dark")
    page.emulate_media(media="print")
    assert min(background(page)) > 200
    assert page.locator("#copy:visible, #download:visible, #filter:visible").count() == 0
    box = page.locator(".tall").evaluate("(box) => [box.scrollHeight, box.clientHeight]")
    assert box[0] == box[1]
    assert len(page.pdf()) > 10_000


@pytest.mark.parametrize("models", [1, 2])
def test_neither_plan_nor_speed(show: Open, models: int) -> None:
    page = show(result(plan=False, speed=False, models=models, grown=False) | {"command": "", "warnings": []})
    assert page.locator("#layers, .map, #copy, .warn").count() == 0
    expect(page.locator(".figures")).to_be_visible()
    expect(page.locator(".strip")).to_contain_text("23.10" if models == 1 else "23.10 → 29.91")


def test_one_layer(show: Open) -> None:
    value = result(blocks=1)
    value["plan"]["layers"] = [layer("lm_head", 100, 50, 20)]
    page = show(value)
    assert column(page, 0) == ["lm_head"]
    page.locator("rect[data-layer='0']").click()
    expect(page.locator("#layer-0")).to_be_focused()


def test_two_thousand_layers(show: Open) -> None:
    value = result(blocks=286)
    assert len(layers(value)) >= 2000
    page = show(value)
    page.get_by_label("Name contains").fill("layers.285.")
    assert len(column(page, 0)) == 7
    page.get_by_label("Name contains").fill("")
    page.locator("#layers thead button").nth(8).click()
    losses = [float(text) for text in column(page, 8)]
    assert losses == sorted(losses)
    assert sideways(page) == 0
