"""The gate's card in a real browser, over a store that is played by the page: what is clicked, said and shown."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect

from nbflow.widgets import assets
from tests.browser.lab_kit import NotebookPage

#: Loopback, so that the page may use the clipboard; nothing listens there, the test answers.
PLACE = "http://localhost:9"

#: What the browser says of scripts and pictures in a frame that may do nothing: as it should be.
FRAMED = "^(Blocked script execution in 'about:srcdoc'|Loading the image .* violates)"

#: JupyterLab's own colours, of which the view takes its own.
THEMES = {
    "light": {},
    "dark": {
        "--jp-layout-color0": "#111",
        "--jp-layout-color1": "#212121",
        "--jp-layout-color2": "#424242",
        "--jp-ui-font-color1": "rgba(255, 255, 255, 0.87)",
    },
}

#: A store of one page: gates by run and step, and how it behaves.
FAKE = """
class Fake {
    constructor(gates) {
        this.gates = gates; this.listeners = new Set(); this.calls = []; this.state = 'live';
        this.snapshot = {}; this.held = null; this.broken = null;
    }
    get connected() { return this.state !== 'gone'; }
    find(params) { return this.gates.find(row => row.run === params.run && row.step === params.step); }
    rows() { return structuredClone(this.gates).map(({exhibits, ...row}) => row); }
    async ask(method, params) {
        this.calls.push([method, structuredClone(params)]);
        if (method === 'decide' && this.held) await this.held.promise;
        if (method === 'decide' && this.broken) throw Object.assign(new Error(this.broken.message), this.broken);
        if (method === 'gates') return {rows: this.rows().filter(row => row.state === params.state)};
        const row = this.find(params);
        if (!row) throw Object.assign(new Error('The run has no such gate.'), {type: 'UnknownStep', hint: ''});
        if (method === 'gate') return structuredClone(row);
        if (row.opening !== params.opening) throw Object.assign(new Error(
            'The gate was asked anew meanwhile; nothing was decided.'),
            {type: 'GateDecided', hint: 'Look at what it shows now, and decide again.'});
        if (row.decision) throw Object.assign(new Error(
            `The gate was decided by ${row.decision.by}. That is final.`), {type: 'GateDecided', hint: ''});
        const {approved, feedback, selections, via} = params;
        Object.assign(row, {state: 'sent',
            decision: {approved, by: 'ana@desk', at: Date.now() / 1000, feedback, selections, via}});
        return structuredClone(row);
    }
    listen(listener) { this.listeners.add(listener); return () => this.listeners.delete(listener); }
    follow(what) {
        this.followed = what;
        return {update() {}, stop: () => { this.followed = null; }};
    }
    tell(push) { for (const listener of [...this.listeners]) listener(push); }
    push() { this.tell({push: 'gates', rows: this.rows()}); }
    become(state) { this.state = state; this.tell({push: 'connection', state}); }
    hold() { let release; const promise = new Promise(done => { release = done; }); this.held = {promise, release}; }
}
"""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that can load the modules, and that fails the test if one of them fails."""
    context = browser.new_context(
        viewport={"width": 900, "height": 1000}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.set_default_timeout(10_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda said: (
            wrong.append(said.text) if said.type == "error" and not re.search(FRAMED, said.text) else None
        ),
    )
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    context.route(f"{PLACE}/**", _serve)
    yield page
    context.close()
    assert wrong == []


def _serve(route: Route) -> None:
    name = route.request.url.removeprefix(PLACE + "/").partition("?")[0]
    if name == "":
        body = f"<!doctype html><html lang=en><title>Gates</title><style>{assets.style()}</style><main id=place></main>"
        route.fulfill(body=body, content_type="text/html; charset=utf-8")
    elif name == "favicon.ico":
        route.fulfill(status=204)
    else:
        route.fulfill(
            body=(assets.STATIC / name).read_text("utf-8"), content_type="text/javascript; charset=utf-8"
        )


def picture() -> str:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (420, 200), "white")
    draw = ImageDraw.Draw(image)
    draw.line([(20, 180), (100, 90), (200, 120), (300, 40), (400, 60)], fill="#1565c0", width=4)
    draw.line([(20, 10), (20, 180), (400, 180)], fill="black", width=2)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


