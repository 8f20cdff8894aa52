"""The page in a real browser: Debian's Chromium, headless. Its pictures are left in build/pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from certfan.daemon.listeners import Listener
from certfan.daemon.status.things import StateOfThings
from tests.unit import page_parts as parts
from tests.unit.page_parts import NAMES
from tests.unit.status_parts import serving

CHROMIUM = "/usr/bin/chromium"
PICTURES = Path(__file__).parents[2] / "build" / "pictures"
PATIENCE = 30.0
# Best practices too, not only what WCAG 2.2 AA forbids.
RULES = {"resultTypes": ["violations"]}
expect.set_options(timeout=PATIENCE * 1000)
pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        await chromium.close()


class Window:
    """One window of the browser, on a fleet that the test may change; what the browser complains of is kept."""

    def __init__(self, page: Page, url: str, things: StateOfThings) -> None:
        self.page, self.url, self.things = page, url, things
        self.complaints: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        page.set_default_timeout(PATIENCE * 1000)

    async def open(self, path: str = "/") -> None:
        await self.page.goto(self.url + path)

    async def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    async def faults(self) -> list[str]:
        """What is wrong with what is shown now: wider than the window, or complained of by the browser."""
        wide, room = await self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        return [*([f"{wide} px wide in {room}"] if wide > room else []), *self.complaints]

    async def breaches(self) -> list[str]:
        """Which rules of accessibility what is shown now breaks, contrast included."""
        found = (await Axe().run(self.page, options=RULES)).response["violations"]
        return [
            f"{one['id']}: {node['html']} {node['failureSummary']}" for one in found for node in one["nodes"]
        ]


@asynccontextmanager
async def window(browser: Browser, things: StateOfThings, **how: Any) -> AsyncIterator[Window]:
    context = await browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | how))
    shown: list[Window] = []
    doors = parts.doors(lambda: shown[0].things)
    async with serving(Listener("127.0.0.1", 0), doors=doors) as runner:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        shown.append(Window(await context.new_page(), url, things))
        try:
            yield shown[0]
        finally:
            await context.close()


async def faults_of(
    browser: Browser, things: StateOfThings, path: str, name: str, *, dark_too: bool = True
) -> list[str]:
    """What is wrong with one page in a light, wide window and in a dark, narrow one; leaves a picture of each.

    Looking for breaches takes seconds where there is much to see; with `dark_too` it is done in both.
    """
    found = []
    async with window(browser, things) as shown:
        for scheme, width in (("light", 1280), ("dark", 320)):
            await shown.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            await shown.page.set_viewport_size({"width": width, "height": 900})
            await shown.open(path)
            await shown.picture(f"{name}-{scheme}")
            found += await shown.faults()
            if scheme == "light" or dark_too:
                found += await shown.breaches()
    return found


@pytest.mark.parametrize("scene", parts.SCENES)
async def test_every_state_is_shown_well_in_light_and_dark_wide_and_narrow(
    browser: Browser, scene: str
) -> None:
    """No complaint of the browser (strict CSP), no breach of WCAG AA, contrasts computed, and nothing wider than 320 px."""
    every_tone = scene == "every-verdict"
    assert await faults_of(browser, parts.SCENES[scene](), "/", scene, dark_too=every_tone) == []


@pytest.mark.parametrize(
    ("path", "name"), [(f"/certificates/{NAMES[4]}", "certificate"), ("/consumers/web2", "consumer")]
)
async def test_the_page_of_one_thing_is_shown_well(browser: Browser, path: str, name: str) -> None:
    """With the output of a command that failed, and hostile words in its story."""
    assert await faults_of(browser, parts.every_verdict(), path, name) == []


async def test_hostile_words_do_nothing_in_a_browser(browser: Browser) -> None:
    """An authority, an agent and an endpoint try to run a script: their words are read, nothing runs."""
    async with window(browser, parts.hostile()) as shown:
        for path in ("/", *(f"/certificates/{name}" for name in NAMES[:2]), "/consumers/web1"):
            await shown.open(path)

            await expect(shown.page.locator("main")).to_contain_text("<script>alert(1)</script>")
            assert await shown.page.evaluate("document.images.length + document.scripts.length") == 1

        assert shown.complaints == []


async def test_without_script_all_of_it_works(browser: Browser) -> None:
    """Everything is in the page as it comes: the filter is a form, the list opens, the page reloads itself."""
    async with window(browser, parts.many(), java_script_enabled=False) as shown:
        await shown.open()
        page = shown.page
        assert await page.locator("noscript meta[http-equiv=refresh]").get_attribute("content") == "60"
        await page.get_by_role("link", name="next", exact=True).click()
        await expect(page.locator(".paging")).to_contain_text("101 to 200 of 300")
        await page.get_by_label("Filter").fill("site299")
        await page.keyboard.press("Enter")

        await expect(page.locator(".matrix tbody tr")).to_have_count(1)
        await page.get_by_role("link", name="site299.example2.org").first.click()
        await expect(page.get_by_role("heading", level=1)).to_contain_text("site299.example2.org")
        assert shown.complaints == []


async def test_with_script_it_keeps_itself_up_to_date_and_what_the_reader_did(browser: Browser) -> None:
    """New words come in; focus, scroll, an open list and a half-written filter stay where they were."""
    async with window(browser, parts.many(150)) as shown:
        page = shown.page
        await page.clock.install()
        await shown.open()
        await page.get_by_text("As a list").click()
        await page.get_by_label("Filter").fill("site0")
        await page.clock.run_for(1000)
        await expect(page.locator(".paging")).to_contain_text("of 100")
        link = page.locator("#c-site012\\.example3\\.org a")
        await link.focus()
        await page.mouse.wheel(0, 300)
        await page.wait_for_function("window.scrollY > 100")
        before = await page.evaluate("window.scrollY")
        shown.things = parts.with_problem(parts.many(150), "the share is gone")

        await page.clock.run_for(16_000)
        await expect(page.locator("main")).to_contain_text("the share is gone")

        assert await link.evaluate("link => link === document.activeElement")
        assert await page.get_by_label("Filter").input_value() == "site0"
        assert await page.locator("#changes").get_attribute("open") is not None
        assert await page.evaluate("new URLSearchParams(location.search).get('q')") == "site0"
        assert await link.is_visible()
        assert await page.evaluate("window.scrollY") >= before
        assert shown.complaints == []


async def test_a_page_that_cannot_be_brought_up_to_date_says_so(browser: Browser) -> None:
    """An old page must never pass for a new one; when the daemon is back the warning goes."""
    async with window(browser, parts.all_well()) as shown:
        page = shown.page
        await page.clock.install()
        await shown.open()
        await page.route("**/*", lambda route: route.abort())
        await page.clock.run_for(16_000)
        await expect(page.locator("#stale")).to_contain_text("Not up to date: certfan did not answer at")

        await page.unroute("**/*")
        await page.clock.run_for(16_000)
        await expect(page.locator("#stale")).to_have_text("")


async def test_everything_is_reached_by_keyboard_and_the_focus_is_seen(browser: Browser) -> None:
    """The first key skips to the content; every stop on the way has a visible outline, and none is a trap."""
    async with window(browser, parts.every_verdict()) as shown:
        page = shown.page
        await shown.open()
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to content"
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "main"

        stops = []
        async with asyncio.timeout(PATIENCE):
            while True:
                await page.keyboard.press("Tab")
                stop = await page.evaluate(
                    "(e => e === document.body ? null : [e.textContent.trim() || e.id, getComputedStyle(e).outlineStyle])"
                    "(document.activeElement)"
                )
                if stop is None or stop[0] == "Skip to content":
                    break
                stops.append(stop)

        assert {outline for _, outline in stops} == {"solid"}
        reached = [name for name, _ in stops]
        assert {*NAMES, "web1", "mail", "q", "Find", "As a list"} <= set(reached)
        assert reached.index("q") < reached.index("As a list")
