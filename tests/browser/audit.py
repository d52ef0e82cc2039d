"""What any view has to pass: axe-core, contrast, nothing over anything else, every control within reach of Tab.

Judged in the page itself, so that what counts is what the browser computed.
"""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page

#: What a person can act on.
CONTROLS = "button, input, select, textarea, summary, a[href], [tabindex]"

_SHARED = """
const shown = (element) => {
    const box = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    return box.width > 0 && box.height > 0 && style.visibility === 'visible'
        && (!element.checkVisibility || element.checkVisibility({opacityProperty: true}));
};
// What is left of a box in the boxes that clip it; null if nothing is.
const clipped = (element, box) => {
    let {left, top, right, bottom} = box;
    for (let up = element.parentElement; up && !up.classList.contains('jp-Cell-outputArea'); up = up.parentElement) {
        const style = getComputedStyle(up);
        if (style.overflowX === 'visible' && style.overflowY === 'visible') continue;
        const edge = up.getBoundingClientRect();
        left = Math.max(left, edge.left); right = Math.min(right, edge.right);
        top = Math.max(top, edge.top); bottom = Math.min(bottom, edge.bottom);
    }
    return right - left > 1 && bottom - top > 1 ? {left, top, right, bottom} : null;
};
const named = (element) => {
    const text = (element.getAttribute('aria-label') || element.innerText || element.value || '').trim();
    return `${element.tagName.toLowerCase()}${element.className && element.className.baseVal === undefined
        ? '.' + [...element.classList].join('.') : ''} "${text.slice(0, 40)}"`;
};
"""