EXHIBITS = [
    {"kind": "image", "mime": "image/png", "data": picture(), "alt": "Delays by month"},
    {
        "kind": "table",
        "columns": [{"name": "carrier", "type": "str"}, {"name": "delay", "type": "float64"}],
        "rows": [["AA", "3.5"], ["UA", "12.25"], ["DL", None]],
        "total": 3,
        "offset": 0,
        "title": "delays",
    },
    {"kind": "text", "text": "336,776 flights were read.\n"},
]


def gate(**given: Any) -> dict[str, Any]:
    """A gate as the board tells it."""
    return {
        "run": "0193abcd-1111-7222-8333-444455556666",
        "workflow": "review-and-publish",
        "step": "gate:publish#0",
        "name": "publish",
        "text": "Publish to the site?",
        "options": ["web", "mail"],
        "single": False,
        "opening": "o1",
        "opened": time.time() - 600,
        "due": None,
        "on_timeout": "fail",
        "state": "waiting",
        "decision": None,
        "exhibits": EXHIBITS,
        **given,
    }


def show(
    page: Page,
    gates: list[dict[str, Any]],
    *,
    kind: str = "mount",
    theme: str = "light",
    about: dict[str, Any] | None = None,
    again: bool = False,
) -> Locator:
    """Mount a card (or the list) over a played store, which the page has as `fake`."""
    if not again:
        page.goto(f"{PLACE}/")
    first = gates[0] if gates else {}
    about = {"run": first.get("run"), "step": first.get("step"), "here": True, **(about or {})}
    page.evaluate(
        f"""async ([gates, kind, about, theme]) => {{
            {FAKE}
            for (const [name, value] of Object.entries(theme)) document.body.style.setProperty(name, value);
            document.body.style.background = 'var(--jp-layout-color0, #fff)';
            const root = document.createElement('div');
            root.className = 'nbflow';
            document.getElementById('place').replaceChildren(root);
            window.fake = new Fake(gates);
            if (kind === 'mount') window.fake.snapshot = {{gate: structuredClone(gates[0])}};
            const gate = await import('./gate.js');
            window.unmount = gate[kind](root, window.fake, about);
        }}""",
        [gates, kind, about, THEMES[theme]],
    )
    return page.locator(".nbflow")


def decided(page: Page) -> list[dict[str, Any]]:
    """The decisions that the page sent."""
    return [params for method, params in page.evaluate("fake.calls") if method == "decide"]


def approve(root: Locator) -> Locator:
    return root.get_by_role("button", name="Approve", exact=True)


def reject(root: Locator) -> Locator:
    return root.get_by_role("button", name="Reject", exact=True)


def problem(root: Locator) -> Locator:
    found = root.locator(".nbflow-gate-problem")
    expect(found).to_have_attribute("role", "alert")
    return found


# --- deciding ---------------------------------------------------------------------------------------


def test_a_decision_is_sent_as_it_was_made(page: Page) -> None:
    """Approve sends what the person saw, selected and wrote, and the card becomes the record of it."""
    root = show(page, [gate()])
    root.get_by_label("mail").check()
    root.get_by_label("Feedback").fill("  nice\nwork ")
    approve(root).click()
    expect(root.locator(".nbflow-gate-decided")).to_contain_text("Approved by ana@desk at")
    expect(root.locator("blockquote")).to_have_text("nice\nwork")
    expect(root.locator(".nbflow-gate-selected")).to_have_text("mail")
    expect(root).to_contain_text("Run All Cells")
    assert decided(page) == [
        {
            "run": gate()["run"],
            "step": "gate:publish#0",
            "opening": "o1",
            "approved": True,
            "feedback": "nice\nwork",
            "selections": ["mail"],
            "via": "notebook",
        }
    ]
    expect(approve(root)).to_have_count(0)
    expect(root.get_by_role("status").filter(has_text="Approved by ana@desk.")).to_have_count(1)


def test_a_single_option_is_wanted_before_anything_is_sent(page: Page) -> None:
    """Where exactly one option is wanted, Approve without one sends nothing, says so, and goes to the options."""
    root = show(page, [gate(single=True)])
    approve(root).click()
    expect(problem(root)).to_have_text("Nothing was sent: select exactly one of the options.")
    expect(root.get_by_role("radio", name="web")).to_be_focused()
    assert decided(page) == []
    root.get_by_role("radio", name="mail").check()
    expect(problem(root)).to_have_text("")
    approve(root).click()
    expect(root.locator(".nbflow-gate-decided")).to_be_visible()
    assert [each["selections"] for each in decided(page)] == [["mail"]]


def test_a_rejection_without_a_reason_is_asked_about(page: Page) -> None:
    """Reject without feedback asks first, in the card; the reason can be written or left out."""
    root = show(page, [gate()])
    reject(root).click()
    expect(root.get_by_text("Reject without saying why?").first).to_be_visible()
    assert decided(page) == []
    root.get_by_role("button", name="Write a reason").click()
    expect(root.get_by_label("Feedback")).to_be_focused()
    reject(root).click()
    root.get_by_role("button", name="Reject without a reason").click()
    expect(root.locator(".nbflow-gate-decided")).to_contain_text("Rejected by")
    assert [(each["approved"], each["feedback"]) for each in decided(page)] == [(False, "")]


def test_a_second_click_sends_nothing(page: Page) -> None:
    """While a decision is on its way the form says so and takes no other; a kernel that is busy is said to be."""
    root = show(page, [gate()])
    page.evaluate("fake.hold()")
    approve(root).click()
    expect(approve(root)).to_be_disabled()
    expect(reject(root)).to_be_disabled()
    expect(root.get_by_role("status").filter(has_text="Sending…")).to_have_count(1)
    expect(root.get_by_text("The kernel is busy")).to_be_visible()
    expect(root.locator("code")).to_have_text(f"nbflow approve {gate()['run']} 'gate:publish#0'")
    page.evaluate("fake.held.release()")
    expect(root.locator(".nbflow-gate-decided")).to_be_visible()
    assert len(decided(page)) == 1


def test_somebody_else_was_first(page: Page) -> None:
    """Who decides second sees the first decision at once, why his own did not count, and what he wrote."""
    root = show(page, [gate()])
    root.get_by_label("Feedback").fill("my words")
    page.evaluate(
        "fake.gates[0].decision = {approved: false, by: 'bob', at: Date.now() / 1000, feedback: 'no',"
        " selections: [], via: 'cli'}, fake.gates[0].state = 'sent'"
    )
    approve(root).click()
    expect(root.locator(".nbflow-gate-decided")).to_contain_text("Rejected by bob")
    expect(root).to_contain_text("in a terminal")
    expect(root).to_contain_text("The gate was decided by bob. That is final.")
    expect(root.locator(".nbflow-gate-unsent")).to_contain_text("my words")


def test_decided_elsewhere_while_the_page_is_open(page: Page) -> None:
    """The next push turns the card into the record; who was writing keeps the words and the place."""
    root = show(page, [gate()])
    root.get_by_label("Feedback").fill("half a sen")
    page.evaluate(
        "fake.gates[0].decision = {approved: true, by: 'bob', at: Date.now() / 1000, feedback: '',"
        " selections: ['web'], via: 'cli'}, fake.gates[0].state = 'sent', fake.push()"
    )
    expect(root.locator(".nbflow-gate-decided")).to_contain_text("Approved by bob")
    expect(root.locator(".nbflow-gate-unsent")).to_contain_text("half a sen")
    expect(root.get_by_role("heading", name="Publish to the site?")).to_be_focused()
    page.evaluate("fake.gates[0].state = 'approved', fake.push()")
    expect(root).to_contain_text("The run has taken it in.")