def violations(page: Page, where: str = ".nbflow") -> list[str]:
    """Return what axe-core finds serious or critical within the views: rule, element, and what is wrong."""
    found = Axe().run(page, context={"include": [[where]]}, options={"resultTypes": ["violations"]}).response
    return [
        f"{each['id']} ({each['impact']}): {node['target']}: {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


_CONTRAST = (
    "(root) => {"
    + _SHARED
    + """
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
    const luminance = ([r, g, b]) => {
        const part = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const behind = (element) => {
        const layers = [];
        if (element.closest('svg')) {
            element.scrollIntoView({block: 'nearest', inline: 'nearest'});
            const box = element.getBoundingClientRect();
            const stack = document.elementsFromPoint(box.left + box.width / 2, box.top + box.height / 2);
            for (const each of stack) {
                if (each === element || element.contains(each) || each.contains(element) || !each.closest('svg')) continue;
                const style = getComputedStyle(each);
                if (each.tagName !== 'text' && style.fill !== 'none') {
                    const fill = rgba(style.fill);
                    fill[3] *= Number(style.fillOpacity) * Number(style.opacity);
                    layers.push(fill);
                }
            }
        }
        for (let up = element; up; up = up.parentElement) layers.push(rgba(getComputedStyle(up).backgroundColor));
        layers.push([255, 255, 255, 1]);
        const opaque = layers.findIndex((layer) => layer[3] > 0.999);
        return layers.slice(0, opaque + 1).reduceRight((under, top) => (under ? over(top, under) : top), null);
    };
    const found = [];
    let count = 0;
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const element = node.parentElement;
        if (!node.data.trim() || !shown(element) || element.closest('[aria-hidden=true], :disabled, [aria-disabled=true]')) continue;
        const style = getComputedStyle(element);
        const svg = element.closest('svg') !== null;
        const color = rgba(svg ? style.fill : style.color);
        for (let up = element; up && up !== root.parentElement; up = up.parentElement)
            color[3] *= Number(getComputedStyle(up).opacity);
        const back = behind(element);
        const [a, b] = [luminance(over(color, back)), luminance(back)];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        count += 1;
        if (ratio < (large ? 3 : 4.5) - 0.005)
            found.push(`${ratio.toFixed(2)} ${named(element)} ${svg ? style.fill : style.color} on ${back.map(Math.round)}`);
    }
    return {count, found: [...new Set(found)]};
}"""
)


def settle(page: Page) -> None:
    """Let colours that change slowly arrive: JupyterLab's own do when the theme changes."""
    page.evaluate(
        "() => document.getAnimations().forEach((one) => { try { one.finish(); } catch { one.cancel(); } })"
    )


def too_faint(view: Locator) -> list[str]:
    """Return the texts whose contrast is below WCAG AA: 4.5, for large ones 3."""
    settle(view.page)
    judged = view.evaluate(_CONTRAST)
    assert judged["count"] > 0, "there is no text to judge"
    found: list[str] = judged["found"]
    return found


_OVERLAPS = (
    "(root, controls) => {"
    + _SHARED
    + """
    const leaves = [...root.querySelectorAll('*')].filter((element) => !element.closest('svg, dialog:not([open])')
        && (element.matches(controls) || ([...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))));
    const boxes = [];
    for (const element of leaves) {
        if (!shown(element) || element.matches('.nbflow-hidden, .nbflow-hidden *')) continue;
        const range = document.createRange();
        range.selectNodeContents(element);
        const own = element.matches(controls) ? [element.getBoundingClientRect()] : [...range.getClientRects()];
        for (const rect of own) {
            const box = clipped(element, rect);
            if (box) boxes.push({element, box});
        }
    }
    const found = [];
    boxes.forEach((one, at) => {
        for (const other of boxes.slice(at + 1)) {
            if (one.element.contains(other.element) || other.element.contains(one.element)) continue;
            const width = Math.min(one.box.right, other.box.right) - Math.max(one.box.left, other.box.left);
            const height = Math.min(one.box.bottom, other.box.bottom) - Math.max(one.box.top, other.box.top);
            if (width > 2 && height > 2)
                found.push(`${named(one.element)} and ${named(other.element)}: ${Math.round(width)} × ${Math.round(height)}`);
        }
    });
    return {count: boxes.length, found: [...new Set(found)]};
}"""
)


def overlaps(view: Locator) -> list[str]:
    """Return the pairs of controls and texts that lie over each other."""
    judged = view.evaluate(_OVERLAPS, CONTROLS)
    assert judged["count"] > 0, "there is nothing to judge"
    found: list[str] = judged["found"]
    return found


def too_wide(view: Locator) -> list[str]:
    """Return what sticks out of the view to the side without a scroll bar of its own."""
    found: list[str] = view.evaluate(
        "(root) => {"
        + _SHARED
        + """
        const edge = root.getBoundingClientRect();
        return [...root.querySelectorAll('*')].filter((element) => {
            if (!shown(element) || element.closest('dialog')) return false;
            const box = clipped(element, element.getBoundingClientRect());
            return box && (box.right > edge.right + 2 || box.left < edge.left - 2);
        }).map(named);
    }"""
    )
    return found


_STOPS = (
    "(root, controls) => {"
    + _SHARED
    + """
    const usable = [...root.querySelectorAll(controls)].filter((element) => shown(element)
        && !element.matches(':disabled') && !element.closest('[inert], dialog:not([open])'));
    window.__stops = usable.filter((element) => element.tabIndex >= 0);
    window.__reached = new Set();
    window.__others = usable.filter((element) => element.tabIndex < 0);
    window.__stops[0]?.focus();
    return window.__stops.length;
}"""
)
_REACHED = (
    "() => {"
    + _SHARED
    + """
    // One stop stands for a group whose members the arrow keys reach.
    const groups = '[role=grid], [role=table], [role=tablist], [role=tree], [role=treegrid], [role=listbox],'
        + '[role=radiogroup], [role=menu], [role=toolbar], [role=group], [role=application], [role=graphics-document], svg, table';
    const reached = window.__reached;
    const left = [];
    for (const element of [...window.__stops, ...window.__others]) {
        if (reached.has(element) || !element.isConnected) continue;
        if (element.type === 'radio' && [...reached].some((one) => one.name === element.name)) continue;
        // What takes the focus only by script (a heading, a panel) is no control.
        if (element.tabIndex < 0 && !element.matches('button, input, select, textarea, a[href], [role]')) continue;
        const group = element.tabIndex < 0 ? element.closest(groups) : null;
        if (group && [...reached].some((one) => group.contains(one))) continue;
        left.push(named(element));
    }
    return left;
}"""
)


def out_of_reach(page: Page, view: Locator) -> list[str]:
    """Press Tab from the first control on, and return the controls that never had the focus."""
    count: int = view.evaluate(_STOPS, CONTROLS)
    assert count > 0, "there is nothing to press"
    mark: Any = "() => { if (document.activeElement) window.__reached.add(document.activeElement); }"
    for _ in range(count + 3):
        page.evaluate(mark)
        page.keyboard.press("Tab")
    left: list[str] = page.evaluate(_REACHED)
    return left


def invisible_focus(page: Page, view: Locator) -> list[str]:
    """Return the controls that look the same with the focus of the keyboard as without."""
    count: int = view.evaluate(_STOPS, CONTROLS)
    found = []
    look = """() => { const style = getComputedStyle(document.activeElement);
        return [style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0 || style.boxShadow !== 'none',
                document.activeElement.outerHTML.slice(0, 120), window.__stops.includes(document.activeElement)]; }"""
    for _ in range(count):
        page.keyboard.press("Tab")
        ringed, what, ours = page.evaluate(look)
        if ours and not ringed:
            found.append(what)
    return found