def test_asked_anew(page: Page) -> None:
    """A decision about an older asking is refused at the button; the card shows the new one and keeps the words."""
    root = show(page, [gate()])
    root.get_by_label("Feedback").fill("fine")
    root.get_by_label("web").check()
    page.evaluate(
        "fake.gates[0].opening = 'o2', fake.gates[0].text = 'Publish the second version?',"
        " fake.gates[0].exhibits = [{kind: 'text', text: 'the second figures'}]"
    )
    approve(root).click()
    expect(root.get_by_role("heading", name="Publish the second version?")).to_be_visible()
    expect(root).to_contain_text("the second figures")
    expect(root.get_by_role("status").filter(has_text="This was asked anew")).to_have_count(1)
    expect(problem(root)).to_contain_text("asked anew meanwhile; nothing was decided")
    expect(root.get_by_label("Feedback")).to_have_value("fine")
    expect(root.get_by_label("web")).not_to_be_checked()
    approve(root).click()
    expect(root.locator(".nbflow-gate-decided")).to_be_visible()
    assert [each["opening"] for each in decided(page)] == ["o1", "o2"]


def test_a_gate_that_went_away(page: Page) -> None:
    """A gate whose run was deleted says so where the click was, and can no longer be decided."""
    root = show(page, [gate()])
    page.evaluate(
        "fake.broken = {type: 'UnknownRun', message: 'There is no run 0193.', hint: ''}, fake.gates = []"
    )
    approve(root).click()
    expect(root).to_contain_text("There is no run 0193.")
    expect(root).to_contain_text("The store has this gate no more.")
    expect(approve(root)).to_have_count(0)
    page.evaluate("gates => { fake.gates = gates; fake.push(); }", [gate()])
    expect(approve(root)).to_be_enabled()


@pytest.mark.parametrize(
    ("state", "said"),
    [("timed_out", "Nobody decided in time"), ("cancelled", "Nobody can decide it any more")],
)
def test_over_without_a_decision(page: Page, state: str, said: str) -> None:
    """A gate that timed out or was withdrawn says that, and offers nothing to press."""
    root = show(page, [gate(state=state)])
    expect(root).to_contain_text(said)
    expect(root.get_by_role("button")).to_have_count(0)


# --- what must not get lost ---------------------------------------------------------------------------


def test_a_draft_survives(page: Page) -> None:
    """What somebody writes outlives pushes, a new drawing of the view and a reload of the page."""
    root = show(page, [gate()])
    root.get_by_label("mail").check()
    field = root.get_by_label("Feedback")
    field.press_sequentially("a long thou")
    for _ in range(3):
        page.evaluate("fake.push()")
    expect(field).to_be_focused()
    field.press_sequentially("ght")
    page.evaluate("unmount()")
    root = show(page, [gate()], again=True)
    expect(root.get_by_label("Feedback")).to_have_value("a long thought")
    root = show(page, [gate()])
    expect(root.get_by_label("Feedback")).to_have_value("a long thought")
    expect(root.get_by_label("mail")).to_be_checked()
    approve(root).click()
    expect(root.locator(".nbflow-gate-decided")).to_be_visible()
    root = show(page, [gate()])
    expect(root.get_by_label("Feedback")).to_have_value("")


def test_without_a_kernel(page: Page) -> None:
    """When the kernel is gone the form says how to decide in a terminal, and copies the command; it comes back."""
    root = show(page, [gate(step="gate:it's ready#0")], about={"store": "/data/my runs/.nbflow"})
    page.evaluate("fake.become('gone')")
    expect(approve(root)).to_be_disabled()
    expect(root).to_contain_text("The kernel is gone")
    root.get_by_role("button", name=re.compile("Copy: nbflow reject")).click()
    expect(root.get_by_text("Copied.")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    told = f"""nbflow reject {gate()["run"]} 'gate:it'"'"'s ready#0' --store '/data/my runs/.nbflow'"""
    assert copied == told
    page.evaluate("fake.become('live')")
    expect(approve(root)).to_be_enabled()


def test_the_kernel_goes_while_a_decision_is_sent(page: Page) -> None:
    """A decision whose answer was lost is said to be uncertain, and never shown as made."""
    root = show(page, [gate()])
    page.evaluate("fake.hold(), fake.broken = {type: 'Gone', message: 'The kernel is gone.', hint: ''}")
    approve(root).click()
    page.evaluate("fake.become('gone'), fake.held.release()")
    expect(problem(root)).to_contain_text("whether this decision counted is not known")
    expect(root.locator(".nbflow-gate-decided")).to_have_count(0)


def test_the_countdown_moves_nothing(page: Page) -> None:
    """The time that is left is counted down in place: the card keeps its size, and nothing is announced."""
    root = show(page, [gate(due=time.time() + 3700)])
    left = root.get_by_role("timer")
    expect(left).to_have_text(re.compile(r"^01:0\d:\d\d left$"))
    assert left.get_attribute("aria-live") == "off"
    before, box = left.inner_text(), root.bounding_box()
    expect(left).not_to_have_text(before)
    assert root.bounding_box() == box
    expect(root).to_contain_text("then it fails")


def test_the_time_runs_out(page: Page) -> None:
    """When the time is up the card asks what became of the gate."""
    root = show(page, [gate(due=time.time() + 1.2)])
    page.evaluate("fake.gates[0].state = 'timed_out'")
    expect(root).to_contain_text("Nobody decided in time")


# --- the list -----------------------------------------------------------------------------------------


def several(number: int) -> list[dict[str, Any]]:
    return [gate(run=f"0193abcd-{each:04}", text=f"Publish part {each}?") for each in range(number)]


def test_the_list_loads_what_is_shown_on_demand(page: Page) -> None:
    """The list shows what each gate asks; pictures and tables are asked for when they are unfolded."""
    root = show(page, several(2), kind="mountList")
    expect(root).to_contain_text("2 gates wait.")
    root.get_by_role("button", name="Show what it is about").first.click()
    expect(root.get_by_role("img", name="Delays by month")).to_be_visible()
    assert [method for method, _ in page.evaluate("fake.calls")] == ["gates", "gate"]
    page.evaluate("fake.push()")
    expect(root.get_by_role("img", name="Delays by month")).to_be_visible()


def test_a_list_says_when_the_run_has_taken_a_decision_in(page: Page) -> None:
    """A decision sent from the list is followed to its run, which the list of those that wait says nothing of."""
    root = show(page, several(1), kind="mountList")
    approve(root).click()
    expect(root).to_contain_text("Sent. The run takes it in when it goes on")
    assert page.evaluate("fake.followed") == {"run": "0193abcd-0000"}
    page.evaluate(
        "fake.gates[0].state = 'approved',"
        " fake.tell({push: 'run', run: fake.gates[0].run, gates: fake.rows()})"
    )
    expect(root).to_contain_text("The run has taken it in.")


def test_a_list_has_the_beginning_of_a_long_question(page: Page) -> None:
    """What a list cuts off a long question is there when it is unfolded, and stays there."""
    root = show(page, [gate(text="Really?\nyes " + "word " * 400 + "the end")], kind="mountList")
    page.evaluate(
        "fake.rows = () => [{...fake.gates[0], exhibits: undefined, text: fake.gates[0].text.slice(0, 50) + '…'}]"
    )
    page.evaluate("fake.push()")
    root.get_by_role("button", name="Show what it is about").click()
    whole = root.get_by_role("region", name="The whole question")
    expect(whole).to_contain_text("the end")
    page.evaluate("fake.push()")
    expect(whole).to_contain_text("the end")


def test_cards_stay_where_they_are(page: Page) -> None:
    """A gate that is decided elsewhere keeps its place in the list, and a new one comes last: no click hits another."""
    root = show(page, several(3), kind="mountList")
    second = approve(root).nth(1).bounding_box()
    page.evaluate(
        "fake.gates[1].decision = {approved: true, by: 'bob', at: Date.now() / 1000, feedback: '', selections: [],"
        " via: 'cli'}, fake.gates[1].state = 'sent'"
    )
    page.evaluate(
        "rows => { fake.rows = () => rows; fake.push(); }",
        [
            gate(run="0193abcd-new", text="New?"),
            *(each for each in several(3) if each["run"] != "0193abcd-0001"),
        ],
    )
    expect(root.locator(".nbflow-gate-question")).to_have_text(
        ["Publish part 0?", "Publish part 1?", "Publish part 2?", "New?"]
    )
    expect(root.locator(".nbflow-gate-decided")).to_contain_text("Approved by bob")
    assert second is not None
    page.mouse.click(second["x"] + 5, second["y"] + 5)
    assert decided(page) == []
    root.get_by_role("button", name="Put the decided ones away").click()
    expect(root.locator(".nbflow-gate-question")).to_have_count(3)


def test_a_thousand_gates(page: Page) -> None:
    """Of a thousand gates twenty are drawn, the rest on request; a push costs no new drawing."""
    root = show(page, several(1000), kind="mountList")
    expect(root).to_contain_text("1,000 gates wait.")
    expect(root.locator(".nbflow-gate-question")).to_have_count(20)
    page.evaluate("document.querySelector('.nbflow-gate').marked = true; fake.push()")
    assert page.evaluate("document.querySelector('.nbflow-gate').marked") is True
    root.get_by_role("button", name="Show 20 more of 980").click()
    expect(root.locator(".nbflow-gate-question")).to_have_count(40)


def test_an_empty_list_says_so(page: Page) -> None:
    """Where no gate waits the list says that."""
    expect(show(page, [], kind="mountList")).to_contain_text("No gate waits for a decision.")


# --- everybody, and nobody's HTML -----------------------------------------------------------------------

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>\u202e"\'><b>'


def test_hostile_texts_are_shown(page: Page) -> None:
    """Whatever a run, a person or a file calls things, it is text: nothing of it becomes an element."""
    given = gate(
        workflow=HOSTILE,
        name=HOSTILE,
        text=f"{HOSTILE}\nsecond line {HOSTILE}",
        options=[HOSTILE, "javascript:alert(3)"],
        exhibits=[
            {"kind": "text", "text": HOSTILE},
            {"kind": "markdown", "text": HOSTILE},
            {"kind": "image", "mime": "image/png", "data": picture(), "alt": HOSTILE},
            {
                "kind": "table",
                "columns": [{"name": HOSTILE, "type": HOSTILE}],
                "rows": [[HOSTILE]],
                "total": 1,
                "offset": 0,
            },
            {"kind": "html", "html": f"<p>framed</p>{HOSTILE}"},
        ],
    )
    root = show(page, [given])
    expect(root.get_by_role("heading")).to_have_text(HOSTILE)
    root.get_by_role("checkbox", name=HOSTILE).check()
    root.get_by_label("Feedback").fill(HOSTILE)
    approve(root).click()
    expect(root.locator("blockquote")).to_have_text(HOSTILE)
    assert page.evaluate("document.querySelectorAll('.nbflow script, .nbflow [onerror]').length") == 0
    for frame in root.locator("iframe").all():
        assert frame.get_attribute("sandbox") == ""


def test_a_very_long_question(page: Page) -> None:
    """A question of 100 KB has a heading of its first words and stands whole in a box that scrolls."""
    words = "Really? " * 12_500
    root = show(page, [gate(text=words)])
    assert len(root.get_by_role("heading").inner_text()) <= 200
    whole = root.get_by_role("region", name="The whole question")
    assert whole.inner_text().strip() == words.strip()
    box = whole.bounding_box()
    assert box is not None
    assert box["height"] < 400


def test_by_keyboard_alone(page: Page) -> None:
    """Everything can be reached by Tab, and no key decides alone: Ctrl+Enter goes to Approve, Enter there decides."""
    root = show(page, [gate()])
    root.get_by_label("web").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(root.get_by_label("Feedback")).to_be_focused()
    page.keyboard.type("good")
    page.keyboard.press("Control+Enter")
    expect(approve(root)).to_be_focused()
    assert decided(page) == []
    expect(root.get_by_role("status").filter(has_text="Press Enter to approve")).to_have_count(1)
    page.keyboard.press("Tab")
    expect(reject(root)).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(root.get_by_role("heading")).to_be_focused()
    assert [(each["approved"], each["feedback"], each["selections"]) for each in decided(page)] == [
        (True, "good", ["web"])
    ]


def test_the_notebook_takes_no_key_of_the_form(page: Page) -> None:
    """Everything that takes keys tells JupyterLab to leave them: there Enter on a button would edit the cell."""
    root = show(page, [gate(text="One?\n" * 30)])
    reject(root).click()
    bare = root.locator("button, input, textarea, [tabindex='0']").locator(
        "xpath=self::*[not(@data-lm-suppress-shortcuts)]"
    )
    assert [each.evaluate("each => each.outerHTML.slice(0, 120)") for each in bare.all()] == []


@pytest.mark.parametrize("width", [320, 1200])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes_and_widths(page: Page, theme: str, width: int, tmp_path: Path) -> None:
    """In both themes, narrow and wide, nothing sticks out and axe-core finds no serious violation."""
    page.set_viewport_size({"width": width, "height": 1000})
    long = gate(
        name="a-name-without-any-place-to-break-it-that-goes-on-and-on-and-on",
        options=["web", "mail to the whole of the company, including those who are on holiday"],
        single=True,
        due=time.time() + 90_000,
    )
    root = show(page, [long], theme=theme)
    expect(root.get_by_role("img", name="Delays by month")).to_be_visible()
    _sound(page)
    approve(root).click()
    expect(problem(root)).to_contain_text("Nothing was sent")
    reject(root).click()
    _sound(page)
    page.screenshot(path=tmp_path / f"gate-{theme}-{width}.png", full_page=True)
    page.evaluate("fake.become('gone')")
    _sound(page)
    page.screenshot(path=tmp_path / f"gone-{theme}-{width}.png", full_page=True)
    page.evaluate("fake.become('live')")
    reject(root).click()
    root.get_by_role("button", name="Reject without a reason").click()
    expect(root.locator(".nbflow-gate-decided")).to_be_visible()
    _sound(page)
    page.screenshot(path=tmp_path / f"record-{theme}-{width}.png", full_page=True)
    root = show(page, several(3), kind="mountList", theme=theme)
    expect(root).to_contain_text("3 gates wait.")
    _sound(page)
    page.screenshot(path=tmp_path / f"list-{theme}-{width}.png", full_page=True)


def _sound(page: Page) -> None:
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0
    found = Axe().run(page, context={"include": [[".nbflow"]]})
    serious = [each for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious] == []


# --- in a real notebook -------------------------------------------------------------------------------------


def test_by_keyboard_in_jupyterlab(show: Callable[..., NotebookPage]) -> None:  # noqa: F811 - the notebook's fixture
    """In JupyterLab the keys of the card are the card's: Enter on Approve decides, and no key touches a cell."""
    asks = "decision = nbflow.gate('publish', 'Publish?', options=['web', 'mail'], wait=True)\nprint('said', decision)"
    notebook = show("keys", "%load_ext nbflow\nimport nbflow", asks)
    notebook.run_all(wait=False)
    card = notebook.output(1).locator(".nbflow-gate")
    card.get_by_label("mail").focus()
    keys = notebook.page.keyboard
    keys.press("Space")
    keys.press("Tab")
    keys.type("dd, 00 and bb")
    keys.press("Control+Enter")
    expect(approve(card)).to_be_focused()
    keys.type("ddbb")
    keys.press("Enter")
    expect(card.locator(".nbflow-gate-decided")).to_be_visible()
    notebook.wait_idle()
    assert "feedback='dd, 00 and bb', selections=('mail',)" in notebook.text(1)
    assert notebook.do("panel.content.widgets.length") == 2
